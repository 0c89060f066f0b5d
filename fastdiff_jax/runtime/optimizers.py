"""Optimizers from configs: optax transformations with learning rates in images seen."""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import trees
from fastdiff_jax.types import Array


def learning_rate(
    images: Array, *, base: float, ramp_images: float = 0.0, decay: str = "constant",
    total_images: float = 0.0, final: float = 0.0, start_images: float = 0.0, batch_size: float = 0.0,
) -> Array:  # fmt: skip
    """The rate of a step of `batch_size` images that starts at `images` images seen.

        base min(images / ramp_images, 1) q,    share = (images - start_images) / total_images
        constant: q = 1;    cosine: q = final + (1 - final) (1 + cos(pi share)) / 2, share within [0, 1]
        drop: q = final from the second step on that starts at share >= 1/2, else 1

    A run that starts at `start_images` has that part of the ramp behind it, but its decay is its own.
    The first step of a ramp has rate zero while the moments already move, as in EDM's loop. The drop is
    SFD's (arXiv:2409.19681), whose code looks at the images seen one batch late.
    Raises: ValueError for an unknown decay, or one without its length.
    """
    ramp = jnp.minimum(images / ramp_images, 1.0) if ramp_images else 1.0
    if decay == "constant":
        return base * ramp * jnp.ones_like(images)
    if decay not in ("cosine", "drop") or total_images <= 0:
        raise ValueError(
            f"decay is 'constant', or 'cosine' or 'drop' over a positive number of images; "
            f"got {decay!r} over {total_images}."
        )
    seen = images - start_images
    if decay == "drop":
        return base * ramp * jnp.where(seen - batch_size >= total_images / 2, final, 1.0)
    share = jnp.clip(seen / total_images, 0.0, 1.0)
    return base * ramp * (final + (1 - final) * (1 + jnp.cos(jnp.pi * share)) / 2)


def finite_gradients() -> optax.GradientTransformation:
    """NaN -> 0, +-inf -> +-1e5, elementwise: EDM's and SiD's last guard before Adam."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5), updates
        )
    )


def descent(rate: Callable[[Array], Array], images: Callable[[Array], Array]):
    """updates -> -rate(images seen) updates.

    Args:
      rate: images seen -> learning rate.
      images: updates made -> images seen. A method that makes several updates a step says itself how many,
        as `tx.update(grads, state, params, images_seen=...)`.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, images_seen=None, **others):
        del params, others
        size = -rate(images(state.count) if images_seen is None else images_seen)
        updates = jax.tree.map(lambda u: jnp.asarray(size, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def adam(
    rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam without weight decay."""
    return optax.chain(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), rate)


def adamw(rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-2):
    """Adam with decoupled weight decay, on matrices and kernels only: not on biases, scales or frequencies."""

    def matrices(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    decay = optax.add_decayed_weights(weight_decay, matrices)
    return optax.chain(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), decay, rate)


OPTIMIZERS = {"adam": adam, "adamw": adamw}
COMMON = (
    "learning_rate",
    "ramp_images",
    "decay",
    "final",
    "clip_value",
    "clip",
)  # options that every optimizer takes


def build(
    config, batch_size: int, total_images: float, start_images: float = 0.0
) -> optax.GradientTransformation:
    """The optimizer that `config.name` asks for.

    Args:
      config: name, learning_rate, and optionally ramp_images, decay, final (see `learning_rate`), clip (global
        norm), clip_value (of every element) and the optimizer's own arguments.
      batch_size: images a step, which turns the count of updates into images unless the caller gives those,
        see `descent`.
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
        wrong = (
            f"has no option {', '.join(map(repr, unknown))}" if unknown else "needs learning_rate"
        )
        raise ValueError(f"optimizer {name} {wrong}; known: {', '.join([*COMMON, *own])}.")
    base, clip = options.pop("learning_rate"), options.pop("clip", None)
    clip_value = options.pop("clip_value", None)
    schedule = {key: options.pop(key) for key in COMMON if key in options}

    def rate(images):
        return learning_rate(
            images, base=base, total_images=total_images, start_images=start_images,
            batch_size=batch_size, **schedule,
        )  # fmt: skip

    # A schedule that cannot be is refused here, not in the first step.
    jax.eval_shape(rate, jax.ShapeDtypeStruct((), jnp.float32))
    by_count = partial(trees.images_seen, batch=batch_size, start=start_images)
    steps = [finite_gradients(), OPTIMIZERS[name](descent(rate, by_count), **options)]
    if clip_value is not None:
        steps.insert(1, optax.clip(clip_value))
    if clip is not None:
        steps.insert(1, optax.clip_by_global_norm(clip))
    return optax.chain(*steps)
