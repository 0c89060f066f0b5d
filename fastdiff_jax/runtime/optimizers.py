"""Optimizers from configs: optax transformations with learning rates in images seen."""

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import trees
from fastdiff_jax.types import Array


def learning_rate(images: Array, *, base: float, ramp_images: float = 0.0, decay: str = "constant",
                  total_images: float = 0.0, final: float = 0.0) -> Array:  # fmt: skip
    """The rate of a step that starts at `images` images seen.

        base min(images / ramp_images, 1) q,    q = 1, or final + (1 - final) (1 + cos(pi images / total)) / 2

    The very first step of a ramp has rate zero while the moments already move, as in EDM's loop.
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
    share = jnp.clip(images / total_images, 0.0, 1.0)
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
    """Adam with decoupled weight decay, on kernels only: not on biases, scales or fixed frequencies."""

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=kernels)


OPTIMIZERS = {"adam": adam, "adamw": adamw}


def build(
    config, batch_size: int, total_images: float, start_images: float = 0.0
) -> optax.GradientTransformation:
    """The optimizer that `config.name` asks for.

    Args:
      config: name, learning_rate, and optionally ramp_images, decay, final (see `learning_rate`), clip (global
        norm) and the optimizer's own arguments.
      batch_size: images a step, which turns optax's step count into images.
      start_images: images that the initial weights have seen already.
    Raises: ValueError naming the known optimizers.
    """
    options = dict(config)
    name, base, clip = options.pop("name"), options.pop("learning_rate"), options.pop("clip", None)
    schedule = {k: options.pop(k) for k in ("ramp_images", "decay", "final") if k in options}
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer {name!r}; known: {', '.join(OPTIMIZERS)}.")

    def rate(count):
        images = trees.images_seen(count, batch_size, start_images)
        return learning_rate(images, base=base, total_images=total_images, **schedule)

    try:
        update = OPTIMIZERS[name](rate, **options)
    except TypeError as error:
        raise ValueError(f"optimizer {name!r} does not take these settings: {error}.") from None
    steps = [finite_gradients(), update]
    if clip is not None:
        steps.insert(1, optax.clip_by_global_norm(clip))
    return optax.chain(*steps)
