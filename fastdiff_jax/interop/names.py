"""Weights by the names of the EDM code's state dicts, to and from our trees.

    enc.8x8_block0.conv0.weight (O,I,k,k)  <->  enc/8x8_block0/conv0/kernel (k,k,I,O)
    map_layer0.weight (O,I)                <->  map_layer0/kernel (I,O)
    map_step_layer0.weight (O,I)           <->  map_step0/kernel (I,O)
    enc.8x8_block0.norm0.weight (C)        <->  enc/8x8_block0/norm0/scale (C)

Biases and `map_noise.freqs` keep name and values. `resample_filter` buffers and the noise levels `u` of
improved DDPM follow from the config: they are compared and dropped, and made again on the way back.
SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM) have the same names, so one table serves both.
"""

from collections.abc import Mapping

import jax
import numpy as np

from fastdiff_jax import trees
from fastdiff_jax.types import Params, PyTree

FILTER, LEVELS = "resample_filter", "u"
STEP = {"map_step0": "map_step_layer0", "map_step1": "map_step_layer1"}  # SFD's names of these layers
BUFFERS = (FILTER, LEVELS, *trees.CONSTANTS)  # last parts of the names of what is saved, but not trained


def resample_filter(taps: tuple[float, ...]) -> np.ndarray:
    """(1,1,k,k) buffer of a resampling layer: the outer product of the taps, of unit sum."""
    kernel = np.outer(taps, taps)
    return (kernel / kernel.sum())[None, None].astype(np.float32)


def from_state(
    state: Mapping[str, np.ndarray],
    template: PyTree,
    *,
    taps: tuple[float, ...] = (1, 1),
    prefix: str = "",
    levels: np.ndarray | None = None,
) -> Params:
    """A tree like `template` with the arrays of a state dict, in their own dtypes.

    Args:
      template: arrays or shapes (`jax.eval_shape` of a network's init).
      taps: the config's resampling filter, which the buffers must equal.
      prefix: leads every name of the state but `u` ("model." in released checkpoints).
      levels: (M+1,) those of an improved-DDPM preconditioner (`precond.iddpm_table`), which has them as `u`.
    Raises: ValueError naming what is missing, left over, or of another shape, filter or table of levels.
    """
    state = dict(state)
    if levels is not None:
        _check_levels(state.pop(LEVELS, None), levels)
    foreign = [name for name in state if not name.startswith(prefix)]
    left = {name[len(prefix) :]: value for name, value in state.items() if name not in foreign}
    expected = resample_filter(taps)
    for name in [name for name in left if name.split(".")[-1] == FILTER]:
        found = left.pop(name)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-6, atol=0):
            raise ValueError(
                f"{prefix}{name} is not the filter of resample_filter={tuple(taps)}: "
                "take the resample_filter of the network that was saved."
            )
    leaves, missing = [], []
    for path, leaf in trees.named(template):
        name = _foreign_name(path)
        if name not in left:
            missing.append(prefix + name)
            continue
        value = _to_ours(left.pop(name), path)
        if value.shape != tuple(leaf.shape):
            raise ValueError(
                f"{prefix}{name} has shape {value.shape} in our layout, the network wants "
                f"{tuple(leaf.shape)}: the config is not that of the saved network."
            )
        leaves.append(value)
    surplus = foreign + [prefix + name for name in left]
    if missing or surplus:
        raise ValueError(
            f"the names do not fit the network: {_some('missing', missing)}, "
            f"{_some('left over', surplus)}; the config is not that of the saved network."
        )
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def to_state(
    params: Params,
    *,
    taps: tuple[float, ...] = (1, 1),
    prefix: str = "",
    levels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The state dict of a U-Net's tree, buffers included: `from_state` inverts it."""
    state = {_foreign_name(path): _to_theirs(np.asarray(leaf), path) for path, leaf in trees.named(params)}
    state |= {f"{layer}.{FILTER}": resample_filter(taps) for layer in _resampling(state)}
    table = {} if levels is None else {LEVELS: np.asarray(levels, np.float32)}
    return table | {prefix + name: value for name, value in state.items()}


def layout(template: PyTree, **options) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of a tree of shapes; options as of `to_state`."""
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template)
    return {name: value.shape for name, value in to_state(hollow, **options).items()}


def is_buffer(name: str) -> bool:
    """Whether a state dict's name is of a constant: what a count of parameters leaves out."""
    return name.rpartition(".")[2] in BUFFERS


def _check_levels(found, levels):
    # The EDM code makes its table in float32, where the recursion is off by 5e-4 at its end.
    same = found is not None and found.shape == levels.shape
    if not same or not np.allclose(found, levels, rtol=1e-3, atol=0):
        what = "no" if found is None else "another"
        raise ValueError(
            f"the state has {what} table {LEVELS} of {len(levels)} noise levels: it is not of a network with "
            "this iddpm preconditioner."
        )


def _foreign_name(path: str) -> str:
    *layer, leaf = path.split("/")
    layer = [STEP.get(part, part) for part in layer]
    return ".".join([*layer, "weight" if leaf in ("kernel", "scale") else leaf])


def _to_ours(value, path):
    if path.endswith("kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def _to_theirs(value, path):
    if path.endswith("kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value


def _resampling(names) -> set[str]:
    """Layers with a filter buffer; those that have no weights are inferred from their neighbours."""
    layers = {name.rpartition(".")[0] for name in names}
    found = {layer for layer in layers if layer.endswith("_aux_residual")}
    for layer in layers:
        block, _, part = layer.rpartition(".")
        if part == "conv0" and block.endswith(("_up", "_down")):
            found |= {f"{block}.conv0", f"{block}.skip"}
        elif part.endswith("_aux_skip"):
            found.add(layer.replace("_aux_skip", "_aux_down"))
    heads = [layer for layer in layers if layer.endswith("_aux_conv")]
    for layer in heads:
        if layer.replace("_aux_conv", "_in0.conv0") not in layers and len(heads) > 1:
            found.add(layer.replace("_aux_conv", "_aux_up"))
    return found


def _some(what: str, names: list[str], limit: int = 3) -> str:
    shown = ", ".join(sorted(names)[:limit])
    return f"{len(names)} {what}" + (f" ({shown}{', ...' * (len(names) > limit)})" if names else "")
