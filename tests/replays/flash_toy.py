"""The toy of Flash Diffusion's goldens: its networks, heads, and what all pieces read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import guidance, precond
from fastdiff_jax.losses.grid import Grid, grid
from fastdiff_jax.networks import mlp
from fastdiff_jax.precond import denoiser
from fastdiff_jax.types import Coefficients, Denoiser, Model, Network

LEAVES = ("W1", "b1", "u", "V", "W2", "b2")
TOLD = 1000  # the networks are told their label over this


class Toy(NamedTuple):
    """Inputs that the pieces share."""

    model: Model
    teacher: dict
    student: dict
    z: jax.Array  # (B,C,H,W)
    y: jax.Array  # (B,dy)
    abar: np.ndarray
    grid: Grid
    span: tuple[float, float]  # of the guidance scale

    def guided(self, scale) -> Denoiser:
        """The teacher with classifier-free guidance; no condition is y = 0."""
        aimed = denoiser(self.model, self.teacher, {"label": self.y})
        return guidance.mixed(aimed, denoiser(self.model, self.teacher), scale)

    def scale(self, share):
        """The guidance scale of a uniform draw (1,)."""
        return self.span[0] + share[0] * (self.span[1] - self.span[0])


def array(golden, key):
    return jnp.asarray(golden.input(key))


def toy(golden) -> Toy:
    trees = [{leaf: array(golden, f"{who}_{leaf}") for leaf in LEAVES} for who in ("teacher", "student")]
    z, y = array(golden, "z"), array(golden, "y")
    hidden = trees[0]["W1"].shape[1]
    network = mlp.build({"hidden": (hidden,)}, z.shape[1:], y.shape[1])
    abar = golden.input("alphas_cumprod")
    span = tuple(float(golden.input(f"guidance_{end}")) for end in ("min", "max"))
    levels = grid(abar, int(golden.input("K_main")))
    return Toy(Model(network, told(precond.tabled(abar))), *trees, z, y, abar, levels, span)


def told(base):
    """A preconditioner whose network hears a thousandth of the label."""

    def coefficients(sigma) -> Coefficients:
        c = base.coefficients(sigma)
        return c._replace(noise=c.noise / TOLD)

    return base._replace(coefficients=coefficients)


def head(golden, name: str) -> dict:
    """The weights of a linear discriminator: "disc" on hidden units, "disc_out" on predictions."""
    return {leaf: array(golden, f"{name}_{leaf}") for leaf in ("w", "b")}


def scored(params, x, c_noise=None, cond=None, *, dropout=None, taps=()):
    """Its logits (B,1)."""
    return x.reshape(len(x), -1) @ params["w"] + params["b"]


def scorer(params: dict) -> Network:
    """It as a network that begins with these weights."""
    return Network(lambda *_: params, scored)


def check_tree(golden, key: str, tree: dict) -> None:
    """Checks every leaf of gradients against `<key>_grad_<leaf>`."""
    for leaf, value in tree.items():
        golden.check(f"{key}_grad_{leaf}", value)
