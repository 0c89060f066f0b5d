"""A small multilayer perceptron for points: the network of the labs and of the goldens' toys."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fastdiff_jax.networks.layers import draw
from fastdiff_jax.networks.module import conditions, options, step_condition, tapped
from fastdiff_jax.types import Network

DEFAULTS = dict(hidden=(64,), stamps=None)


def build(config: Mapping, shape: tuple[int, ...], classes: int = 0) -> Network:
    """F = h_n W_{n+1} + b_{n+1} over tanh layers; the first one also reads noise level, label and step count.

        h_1 = tanh(x W1 + b1 + c_noise u + label V + stamps v),    h_i = tanh(h_{i-1} Wi + bi)

    x (B,...) of the size d that `init` was given is flattened, F (B,*shape). The tree is flat: W1 (d,H1), b1,
    u (H1), V (classes,H1) if there are classes, v (H1) if `init` is given "stamps" (B,), W2 (H1,H2), b2, ... A
    missing condition counts as zeros.

    Args:
      config: `hidden`, the widths H1, H2, ...; `stamps`, see `module.STAMPS`.
    Returns: a network with taps "hidden1", "hidden2", ...: h_i (B,Hi).
    Raises: ValueError for unknown options.
    """
    settings = options(config, DEFAULTS, "mlp")
    hidden, stamps = settings["hidden"], step_condition(settings["stamps"], "mlp")
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    known = ["label"] * bool(classes) + ["stamps"] * bool(stamps)

    def init(key, x, cond=None):
        cond = conditions(cond, known)
        size = math.prod(x.shape[1:])
        widths, params = [size, *hidden, math.prod(shape)], {}
        for index, fans in enumerate(zip(widths[:-1], widths[1:]), 1):
            layer = jax.random.fold_in(key, index)
            params[f"W{index}"] = draw(layer, "kaiming_normal", fans, fans, 1.0)
            params[f"b{index}"] = jnp.zeros(fans[1])
        key_u, key_v = jax.random.split(jax.random.fold_in(key, 0))
        params["u"] = jax.random.normal(key_u, hidden[:1])
        if classes:
            params["V"] = jax.random.normal(key_v, (classes, hidden[0]))
        if "stamps" in cond:
            drawn = jax.random.normal(jax.random.fold_in(key_v, 1), hidden[:1])
            params["v"] = drawn if stamps == "random" else jnp.zeros(hidden[:1])
        return params

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        del dropout  # there is nothing to drop
        cond = conditions(cond, known)
        h = x.reshape(x.shape[0], -1) @ params["W1"] + params["b1"] + c_noise[:, None] * params["u"]
        if "label" in cond:
            h = h + cond["label"] @ params["V"]
        if "stamps" in cond:
            h = h + cond["stamps"].astype(h.dtype)[:, None] * params["v"]
        features = {}
        for index in range(1, len(hidden) + 1):
            features[f"hidden{index}"] = h = jnp.tanh(h)
            h = h @ params[f"W{index + 1}"] + params[f"b{index + 1}"]
        return tapped(h.reshape(x.shape[:1] + tuple(shape)), features, taps)

    return Network(init, apply)
