"""LoRA: low-rank changes of a network's kernels, as a tree beside its weights.

    W' = W + (alpha / rank) down up

The network runs on W', so it needs no layers of its own and costs what it costs without. There is no unmerging:
who wants W back keeps the base tree, as W + change - change is not W in floating point.

Source: Hu et al. 2021 (arXiv:2106.09685); initial values, targets and scales are those of Flash Diffusion
(arXiv:2406.02347).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdiff_jax import registry, trees
from fastdiff_jax.networks.layers import draw
from fastdiff_jax.rng import stream
from fastdiff_jax.types import Adapter, Array, Key, Params, PyTree

INITS = ("gaussian", "kaiming")
SHOWN = 12  # names in a message

# Kernels by the name of their rule: of DDPM++, NCSN++ and ADM, and by diffusers' names of Stable Diffusion.
TARGETS = {
    "attention": r"(^|/)(qkv|proj|to_q|to_k|to_v|to_out/0)/kernel$",
    "convolutions": r"(^|/)(conv0|conv1|skip)/kernel$",
    "embeddings": r"(^|/)(affine|map_layer0|map_layer1)/kernel$",
    # PixArt's and SD3's, besides attention: names that end alike belong to patches, time and captions as well.
    "transformer": r"(^|/)(proj_in|proj_out|ff/net/0/proj|ff/net/2|linear|linear_1|linear_2)/kernel$",
}


class Settings(NamedTuple):
    """The section of a config."""

    rules: Mapping[str, Mapping]  # name -> settings of a `Rule`


class Rule(NamedTuple):
    """Which kernels are changed, and by how much.

    Flash Diffusion's for Stable Diffusion have rank 64 or 128, alpha = rank and gaussian values; those for
    PixArt and SD3 rank 64, alpha 8 and kaiming.
    """

    rank: int
    alpha: float | None = None  # the change is scaled by alpha / rank; None: as the rank
    init: str = "gaussian"  # of down: N(0, 1 / rank^2), or "kaiming": U(-1, 1) / sqrt(fan_in); up is zero
    where: str = ""  # regular expression, searched in the paths of kernels; "": TARGETS of the rule's name

    @property
    def scale(self) -> float:
        """Factor on the product."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def build(config: Mapping) -> Adapter:
    """The adapter whose trainable tree is the delta: {path of a kernel: {"down", "up"}}, as nested dicts.

    `init` draws a delta that changes nothing yet; `merge` adds it to the base, whose other leaves it passes on.
    Both raise ValueError for a rule that no kernel of the base meets, or a kernel that two rules meet; `merge`
    for a delta of other kernels or shapes. The base may be shapes (`jax.eval_shape`).

    Args:
      config: see `Settings`.
    Raises: ValueError for unknown settings, no rules, and rules that can be none.
    """
    settings = registry.options(Settings, config, "lora")
    rules = {name: _rule(name, given) for name, given in dict(settings.rules).items()}
    if not rules:
        raise ValueError(f"lora needs a rule, such as {next(iter(TARGETS))}=dict(rank=8); got none.")
    return Adapter(partial(init, rules), partial(merge, rules))


def init(rules: Mapping[str, Rule], key: Key, base: Params) -> PyTree:
    """A fresh delta: up is zero, so that it changes nothing."""
    kernels, delta = dict(trees.named(base)), {}
    for path, rule in targets(rules, base).items():
        down, up = factors(kernels[path].shape, rule.rank)
        *parents, name = path.split("/")
        place = delta
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = {"down": _down(stream(key, path), down, rule), "up": jnp.zeros(up, jnp.float32)}
    return delta


def merge(rules: Mapping[str, Rule], base: Params, delta: PyTree) -> Params:
    """W + (alpha / rank) down up of every kernel that a rule meets, in the base's dtypes."""
    chosen, given = targets(rules, base), dict(trees.named(delta))
    check(chosen, base, given)

    def merged(path, kernel):
        path = trees.name(path)
        if path not in chosen:
            return kernel
        change = jnp.matmul(given[f"{path}/down"], given[f"{path}/up"], precision="highest")
        return (kernel + chosen[path].scale * change).astype(kernel.dtype)

    return jax.tree.map_with_path(merged, base)


