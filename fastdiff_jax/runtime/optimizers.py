"""Optimizers from configs: optax transformations with learning rates in images seen."""

import inspect

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import trees
from fastdiff_jax.types import Array


def learning_rate(
    images: Array, *, base: float, ramp_images: float = 0.0, decay: str = "constant",
    total_images: float = 0.0, final: float = 0.0, start_images: float = 0.0,
) -> Array:  # fmt: skip
    """The rate of a step that starts at `images` images seen.

        base min(images / ramp_images, 1) q,    q = 1, or final + (1 - final) (1 + cos(pi share)) / 2
        share = (images - start_images) / total_images, within [0, 1]

    A run that starts at `start_images` has that part of the ramp behind it, but its decay is its own.
    The first step of a ramp has rate zero while the moments already move, as in EDM's loop.
    Raises: ValueError for an unknown decay, or a cosine without its length.
    """
    ramp = jnp.minimum(images / ramp_images, 1.0) if ramp_images else 1.0
    if decay == "constant":
        return base * ramp * jnp.ones_like(images)
    if decay != "cosine" or total_images <= 0:
        raise ValueError(
            f"decay is 'constant', or 'cosine' over a positive number of images; "
            f"got {decay!r} over {total_images}."
        )
    share = jnp.clip((images - start_images) / total_images, 0.0, 1.0)
    return base * ramp * (final + (1 - final) * (1 + jnp.cos(jnp.pi * share)) / 2)


def finite_gradients() -> optax.GradientTransformation:
    """NaN -> 0, +-inf -> +-1e5, elementwise: EDM's and SiD's last guard before Adam."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5), updates
        )
    )


def adam(
    rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam without weight decay."""
    return optax.adam(rate, b1=b1, b2=b2, eps=eps)


def adamw(rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-2):
    """Adam with decoupled weight decay, on matrices and kernels only: not on biases, scales or frequencies."""

    def matrices(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=matrices)


OPTIMIZERS = {"adam": adam, "adamw": adamw}
COMMON = ("learning_rate", "ramp_images", "decay", "final", "clip")  # options that every optimizer takes


def build(
    config, batch_size: int, total_images: float, start_images: float = 0.0
) -> optax.GradientTransformation:
    """The optimizer that `config.name` asks for.

    Args:
      config: name, learning_rate, and optionally ramp_images, decay, final (see `learning_rate`), clip (global
        norm) and the optimizer's own arguments.
      batch_size: images a step, which turns optax's step count into images.
      total_images: that the run will see, which a decay spans.
      start_images: images that the initial weights have seen already.
    Raises: ValueError naming the known optimizers or options.
    """
    options = dict(config)
    name = options.pop("name", None)
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer {name!r}; known: {', '.join(OPTIMIZERS)}.")
    own = list(inspect.signature(OPTIMIZERS[name]).parameters)[1:]  # but for the rate
    unknown = sorted(set(options) - {*COMMON, *own})
    if unknown or "learning_rate" not in options:
        wrong = f"has no option {', '.join(map(repr, unknown))}" if unknown else "needs learning_rate"
        raise ValueError(f"optimizer {name} {wrong}; known: {', '.join([*COMMON, *own])}.")
    base, clip = options.pop("learning_rate"), options.pop("clip", None)
    schedule = {key: options.pop(key) for key in COMMON if key in options}

    def rate(count):
        images = trees.images_seen(count, batch_size, start_images)
        return learning_rate(
            images, base=base, total_images=total_images, start_images=start_images, **schedule
        )

    jax.eval_shape(rate, 0)  # a schedule that cannot be is refused here, not in the first step
    steps = [finite_gradients(), OPTIMIZERS[name](rate, **options)]
    if clip is not None:
        steps.insert(1, optax.clip_by_global_norm(clip))
    return optax.chain(*steps)
