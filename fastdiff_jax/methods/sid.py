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
from fastdiff_jax.types import Array, Method, Params, Parts, Sampler, expand


class Options(NamedTuple):
    """Settings of SiD; defaults are the reference's for CIFAR-10 (arXiv:2404.04057)."""

    alpha: float = 1.2
    sigma_init: float = 2.5  # input scale and noise level of the generator
    levels: Mapping = {}  # the generator's noise law: losses.levels.karras(**levels)
    floor: float = 1e-5  # of the weight's denominator
    fake_scale: float = 1.0
    generator_scale: float = 100.0
    fake_steps: int = 1  # fake-score updates an iteration
    ema_half_life: float = 500e3  # images
    ema_ramp: float | None = 0.05  # share of the images seen that caps the half-life
    start_images: float = 0.0  # images that the initial weights have seen
    accumulation: int = 1  # rounds a batch is split into


class State(NamedTuple):
    step: Array  # () int32, iterations done: each is a fake-score update and a generator update
    generator: Params
    ema: Params
    generator_opt: optax.OptState
    fake: Params
    fake_opt: optax.OptState


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
    """
    config = registry.options(Options, config, "method sid")
    generator, fake, teacher = (parts.models[name] for name in ("generator", "fake", "teacher"))
    law = levels.karras(**config.levels)

    def generate(params, latents, cond, dropout=None):
        x = config.sigma_init * latents
        return denoiser(generator, params, cond, dropout)(x, config.sigma_init)

    def init(key, frozen):
        del key  # generator and fake score start as the teacher
        start = frozen.get("initial", frozen["teacher"])
        params, ema, psi = trees.copy(start), trees.copy(start), trees.copy(start)
        tx = parts.optimizers
        return State(
            jnp.zeros((), jnp.int32),
            params,
            ema,
            tx["generator"].init(params),
            psi,
            tx["fake"].init(psi),
        )

    def draw(key, batch, variant):
        size = len(jax.tree.leaves(batch)[0])
        shape = (size, *parts.shape)

        def common(key):
            draws = {
                "latents": jax.random.normal(stream(key, "latents"), shape),
                "dropout": stream(key, "dropout"),
            }
            if parts.labels is not None:
                draws["label"] = jax.random.categorical(
                    stream(key, "label"), jnp.log(parts.labels), shape=(size,)
                )
            return draws

        def for_fake(key):
            return common(key) | parts.objective.draw(key, shape)

        def for_generator(key):
            level = law.draw(stream(key, "level"), (size,))
            return common(key) | {
                "level": level,
                "noise": jax.random.normal(stream(key, "noise"), shape),
            }

        rounds = [for_fake(stream(key, f"fake {i}")) for i in range(config.fake_steps)]
        return {"fake": rounds, "generator": for_generator(stream(key, "generator"))}

    def condition(part):
        return (
            {}
            if parts.labels is None
            else {"label": jax.nn.one_hot(part["label"], len(parts.labels))}
        )

    def fake_update(state, draws):
        size = len(draws["latents"])

        def loss(params, part, dropout):
            cond = condition(part)
            x = jax.lax.stop_gradient(generate(state.generator, part["latents"], cond))
            denoise = denoiser(fake, params, cond, dropout)
            total = (
                config.fake_scale * parts.objective.loss(denoise, x, part, guard=True).sum() / size
            )
            return total, {"loss_fake": total}

        return accumulation.value_and_grad(
            loss, state.fake, *apart(draws), rounds=config.accumulation
        )

    def generator_update(state, psi, frozen, draws):
        size = len(draws["latents"])

        def loss(params, part, dropout):
            cond = condition(part)
            x, sigma = generate(params, part["latents"], cond, dropout), law.sigma(part["level"])
            x_t = x + expand(sigma, x) * part["noise"]
            real = denoiser(teacher, frozen["teacher"], cond)(x_t, sigma)
            critic = denoiser(fake, psi, cond)(x_t, sigma)
            elements = identity.elements(x, real, critic, config.alpha, config.floor)
            total = config.generator_scale * elements.sum() / size
            gap = ((real - critic) ** 2).mean() * len(x) / size
            return total, {"loss_generator": total, "gap": gap}

        return accumulation.value_and_grad(
            loss, state.generator, *apart(draws), rounds=config.accumulation
        )

    def update(state, frozen, batch, draws, variant):
        size = len(draws["generator"]["latents"])
        psi, fake_opt = state.fake, state.fake_opt
        for part in draws["fake"]:
            fake_metrics, grads = fake_update(state._replace(fake=psi), part)
            updates, fake_opt = parts.optimizers["fake"].update(grads, fake_opt, psi)
            psi = optax.apply_updates(psi, updates)
        metrics, grads = generator_update(state, psi, frozen, draws["generator"])
        updates, opt = parts.optimizers["generator"].update(
            grads, state.generator_opt, state.generator
        )
        params = optax.apply_updates(state.generator, updates)
        images = trees.images_seen(state.step, size, config.start_images)
        beta = trees.half_life_beta(images, size, config.ema_half_life, config.ema_ramp)
        ema = trees.ema(state.ema, params, beta)
        return State(state.step + 1, params, ema, opt, psi, fake_opt), fake_metrics | metrics | {
            "ema_beta": beta
        }

    def sample(params, frozen, keys, cond):
        return generate(params, normal_per_image(keys, parts.shape), cond)

    return Method(init, draw, update, lambda state: state.ema, {"student": Sampler(1, sample)})


def apart(draws) -> tuple[dict, Array]:
    """Per-sample draws and the dropout key, which has no batch axis to slice."""
    return {name: value for name, value in draws.items() if name != "dropout"}, draws["dropout"]
