"""LPIPS by the names of torchvision's trunks and of the `lpips` package's heads.

    features.5.weight (O,I,3,3), the third convolution of VGG16  <->  trunk/conv2_1/kernel (3,3,I,O)
    lin1.model.1.weight (1,C,1,1)                                <->  heads/relu2_2 (C,)
"""

from collections.abc import Mapping

import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.types import Params

# Sums of the published heads (version 0.1).
PUBLISHED = {
    "vgg": (6.92599, 8.85833, 17.51501, 51.52132, 47.03486),
    "alexnet": (2.34953, 16.14303, 39.26844, 27.19718, 20.31718),
}


def head_name(index: int) -> str:
    """The foreign name of the head of one tap."""
    return f"lin{index}.model.1.weight"


def from_states(
    trunk: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray], network: str = "vgg"
) -> Params:
    """{"trunk": weights of `networks/<network>.py`, "heads": {tap: (C,)}}, in their own dtypes.

    Args:
      trunk: torchvision's state; its `classifier.*` is left out.
      network: "vgg" or "alexnet".
    Raises: ValueError naming what is missing, left over, of another shape, negative in a head, or not finite.
    """
    convolutions = list(registry.load("networks", network, "convolutions")())
    taps = registry.load("networks", network, "TAPS")
    wanted = {f"features.{index}.{leaf}" for _, index in convolutions for leaf in ("weight", "bias")}
    _check_names(f"{network} file", {n for n in trunk if not n.startswith("classifier.")}, wanted)
    _check_names("heads file", set(heads), {head_name(i) for i in range(len(taps))})
    made, widths, inner = {}, [], 3
    for layer, index in convolutions:
        name = f"features.{index}"
        kernel, bias = (_finite(f"{name}.{leaf}", trunk) for leaf in ("weight", "bias"))
        if kernel.ndim != 4 or kernel.shape[1] != inner or bias.shape != kernel.shape[:1]:
            raise ValueError(
                f"{name} of the {network} file has weight {kernel.shape} and bias {bias.shape}, not "
                f"(O,{inner},k,k) and (O,); use torchvision's own file."
            )
        inner = kernel.shape[0]
        made[layer] = {"kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), "bias": bias}
        widths.append(inner)
    ends = [layer.replace("conv", "relu") for layer, _ in convolutions]
    found = {}
    for index, tap in enumerate(taps):
        head, width = _finite(head_name(index), heads), widths[ends.index(tap)]
        if head.shape != (1, width, 1, 1):
            raise ValueError(
                f"{head_name(index)} has shape {head.shape}, its activations {tap} have {width} channels: the "
                f"heads are not those of {network}."
            )
        if head.min() < 0:
            raise ValueError(
                f"{head_name(index)} has negative weights, which no LPIPS head has; use the published file."
            )
        found[tap] = head.reshape(-1)
    return {"trunk": made, "heads": found}


def published(heads: Mapping[str, np.ndarray], network: str = "vgg") -> bool:
    """Whether heads have the sums of the published ones, to their five decimals."""
    sums = [np.sum(head, dtype=np.float64) for head in heads.values()]
    return np.allclose(sums, PUBLISHED[network], rtol=0, atol=2e-5)


def _check_names(file, given, wanted):
    for what, names in (("lacks", wanted - given), ("has beyond LPIPS", given - wanted)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + ", ..." * (len(names) > 3)
            raise ValueError(f"the {file} {what} {len(names)} names ({shown}); use the one that was published.")


def _finite(name, state):
    if not np.isfinite(state[name]).all():
        raise ValueError(f"{name} is not finite; the file is damaged.")
    return state[name]
