"""FID's Inception-v3 by the names of pytorch-fid's file, which torch-fidelity's shares.

    Mixed_5b.branch5x5_2.conv.weight (O,I,5,5)   <->  Mixed_5b/branch5x5_2/kernel (5,5,I,O)
    Mixed_5b.branch5x5_2.bn.running_mean (O,)    <->  Mixed_5b/branch5x5_2/mean
    fc.weight (1008,2048)                        <->  kernel (2048,1008)
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry, trees
from fastdiff_jax.types import Params

PUBLISHED = "6726825d"  # what the sha256 of the published file begins with
LEAVES = {"kernel": "conv.weight", "scale": "bn.weight", "bias": "bn.bias", "mean": "bn.running_mean",
          "var": "bn.running_var"}  # fmt: skip
COUNTER = "bn.num_batches_tracked"  # read by nothing, and missing in some files


def shapes() -> dict[str, tuple[int, ...]]:
    """Torch shapes of the weights by the file's names, without the counters."""
    return {foreign: _torch_shape(leaf.shape) for foreign, (_, leaf) in _table().items()}


def from_state(state: Mapping[str, np.ndarray]) -> Params:
    """Weights of `networks/inception.py`, in their own dtypes.

    Raises: ValueError naming what is missing, left over, of another shape or not finite.
    """
    table = _table()
    units = [name.removesuffix(LEAVES["kernel"]) for name in table if name.endswith(LEAVES["kernel"])]
    counters = {f"{unit}{COUNTER}" for unit in units}
    given = set(state) - counters
    for what, names in (("lacks", set(table) - given), ("has beyond it", given - set(table))):
        if names:
            shown = ", ".join(sorted(names)[:3]) + ", ..." * (len(names) > 3)
            raise ValueError(
                f"the file is not FID's Inception: it {what} {len(names)} names ({shown}); use pytorch-fid's "
                f"pt_inception-2015-12-05-{PUBLISHED}.pth."
            )
    params: dict = {}
    for name, (path, leaf) in table.items():
        value, wanted = np.asarray(state[name]), _torch_shape(leaf.shape)
        if value.shape != wanted:
            raise ValueError(f"{name} has the shape {value.shape}, FID's Inception has {wanted}; use its file.")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite; the file is damaged.")
        *parents, last = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.ascontiguousarray(value.transpose(_ORDERS[value.ndim]))
    return params


_ORDERS = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # torch's axes in ours


def _torch_shape(shape):
    return {1: shape, 2: shape[::-1], 4: (*shape[:1:-1], *shape[:2])}[len(shape)]


def _table():
    """The file's name -> (our path, shape and dtype)."""
    net = registry.load("networks", "inception")({}, (299, 299, 3), 0)
    example = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    leaves = trees.named(jax.eval_shape(net.init, jax.random.key(0), example))
    return {_foreign(path): (path, leaf) for path, leaf in leaves}


def _foreign(path):
    unit, _, leaf = path.rpartition("/")
    if not unit:
        return {"kernel": "fc.weight", "bias": "fc.bias"}[leaf]
    return f"{unit.replace('/', '.')}.{LEAVES[leaf]}"
