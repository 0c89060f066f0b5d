"""From a Flax module to a `Network`, and the checks that every network shares."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from fastdiff_jax.types import Array, Network

# How a network starts that is told how many noise levels its sampler has, as the condition "stamps" (B,):
# "zero" ignores it at first, so that a student begins as its teacher; "random" is SFD's own
# (arXiv:2409.19681), which perturbs it. None: the network takes no such condition.
STAMPS = (None, "zero", "random")


def options(config: Mapping[str, Any], defaults: Mapping[str, Any], network: str) -> dict[str, Any]:
    """`defaults` overridden by `config`, lists as tuples (module attributes must be hashable).

    Raises: ValueError naming the known options, if `config` has another.
    """
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(config).items()}
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(
            f"network {network} has no option {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(sorted(defaults)) or 'none'}."
        )
    return {**defaults, **given}


def conditions(cond: Mapping[str, Any] | None, known: Iterable[str]) -> dict[str, Any]:
    """The entries of `cond` that are not None.

    Raises: ValueError naming the known keys, if `cond` has another.
    """
    known, cond = list(known), dict(cond or {})
    unknown = sorted(set(cond) - set(known))
    if unknown:
        raise ValueError(
            f"this network takes no condition {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(known) or 'none (it is unconditional)'}."
        )
    return {key: value for key, value in cond.items() if value is not None}


def widened(x: Array, cond: Mapping[str, Any], channels: int) -> Array:
    """x (B,H,W,C) with the condition "concat" (B,H,W,channels) behind its channels; x itself if there are none.

    It is no condition that can be hidden: zeros would be another image.

    Raises: ValueError if it is missing, or of another shape.
    """
    if not channels:
        return x
    if "concat" not in cond:
        raise ValueError(
            f"this network needs the condition 'concat', {channels} more channels of its input, and it is "
            "missing; name the task that makes it (config.task)."
        )
    return jnp.concatenate([x, beside(x, cond, "concat", channels)], axis=-1)


def beside(x: Array, cond: Mapping[str, Any], name: str, channels: int) -> Array:
    """The condition `name` (B,H,W,channels) of x (B,H,W,C). Raises: ValueError if its shape is another."""
    wanted = (*x.shape[:-1], channels)
    if cond[name].shape != wanted:
        raise ValueError(f"the condition {name!r} is {wanted} here; got {cond[name].shape}.")
    return cond[name].astype(x.dtype)


def reference(cond: Mapping[str, Any], size: int) -> Array:
    """The condition "reference" (B,size); zeros (1,size) if it is missing.

    Raises: ValueError for another size.
    """
    found = cond.get("reference", jnp.zeros((1, size)))
    if found.shape[1:] != (size,):
        raise ValueError(
            f"the condition 'reference' is (B, {size}) here; got {found.shape}: set the network's `reference` "
            "to the size of the features."
        )
    return found


def step_condition(choice: str | None, network: str) -> str | None:
    """An entry of STAMPS. Raises: ValueError naming them, if it is another."""
    if choice not in STAMPS:
        known = ", ".join(map(repr, STAMPS))
        raise ValueError(f"network {network}: stamps is {choice!r}; known: {known}.")
    return choice


def check_choices(settings: Mapping[str, Any], choices: Mapping[str, tuple], network: str) -> None:
    """Raises ValueError naming the choices, if a setting is none of its own."""
    for name, known in choices.items():
        if settings[name] not in known:
            raise ValueError(f"network {network}: {name} is {settings[name]!r}; known: {', '.join(known)}.")


def check_halves(shape: tuple[int, int, int], levels: int, network: str) -> None:
    """Raises ValueError if images of `shape` (H,W,C) are not square, or cannot be halved levels - 1 times."""
    height, width, _ = shape
    if height != width or height % 2 ** (levels - 1):
        raise ValueError(
            f"network {network} takes square images whose side divides by {2 ** (levels - 1)} for {levels} "
            f"levels; got {height}x{width}: pad the images or shorten channel_mult."
        )


def tapped(output: Array, features: Mapping[str, Array], taps: Iterable[str]):
    """`output`, or (output, the features that `taps` names) when it names any.

    Raises: ValueError naming the known taps, if one is unknown.
    """
    unknown = [tap for tap in taps if tap not in features]
    if unknown:
        raise ValueError(
            f"this network has no tap {', '.join(map(repr, unknown))}; known: {', '.join(features)}."
        )
    return (output, {tap: features[tap] for tap in taps}) if taps else output


def network(module: nn.Module, known: Iterable[str] = ()) -> Network:
    """Wraps a module `(x, c_noise, cond, train) -> (F, features by tap name)`.

    Args:
      known: the condition keys that the module reads; others are refused.
    """
    known = tuple(known)

    def init(key, x, cond=None):
        levels = jnp.zeros(x.shape[:1], x.dtype)
        return module.init(key, x, levels, conditions(cond, known), False)["params"]

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        rngs = {} if dropout is None else {"dropout": dropout}
        output, features = module.apply(
            {"params": params}, x, c_noise, conditions(cond, known), dropout is not None, rngs=rngs
        )
        return tapped(output, features, taps)

    return Network(init, apply)
