"""AMED's predictor: where a solver's second call lies, from what the first one saw (arXiv:2312.00094)."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdiff_jax.networks.embeddings import positional, swap_halves
from fastdiff_jax.networks.layers import Dense, Init
from fastdiff_jax.networks.module import network, options
from fastdiff_jax.types import Array, Network

DEFAULTS = dict(hidden=128, code=4, embedding=8, scale_dir=0.01, scale_time=0.0)
PLAIN = Init("kaiming_normal")


class Predictor(nn.Module):
    """Features u (B,F), levels t = c_noise and t' = cond["next"] (B,) -> (r, c, a) (B,3)."""

    hidden: int
    code: int
    embedding: int
    scale_dir: float
    scale_time: float

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Mapping[str, Array], train: bool):
        if "next" not in cond:
            raise ValueError("network nodes places a node between two levels; give the lower one as 'next'.")
        layer = Dense(self.embedding, name="map_layer0")
        e, e_next = (
            jax.nn.silu(layer(swap_halves(positional(t, self.embedding, endpoint=True))))
            for t in (c_noise, cond["next"])
        )
        z = jax.nn.silu(Dense(self.hidden, initial=PLAIN, name="enc_layer0")(x))
        z = Dense(self.code, initial=PLAIN, name="enc_layer1")(z)
        o = jnp.concatenate([z, e, e_next], axis=-1)

        def head(name):
            return jax.nn.sigmoid(Dense(1, initial=PLAIN, name=name)(o)[:, 0])

        def scale(name, width):
            return 1 + width * (2 * head(name) - 1) if width else jnp.ones(len(o), o.dtype)

        chosen = (head("fc_r"), scale("fc_scale_dir", self.scale_dir), scale("fc_scale_time", self.scale_time))
        return jnp.stack(chosen, axis=-1), {"code": z}


def build(config: Mapping, shape: tuple[int, ...], classes: int = 0) -> Network:
    """A perceptron with three outputs: some 9,000 parameters for 64 features.

        e(t) = silu(W [sin(t w), cos(t w)] + b),   z = W1 silu(W0 u + b0) + b1,   o = [z, e(t), e(t')]
        r = s(f_r(o)),   c = 1 + scale_dir (2 s(f_c(o)) - 1),   a = 1 + scale_time (2 s(f_a(o)) - 1)

    with linear f and the logistic s. F is read off the features that `init` is given; c_noise is the level t
    itself. A scale of 0 leaves out the head: its output is 1.

    Args:
      config: `hidden` and `code`, the widths of W0 and W1; `embedding`, that of e(t), even and at least 4;
        `scale_dir`, `scale_time`, how far c and a may be from 1.
      shape, classes: of the data, which the predictor does not see.
    Returns: a network of condition "next" (B,), with tap "code": z (B,code).
    Raises: ValueError for unknown options, scales outside [0, 1), and a missing "next".
    """
    settings = options(config, DEFAULTS, "nodes")
    for name in ("scale_dir", "scale_time"):
        if not 0 <= settings[name] < 1:
            raise ValueError(f"network nodes: {name} is in [0, 1); got {settings[name]}.")
    if settings["embedding"] % 2 or settings["embedding"] < 4:
        raise ValueError(f"network nodes: embedding is even, at least 4; got {settings['embedding']}.")
    return network(Predictor(**settings), ("next",))
