"""SiD: a data-free one-step generator from a diffusion teacher.

Source: Zhou et al., Score identity Distillation, ICML 2024 (arXiv:2404.04057).
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import registry, trees
from fastdiff_jax.losses import generation, identity, levels
from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import normal_per_image, stream
from fastdiff_jax.types import Array, Denoiser, Method, Params, Parts, Sampler, expand

AUGMENTED = "fake"  # the role that is told of augmentation


class Options(NamedTuple):
    """Settings of SiD; defaults are the reference's for CIFAR-10 (arXiv:2404.04057)."""

    alpha: float = 1.2
    sigma_init: float = 2.5  # input scale and noise level of the generator
    levels: Mapping = {"name": "karras"}  # the generator's noise law, out of losses.levels
    floor: float = 1e-5  # of the weight's denominator
    fake_scale: float = 1.0
    generator_scale: float = 100.0
    fake_steps: int = 1  # fake-score updates an iteration
    ema_half_life: float = 500e3  # images
    ema_ramp: float | None = 0.05  # share of the images seen that caps the half-life
    start_images: float = 0.0  # images that the initial weights have seen
    accumulation: int = 1  # rounds a batch is split into


class State(NamedTuple):
    """What SiD trains, and the average that it makes."""

    step: Array  # () int32, iterations done: each is a fake-score update and a generator update
    generator: Params
    ema: Params
    generator_opt: optax.OptState
    fake: Params
    fake_opt: optax.OptState


def generator_loss(x, noise, sigma, teacher: Denoiser, fake: Denoiser, alpha, floor) -> tuple[Array, Array]:
    """SiD's loss (B,...) of generated images x at x_t = x + sigma noise, and the squared gap (B,...) there."""
    x_t = x + expand(sigma, x) * noise
    real, critic = teacher(x_t, sigma), fake(x_t, sigma)
    return identity.elements(x, real, critic, alpha, floor), (real - critic) ** 2


def build(config, parts: Parts) -> Method:
    """SiD as a method: fake score first, on its own draws, then the generator against the updated fake score.

        G(z) = D_G(sigma_init z; sigma_init)

    The loss of G is `identity.elements`, that of the fake score `parts.objective` on generated images. If there
    is augmentation, these are changed, and the fake score alone is told how; everywhere else images are as they
    were made, and no network is told anything, which is "not changed".

    Args:
      config: see `Options`.
      parts: models and optimizers "generator" and "fake", models["teacher"], objective, shape, augment, labels
        (class shares that the labels of generated images are drawn from).
    Frozen: teacher; at `init` also "initial", weights to start from instead of the teacher's.
    Metrics: loss_fake and loss_generator, sums over pixels and means over samples; gap, the mean squared
      difference of teacher and fake score at x_t (the one of the three that falls with progress); ema_beta.
    Raises: ValueError for unknown or impossible settings, and in `init` for weights that do not fit.
    """
    config = registry.options(Options, config, "method sid")
    if config.fake_steps < 1:
        raise ValueError(f"method sid: fake_steps is 1 or more; got {config.fake_steps}.")
    models = parts.models
    tx = {role: optax.with_extra_args_support(one) for role, one in parts.optimizers.items()}
    law = registry.choose(levels.LEVELS, config.levels, "noise-level law")

    def generate(params, latents, cond, dropout=None):
        return generation.generated(models["generator"], params, latents, config.sigma_init, cond, dropout)

    condition = partial(generation.condition, parts.labels)

    def init(key, frozen):
        roles = dict.fromkeys(("generator", "fake"), "initial")
        params, psi = generation.start(models, frozen, parts.shape, parts.labels, key, roles).values()
        step = jnp.zeros((), jnp.int32)
        opt, fake_opt = tx["generator"].init(params), tx["fake"].init(psi)
        return State(step, params, trees.copy(params), opt, psi, fake_opt)

    def draw(key, batch, variant):
        shape = (len(jax.tree.leaves(batch)[0]), *parts.shape)

        def for_fake(key):
            pipe = parts.augment
            more = {} if pipe is None else {"augment": pipe.draw(stream(key, "augment"), shape[0])}
            return parts.objective.draw(key, shape) | more

        def for_generator(key):
            noise = jax.random.normal(stream(key, "noise"), shape)
            return {"level": law.draw(stream(key, "level"), shape[:1]), "noise": noise}

        rounds, own = range(config.fake_steps), generation.draws_of
        return {
            "fake": [own(stream(key, f"fake {i}"), shape, for_fake, parts.labels) for i in rounds],
            "generator": own(stream(key, "generator"), shape, for_generator, parts.labels),
        }

    def update(state, frozen, batch, draws, variant):
        size = len(draws["generator"]["latents"])

        def on_fake(psi, part, dropout):
            cond = condition(part)
            x = generate(state.generator, part["latents"], cond)
            if parts.augment is not None:
                x, told = parts.augment.apply(x, part["augment"])
                cond = cond | {"augment": told}
            elements = generation.fake_loss(
                denoiser(models["fake"], psi, cond, dropout), x, part, parts.objective
            )
            total = config.fake_scale * elements.sum() / size
            return total, {"loss_fake": total}

        images = trees.images_seen(state.step, size, config.start_images)
        psi, fake_opt = state.fake, state.fake_opt
        for part in draws["fake"]:
            psi, fake_opt, fake_metrics = generation.descend(
                tx["fake"], on_fake, psi, fake_opt, part, config.accumulation, images
            )

        def on_generator(params, part, dropout):
            cond = condition(part)
            x = generate(params, part["latents"], cond, dropout)
            teacher = denoiser(models["teacher"], frozen["teacher"], cond)
            critic, sigma = denoiser(models["fake"], psi, cond), law.sigma(part["level"])
            elements, gap = generator_loss(
                x, part["noise"], sigma, teacher, critic, config.alpha, config.floor
            )
            total = config.generator_scale * elements.sum() / size
            return total, {"loss_generator": total, "gap": gap.mean() * len(x) / size}

        params, opt, metrics = generation.descend(
            tx["generator"], on_generator, state.generator, state.generator_opt, draws["generator"],
            config.accumulation, images,
        )  # fmt: skip
        beta = trees.half_life_beta(images, size, config.ema_half_life, config.ema_ramp)
        state = State(
            state.step + 1, params, trees.ema(state.ema, params, beta), opt, psi, fake_opt
        )
        return state, fake_metrics | metrics | {"ema_beta": beta}

    def sample(params, frozen, keys, cond):
        return generate(params, normal_per_image(keys, parts.shape), cond)

    def cost(variant, recorded):
        # Fake score: a pass of G, a gradient. Generator: a gradient, and those of two inputs, which are 2 each.
        return 4 * config.fake_steps + 7

    few = {"student": Sampler(1, sample)}
    return Method(
        init, draw, update, lambda state: state.ema, few, cost=cost, raw=lambda state: state.generator
    )
