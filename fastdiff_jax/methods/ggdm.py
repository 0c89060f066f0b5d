"""DDSS: trains the coefficients of a GGDM sampler, through all its steps, on a distance between features.

Source: Watson et al., Learning Fast Samplers for Diffusion Models by Differentiating Through Sample
Quality, ICLR 2022 (arXiv:2202.05830).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import registry, trees
from fastdiff_jax.losses import distances
from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import normal_per_image, stream
from fastdiff_jax.solvers import driver, learned, schedules
from fastdiff_jax.types import Array, Method, Params, Parts, Sampler


class Options(NamedTuple):
    """Settings of DDSS."""

    steps: int = 5  # K, the network calls of the sampler
    start: str = "ddim"  # the multistep solver that it starts as; DDSS: ddim
    eta: float = 0.0  # noise of a start at ddim; 1 is DDPM
    time: bool = False  # "+TIME": train the noise levels that the network is told
    pred: bool = False  # "+PRED": train what the prediction is made of
    schedule: Mapping | None = None  # levels it starts from; None: the config's schedule
    tap: str = "features"  # of the feature net
    unit: bool = True  # scale features to mean square one, as the kernel expects of them
    remat: bool = True  # recompute the network's activations: memory for K states, not for K networks


class State(NamedTuple):
    """The coefficients in training."""

    step: Array
    params: Params
    opt: optax.OptState


def build(config, parts: Parts) -> Method:
    """DDSS as a method: unbiased MMD^2 between features of samples and of the batch, Adam on coefficients.

    Labels of samples are drawn by the class shares and not taken from the batch: with the same labels on both
    sides, pairs of one class are rarer within a set than across, and the distance is biased against diversity.
    The cubic kernel is made for features of unit size. Larger ones let the outermost pairs decide, so they are
    divided by the root mean square of the batch's own.

    Args:
      config: see `Options`.
      parts: models "teacher" and "features", optimizers["coefficients"], schedule, shape, labels (the class
        shares).
    Frozen: teacher, features; at `init` also "initial", coefficients to start from instead.
    Metrics: loss, the distance, which may be negative; spread, the mean noise in VP units.
    Raises: ValueError for unknown or impossible settings, levels that the teacher was not trained at, and in
      `init` for coefficients that do not fit.
    """
    config = registry.options(Options, config, "method ggdm")
    model, net, tx = parts.models["teacher"], parts.models["features"], parts.optimizers["coefficients"]
    sigmas = _levels(config, parts.schedule, model.precond)
    edm = sigmas[::-1]
    alpha = 1 / np.sqrt(1 + edm**2)
    sigma = alpha * edm
    m, s = _start(config, sigmas, alpha, sigma)

    def init(key, frozen):
        del key
        params = learned.parameters(m, s, alpha, sigma, time=config.time, pred=config.pred)
        if "initial" in frozen:
            trees.check_fits(frozen["initial"], params, "sampler")
            params = trees.copy(frozen["initial"])
        return State(jnp.zeros((), jnp.int32), params, tx.init(params))

    def draw(key, batch, variant):
        del variant
        shape = batch["image"].shape
        draws = {
            "latents": jax.random.normal(stream(key, "latents"), shape),
            "noise": jax.random.normal(stream(key, "noise"), (config.steps, *shape)),
        }
        if parts.labels is not None:
            shares = jnp.log(parts.labels)
            draws["label"] = jax.random.categorical(stream(key, "label"), shares, shape=shape[:1])
        return draws

    def condition(draws):
        labels = parts.labels
        return {} if labels is None else {"label": jax.nn.one_hot(draws["label"], len(labels))}

    def run(params, denoise, latents, noise, **options):
        solver = learned.ggdm(learned.coefficients(params, alpha, sigma))
        return driver.sample(denoise, solver, float(sigmas[0]) * latents, sigmas, noise=noise, **options)

    def features(frozen, images):
        levels = jnp.zeros(len(images), images.dtype)
        return net.network.apply(frozen["features"], images, levels, {}, taps=(config.tap,))[1][config.tap]

    def update(state, frozen, batch, draws, variant):
        del variant
        real = features(frozen, batch["image"])
        size = jnp.sqrt(jnp.mean(real**2)) if config.unit else 1.0
        denoise = denoiser(model, frozen["teacher"], condition(draws))
        if config.remat:
            denoise = jax.checkpoint(denoise)
        unroll = jax.default_backend() == "cpu"  # where gradients of convolutions crawl in loops

        def loss(params):
            noise = lambda step, draw: draws["noise"][step]
            images = run(params, denoise, draws["latents"], noise, unroll=unroll or 1)
            return distances.kernel_distance(features(frozen, images) / size, real / size)

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        spread = jax.nn.softplus(state.params["spread"]).mean()
        return State(state.step + 1, params, opt), {"loss": value, "spread": spread}

    def generate(params, frozen, keys, cond):
        noise, latents = driver.per_image(keys, parts.shape), normal_per_image(keys, parts.shape)
        return run(params, denoiser(model, frozen["teacher"], cond), latents, noise)

    name = f"ggdm {config.steps}"
    return Method(init, draw, update, lambda state: state.params, {name: Sampler(config.steps, generate)})


def _start(config, sigmas, alpha, sigma):
    """M and s of the sampler that training starts from."""
    if config.start == "ddim":
        return learned.ddim_coefficients(alpha, sigma, config.eta)
    if config.eta:
        raise ValueError(f"method ggdm: eta {config.eta} is of a start at ddim; {config.start} has none.")
    factories = registry.entries("solvers", "SOLVERS")
    if config.start not in factories:
        raise ValueError(f"method ggdm: no solver {config.start!r}; known: {', '.join(sorted(factories))}.")
    return learned.to_vp(learned.embedded(factories[config.start](), sigmas), alpha)


def _levels(config, schedule, precond):
    """(K+1,) levels that the sampler starts from, which the teacher must know."""
    if config.steps < 1:
        raise ValueError(f"method ggdm: steps is 1 or more; got {config.steps}.")
    schedule = schedule if config.schedule is None else schedules.build(config.schedule, precond)
    schedules.check_range(schedule(config.steps), precond)
    return driver.levels(schedules.rounded(schedule, precond)(config.steps))
