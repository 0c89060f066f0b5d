"""EDM, VP and VE training losses with recorded draws: noise levels, denoisers, elements, gradients."""

import jax
import jax.numpy as jnp

from fastdiff_jax import precond
from fastdiff_jax.losses import matching
from replays import toys


def replay(golden):
    images = jnp.asarray(golden.input("x0"))
    x0 = images.reshape(len(images), -1)
    for name in sorted({key.split("/")[0] for key in golden.keys() if key.endswith("/rnd")}):
        replay_loss(golden, name, x0, images.shape)


def replay_loss(golden, name, x0, shape):
    params = toys.parameters(golden, f"{name}/")
    model, objective = toys.model(params, precond.PRECONDS[name]()), matching.OBJECTIVES[name]()
    noise = jnp.asarray(golden.input(f"{name}/eps")).reshape(x0.shape)
    draws, seen = {"level": jnp.asarray(golden.input(f"{name}/rnd")), "noise": noise}, {}

    def elements(params):
        denoise = precond.denoiser(model, params)

        def watched(x, sigma):
            seen.update(x_noisy=x, sigma=sigma, D=denoise(x, sigma))
            return seen["D"]

        return objective.loss(watched, x0, draws)

    golden.check(f"{name}/loss", elements(params).reshape(shape))
    golden.check(f"{name}/sigma", seen["sigma"])
    golden.check(f"{name}/x_noisy", seen["x_noisy"].reshape(shape))
    golden.check(f"{name}/D", seen["D"].reshape(shape))
    total, grads = jax.value_and_grad(lambda params: elements(params).sum() / len(x0))(params)
    golden.check(f"{name}/total", total)
    toys.check_tree(golden, f"{name}/grad_", grads)
