"""LPIPS: a distance of images in the activations of a network that was trained to recognise things.

Source: Zhang et al. 2018 (arXiv:1801.03924), version 0.1 of its weights.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.types import Array, Model, Params

# Images (B,H,W,3), normalised -> activations (B,h,w,C) by tap; weights are bound.
Features = Callable[[Array], Mapping[str, Array]]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours in [0, 1]
SIDE = 224  # of the images that the trunks were trained on
EPS = 1e-10  # beside the norm, not under the root


class Variant(NamedTuple):
    """How images in [-1, 1] come to the network."""

    below: float = 0  # images narrower than this are resized to 224x224
    remap: bool = True  # to [0, 1], where ImageNet's normalisation belongs
    pooling: str = "max"  # of the trunk, between its blocks


VARIANTS = {
    "standard": Variant(),
    # SFD (arXiv:2409.19681) feeds [-1, 1] where [0, 1] belongs, and resizes whatever comes.
    "sfd": Variant(below=np.inf, remap=False, pooling="average"),
    "cm": Variant(below=256, pooling="average"),  # consistency models (arXiv:2303.01469)
}


def variant_of(name: str) -> Variant:
    """Raises: ValueError naming the known variants, if `name` is none."""
    if name not in VARIANTS:
        raise ValueError(f"no LPIPS variant {name!r}; known: {', '.join(VARIANTS)}.")
    return VARIANTS[name]


class Request(NamedTuple):
    """A method's setting `lpips`: the file that launch/convert.py wrote, and how images come to it."""

    weights: str = ""
    sha256: str = ""
    variant: str = "sfd"  # or another of VARIANTS


def bound(
    request: Mapping | None, models: Mapping[str, Model], shape: tuple[int, ...], owner: str
) -> Callable[[Params, Array, Array], Array] | None:
    """(weights {"trunk", "heads"}, images (B,H,W,3), images) -> (B,) LPIPS; None if none is asked for.

    Args:
      request: settings of a `Request`; models["lpips"] then is its network.
      shape: of an image.
      owner: the method that asks, for errors.
    Raises: ValueError if it is asked for without weights, in an unknown variant, or of images it cannot take.
    """
    if request is None:
        return None
    settings = registry.options(Request, request, f"{owner}: lpips")
    variant = variant_of(settings.variant)
    if not settings.weights or "lpips" not in models:
        raise ValueError(
            f"{owner}: lpips is asked for without weights; convert them by launch/convert.py --kind lpips, "
            "and name the file and its sha256, or set lpips=None."
        )
    network = models["lpips"].network
    check_shape((1, *shape))
    fed = jax.eval_shape(lambda: prepared(jnp.zeros((1, *shape)), variant))
    jax.eval_shape(network.init, jax.random.key(0), fed)  # refuses images that it cannot take

    def perceived(weights, x, y):
        def features(images):
            levels = jnp.zeros(len(images), images.dtype)
            return network.apply(weights["trunk"], images, levels, {}, taps=tuple(weights["heads"]))[1]

        return distance(features, weights["heads"], x, y, settings.variant)

    return perceived


def distance(
    features: Features, heads: Mapping[str, Array], x: Array, y: Array, variant: str = "standard"
) -> Array:
    """(B,) LPIPS between images x and y (B,H,W,3) in [-1, 1], differentiable in both.

        sum over taps l of mean_hw sum_c w_lc (a_l(x) - a_l(y))^2,    a = h / (|h|_2 + 1e-10) over channels

    h are the activations of the normalised images. Zero for equal images; not bounded.

    Args:
      features: with the pooling of the variant, which is the network's own.
      heads: tap -> w (C,), not negative.
      variant: key of VARIANTS.
    Raises: ValueError for an unknown variant, images of different shapes, not of three channels or, unless
      traced, not finite, and for activations that do not fit the heads.
    """
    return sum(by_tap(features, heads, x, y, variant).values())


def by_tap(
    features: Features, heads: Mapping[str, Array], x: Array, y: Array, variant: str = "standard"
) -> dict[str, Array]:
    """The terms of `distance`, tap -> (B,)."""
    chosen = variant_of(variant)
    check_shape(x.shape)
    if x.shape != y.shape:
        raise ValueError(f"LPIPS is between images of one shape; got {x.shape} and {y.shape}.")
    for name, images in (("first", x), ("second", y)):
        _check_finite(name, images)
    first, second = features(prepared(x, chosen)), features(prepared(y, chosen))
    found = {}
    for tap, head in heads.items():
        if tap not in first or first[tap].shape[-1:] != head.shape:
            known = ", ".join(f"{name} ({h.shape[-1]},)" for name, h in first.items())
            raise ValueError(f"LPIPS head {tap} {head.shape} fits no activations; the network has {known}.")
        gap = jnp.square(unit(first[tap]) - unit(second[tap]))
        found[tap] = jnp.einsum("bhwc,c->b", gap, head.astype(gap.dtype)) / (gap.shape[1] * gap.shape[2])
    return found


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises ValueError if (B,...) is not of colour images."""
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"LPIPS is between colour images (B,H,W,3); got {shape}.")


def prepared(images: Array, variant: Variant) -> Array:
    """Images (B,H,W,3) in [-1, 1] as the network takes them: resized, then normalised."""
    if images.shape[2] < variant.below:
        size = (len(images), SIDE, SIDE, 3)
        images = jax.image.resize(images, size, "bilinear", antialias=False)
    images = (images + 1) / 2 if variant.remap else images
    mean, deviation = (np.asarray(values, images.dtype) for values in (MEAN, DEVIATION))
    return (images - mean) / deviation


def unit(h: Array) -> Array:
    """h (B,h,w,C) over its length along the channels; where that is zero, so are value and gradient."""
    square = jnp.square(h).sum(-1, keepdims=True)
    zero = square == 0  # there the root has no finite slope, and 0 times it is NaN
    length = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
    return jnp.where(zero, 0.0, h / jnp.where(zero, 1.0, length + EPS))


def _check_finite(name, images):
    try:
        known = np.asarray(images)
    except jax.errors.TracerArrayConversionError:
        return  # in a compiled step the training loop watches the loss
    if not np.isfinite(known).all():
        count = int((~np.isfinite(known)).any((1, 2, 3)).sum())
        raise ValueError(f"LPIPS needs finite images; {count} of the {name} are not.")
