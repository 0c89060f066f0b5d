"""SiD: a data-free one-step generator from a diffusion teacher.

Source: Zhou et al., Score identity Distillation, ICML 2024 (arXiv:2404.04057).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdiff_jax import registry, trees
from fastdiff_jax.losses import accumulation, identity, levels
from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import normal_per_image, stream
from fastdiff_jax.types import Array, Denoiser, Method, Params, Parts, Sampler, expand


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


def draws_of(key, shape, noise_draws, labels) -> dict:
    """Latents, label, dropout key and what `noise_draws(key)` adds, for one update of a batch (B,...)."""
    draws = {
        "latents": jax.random.normal(stream(key, "latents"), shape),
        "dropout": stream(key, "dropout"),
    }
    if labels is not None:
        shares = jnp.log(labels)
        draws["label"] = jax.random.categorical(stream(key, "label"), shares, shape=shape[:1])
    return draws | noise_draws(key)


def fake_loss(denoise: Denoiser, x: Array, draws, objective) -> Array:
    """(B,...) denoising loss on generated images x, which stay fixed; NaN samples count zero."""
    return objective.loss(denoise, jax.lax.stop_gradient(x), draws, guard=True)


def generator_loss(x, noise, sigma, teacher: Denoiser, fake: Denoiser, alpha, floor) -> tuple[Array, Array]:
    """SiD's loss (B,...) of generated images x at x_t = x + sigma noise, and the squared gap (B,...) there."""
    x_t = x + expand(sigma, x) * noise
    real, critic = teacher(x_t, sigma), fake(x_t, sigma)
    return identity.elements(x, real, critic, alpha, floor), (real - critic) ** 2


def build(config, parts: Parts) -> Method:
    """SiD as a method: fake score first, on its own draws, then the generator against the updated fake score.

        G(z) = D_G(sigma_init z; sigma_init)

    The loss of G is `identity.elements`, that of the fake score `parts.objective` on generated images.

    Args:
      config: see `Options`.
      parts: models and optimizers "generator" and "fake", models["teacher"], objective, shape, labels (class
        shares that the labels of generated images are drawn from).
    Frozen: teacher; at `init` also "initial", weights to start from instead of the teacher's.
    Metrics: loss_fake and loss_generator, sums over pixels and means over samples; gap, the mean squared
      difference of teacher and fake score at x_t (the one of the three that falls with progress); ema_beta.
    Raises: ValueError for unknown or impossible settings, and in `init` for weights that do not fit.
    """
    config = registry.options(Options, config, "method sid")
    if config.fake_steps < 1:
        raise ValueError(f"method sid: fake_steps is 1 or more; got {config.fake_steps}.")
    models, tx = parts.models, parts.optimizers
    law = registry.choose(levels.LEVELS, config.levels, "noise-level law")

    def generate(params, latents, cond, dropout=None):
        x = config.sigma_init * latents
        return denoiser(models["generator"], params, cond, dropout)(x, config.sigma_init)

    def condition(part):
        labels = parts.labels
        return {} if labels is None else {"label": jax.nn.one_hot(part["label"], len(labels))}

    def init(key, frozen):
        start = frozen.get("initial", frozen["teacher"])  # what generator and fake score start as
        for role in ("generator", "fake"):
            inputs = jnp.zeros((1, *parts.shape)), condition({"label": jnp.zeros(1, jnp.int32)})
            trees.check_fits(start, jax.eval_shape(models[role].network.init, key, *inputs), role)
        params, ema, psi = trees.copy(start), trees.copy(start), trees.copy(start)
        step = jnp.zeros((), jnp.int32)
        return State(step, params, ema, tx["generator"].init(params), psi, tx["fake"].init(psi))

    def draw(key, batch, variant):
        shape = (len(jax.tree.leaves(batch)[0]), *parts.shape)

        def for_fake(key):
            return parts.objective.draw(key, shape)

        def for_generator(key):
            noise = jax.random.normal(stream(key, "noise"), shape)
            return {"level": law.draw(stream(key, "level"), shape[:1]), "noise": noise}

        rounds = range(config.fake_steps)
        return {
            "fake": [draws_of(stream(key, f"fake {i}"), shape, for_fake, parts.labels) for i in rounds],
            "generator": draws_of(stream(key, "generator"), shape, for_generator, parts.labels),
        }

    def descend(role, loss, params, opt, draws):
        # The dropout key has no batch axis to slice.
        samples = {name: value for name, value in draws.items() if name != "dropout"}
        metrics, grads = accumulation.value_and_grad(
            loss, params, samples, draws["dropout"], config.accumulation
        )
        updates, opt = tx[role].update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, metrics

    def update(state, frozen, batch, draws, variant):
        size = len(draws["generator"]["latents"])

        def on_fake(psi, part, dropout):
            cond = condition(part)
            x = generate(state.generator, part["latents"], cond)
            elements = fake_loss(denoiser(models["fake"], psi, cond, dropout), x, part, parts.objective)
            total = config.fake_scale * elements.sum() / size
            return total, {"loss_fake": total}

        psi, fake_opt = state.fake, state.fake_opt
        for part in draws["fake"]:
            psi, fake_opt, fake_metrics = descend("fake", on_fake, psi, fake_opt, part)

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

        params, opt, metrics = descend(
            "generator", on_generator, state.generator, state.generator_opt, draws["generator"]
        )
        images = trees.images_seen(state.step, size, config.start_images)
        beta = trees.half_life_beta(images, size, config.ema_half_life, config.ema_ramp)
        state = State(
            state.step + 1, params, trees.ema(state.ema, params, beta), opt, psi, fake_opt
        )
        return state, fake_metrics | metrics | {"ema_beta": beta}

    def sample(params, frozen, keys, cond):
        return generate(params, normal_per_image(keys, parts.shape), cond)

    return Method(init, draw, update, lambda state: state.ema, {"student": Sampler(1, sample)})