def factors(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of down and up: (n,r) and (r,m) of a dense (n,m); (h,w,n,r) and (1,1,r,m) of a conv (h,w,n,m).

    So a convolution is one to r channels, and then one of 1x1; their product is the kernel of both.
    """
    *window, inputs, outputs = kernel
    return (*window, inputs, rank), (*(1 for _ in window), rank, outputs)


def targets(rules: Mapping[str, Rule], base: Params) -> dict[str, Rule]:
    """The rule of each kernel that one meets, by its path in the base's order.

    Kernels are the leaves of two axes (dense) and of four (convolutions), but for constants.
    Raises: ValueError for a rule that meets none, and for a kernel that two meet.
    """
    kernels = [
        path
        for path, leaf in trees.named(base)
        if len(leaf.shape) in (2, 4) and path.rpartition("/")[2] not in trees.CONSTANTS
    ]
    chosen = {}
    for name, rule in rules.items():
        found = [path for path in kernels if re.search(rule.where, path)]
        if not found:
            raise ValueError(
                f"lora rule {name} is for kernels like {rule.where!r}, and the network has none; its kernels "
                f"are {_shortened(kernels)}."
            )
        for path in found:
            if path in chosen:
                other = next(n for n, r in rules.items() if r is chosen[path])
                raise ValueError(f"lora rules {other} and {name} both change {path}; narrow one of them.")
            chosen[path] = rule
    return {path: chosen[path] for path in kernels if path in chosen}


def check(chosen: Mapping[str, Rule], base: Params, given: Mapping[str, Array]) -> None:
    """Raises ValueError naming the first leaf of a delta that is missing, too many, or of another shape."""
    kernels, wanted = dict(trees.named(base)), {}
    for path, rule in chosen.items():
        down, up = factors(kernels[path].shape, rule.rank)
        wanted |= {f"{path}/down": down, f"{path}/up": up}
    for path in [*wanted, *given]:
        asked = wanted.get(path, "absent")
        found = tuple(given[path].shape) if path in given else "absent"
        if asked != found:
            raise ValueError(
                f"the delta does not fit: {path} is {found} there, and these rules and this network make it "
                f"{asked}; take the rules and the network that it was trained with."
            )


def _rule(name: str, given: Mapping) -> Rule:
    rule = registry.options(Rule, given, f"lora rule {name}")
    if isinstance(rule.rank, bool) or not isinstance(rule.rank, int) or rule.rank < 1:
        raise ValueError(f"lora rule {name}: rank is a positive whole number; got {rule.rank!r}.")
    if rule.alpha is not None and not 0 < rule.alpha < float("inf"):
        raise ValueError(f"lora rule {name}: alpha is positive, or None for the rank; got {rule.alpha!r}.")
    if rule.init not in INITS:
        raise ValueError(f"lora rule {name}: init is {rule.init!r}; known: {', '.join(INITS)}.")
    where = rule.where or TARGETS.get(name)
    if where is None:
        raise ValueError(
            f"lora rule {name} does not say where; give a regular expression of paths, or take one of the "
            f"names that have one: {', '.join(TARGETS)}."
        )
    try:
        re.compile(where)
    except re.error as error:
        raise ValueError(f"lora rule {name}: {where!r} is no regular expression ({error}).") from None
    return rule._replace(where=where)


def _down(key, shape, rule):
    if rule.init == "gaussian":
        return jax.random.normal(key, shape, jnp.float32) / rule.rank
    fan_in = math.prod(shape[:-1])
    return draw(key, "kaiming_uniform", shape, (fan_in, rule.rank), 3**-0.5)


def _shortened(paths):
    """ "conv0 (9), conv1 (9), qkv (2)": the layers' own names with their numbers."""
    layers = Counter(path.removesuffix("/kernel").rpartition("/")[2] for path in paths)
    shown = [f"{name} ({number})" for name, number in layers.most_common(SHOWN)]
    more = [f"{len(layers) - SHOWN} more names"] if len(layers) > SHOWN else []
    return ", ".join(shown + more) or "absent altogether"
