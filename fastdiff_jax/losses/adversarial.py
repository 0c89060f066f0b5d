"""Adversarial losses on the logits of a discriminator, unreduced: what generator and discriminator minimise.

Source: the losses of Flash Diffusion's code (arXiv:2406.02347); DMD2 (arXiv:2405.14867) and SiDA
(arXiv:2410.14919) have the one called vanilla.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdiff_jax import registry
from fastdiff_jax.losses.generation import condition
from fastdiff_jax.precond import denoiser, tapped
from fastdiff_jax.types import Array, Cond, Model, Params, expand

EPS = 1e-8  # inside the logarithms of the non-saturating loss


class Adversary(NamedTuple):
    """An adversarial loss; the discriminator's is the mean of `real` plus the mean of `fake`."""

    generator: Callable[[Array], Array]  # logits of generated images -> what the generator minimises
    real: Callable[[Array], Array]  # logits of real images -> the discriminator's part
    fake: Callable[[Array], Array]  # logits of generated images -> the discriminator's part
    bound: float | None = None  # the discriminator's weights stay within [-bound, bound]


def hinge() -> Adversary:
    """Generator -f;  discriminator relu(1 - r) + relu(1 + f)."""
    return Adversary(jnp.negative, lambda r: jax.nn.relu(1 - r), lambda f: jax.nn.relu(1 + f))


def lsgan(sigmoid: bool = True) -> Adversary:
    """Generator (s(f) - 1)^2;  discriminator (s(r) - 1)^2 / 2 + s(f)^2 / 2.

    Args:
      sigmoid: s is the sigmoid, as in Flash Diffusion's code; the published loss has none (arXiv:1611.04076).
    """
    squash = jax.nn.sigmoid if sigmoid else lambda logits: logits
    return Adversary(
        generator=lambda f: (squash(f) - 1) ** 2,
        real=lambda r: (squash(r) - 1) ** 2 / 2,
        fake=lambda f: squash(f) ** 2 / 2,
    )


def wgan(bound: float = 0.01) -> Adversary:
    """Generator -f;  discriminator -r + f, with its weights clipped, see `bounded` (arXiv:1701.07875)."""
    return Adversary(jnp.negative, jnp.negative, lambda f: f, bound)


def non_saturating() -> Adversary:
    """Generator -log(s(f) + eps);  discriminator -log(s(r) + eps) - log(1 - s(f) + eps), s the sigmoid."""
    return Adversary(
        generator=lambda f: -jnp.log(jax.nn.sigmoid(f) + EPS),
        real=lambda r: -jnp.log(jax.nn.sigmoid(r) + EPS),
        fake=lambda f: -jnp.log(1 - jax.nn.sigmoid(f) + EPS),
    )


def vanilla() -> Adversary:
    """Binary cross-entropy on logits: generator softplus(-f);  discriminator softplus(-r) + softplus(f)."""
    return Adversary(lambda f: jax.nn.softplus(-f), lambda r: jax.nn.softplus(-r), jax.nn.softplus)


ADVERSARIES = {
    "hinge": hinge,
    "lsgan": lsgan,
    "wgan": wgan,
    "non_saturating": non_saturating,
    "vanilla": vanilla,
}


def build(config: Mapping) -> Adversary:
    """The adversary that `config["name"]` asks for; its other entries are arguments.

    Raises: ValueError naming the known ones.
    """
    return registry.choose(ADVERSARIES, config, "adversarial loss")


def bounded(params: Params, adversary: Adversary) -> Params:
    """A discriminator's weights as its loss wants them: clipped elementwise where it has a bound.

    For after `init` and every update, so that no evaluation meets others.
    """
    if adversary.bound is None:
        return params
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -adversary.bound, adversary.bound), params)


NOISE = "noise"  # the tap that every denoiser has: the noise that it predicts


def taken(model: Model, params: Params, cond: Cond, tap: str) -> Callable[[Array, Array], Array]:
    """(x (B,...), sigma () or (B,)) -> features: a network's tap, or for NOISE (x - x0) / sigma.

    Raises: ValueError naming the network's taps, if it has not this one.
    """
    if tap == NOISE:
        denoise = denoiser(model, params, cond)
        return lambda x, sigma: (x - denoise(x, sigma)) / expand(sigma, x)
    bound = tapped(model, params, cond, (tap,))
    return lambda x, sigma: bound(x, sigma)[1][tap]


def features(
    model: Model, tap: str, shape: tuple[int, ...], labels=None, cond: Cond | None = None
) -> jax.ShapeDtypeStruct:
    """What `taken` gives for one image of `shape`: (1,...); nothing is computed.

    Args:
      cond: all conditions of one image; None: the label, if there are `labels`.
    Raises: ValueError naming the network's taps, if it has not this one.
    """

    def outline(key, x, cond):
        return taken(model, model.network.init(key, x, cond), cond, tap)(x, jnp.ones(()))

    cond = condition(labels, {"label": jnp.zeros(1, jnp.int32)}) if cond is None else cond
    return jax.eval_shape(outline, jax.random.key(0), jnp.zeros((1, *shape)), cond)


def average(values: Array, size: int, weights: Array | None = None, groups: int = 1) -> Array:
    """Sum over images of losses (B,...), each the mean over its logits, over the size of the whole batch.

    Args:
      weights: (B,); then each image's loss is its group's mean, see `shared`, times its weight. Source: SiDA's
        code (arXiv:2410.14919).
    """
    values = values.reshape(len(values), -1).mean(1)
    if weights is not None:
        values = weights * shared(values, groups)
    return values.sum() / size


def shared(values: Array, groups: int) -> Array:
    """(B,) values, each replaced by the mean of its group: b and b' are together if b = b' modulo `groups`.

    With one group the mean is global; the reference's SiDA has one a device and accumulation round. Groups do
    not depend on the devices here, so neither do results.
    Raises: ValueError if the batch does not divide into groups.
    """
    if groups < 1 or len(values) % groups:
        raise ValueError(f"a batch of {len(values)} does not divide into {groups} groups; use a divisor.")
    return jnp.tile(values.reshape(-1, groups).mean(0), len(values) // groups)
