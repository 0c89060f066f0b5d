"""Levels, labels, the law of the levels drawn, stages, boundary scalings, look-ups, the decoded crop."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.losses import curriculum, distances
from fastdiff_jax.losses.grid import grid
from fastdiff_jax.processes import discrete

BETAS = {"sd": "scaled_linear", "pixart": "linear"}
CROP = 64


def replay(golden):
    replay_levels(golden)
    replay_curriculum(golden)
    for key, value in zip(("boundary_cskip", "boundary_cout"), precond.boundary(golden.input("boundary_t"))):
        golden.check(key, value)
    replay_crop(golden)


def replay_levels(golden):
    abar = {}
    for key in golden.keys("alphas_cumprod_"):
        name = key.removeprefix("alphas_cumprod_")
        abar[name] = discrete.alphas_cumprod(BETAS[name], len(golden.arrays[key]))
        golden.check(key, abar[name])
    for key in golden.keys("timesteps_trailing_"):
        count = int(key.rpartition("_")[2])
        golden.check(key, discrete.labels("trailing", count, len(golden.arrays["alphas_cumprod"])))
    for key in golden.keys("lcm_default_timesteps_"):
        count = int(key.rpartition("_")[2])
        golden.check(key, discrete.labels("lcm", count, len(golden.arrays["alphas_cumprod"])))
    for key in golden.keys("dpm_sigmas_"):
        name, count = key.removeprefix("dpm_sigmas_").rsplit("_", 1)
        golden.check(key, grid(abar[name], int(count)).levels)


def replay_curriculum(golden):
    for key in golden.keys("mix_p_"):
        name = key.removeprefix("mix_p_")
        names = ("K", "niter", "var", "ncomp", "modeprobs")
        given = {part: golden.input(f"mix_{part}_{name}") for part in names}
        law = curriculum.LAWS.get(name, curriculum.mixture)
        assert given["modeprobs"].shape[1] == given["ncomp"]
        found = np.zeros((len(given["K"]), given["K"].max()))
        for stage, (count, weights) in enumerate(zip(given["K"], given["modeprobs"])):
            found[stage, :count] = law(int(count), weights, float(given["var"]))
        golden.check(key, found)
        iterations = golden.input(f"stage_iters_{name}")
        stages = [curriculum.by_reference(int(i), given["niter"]) for i in iterations]
        golden.check(f"stage_index_{name}", stages)


def replay_crop(golden):
    """Latents are (B,C,H,W) in the file."""
    scale, shift = golden.input("crop_decode_ab")
    student, teacher = (
        jnp.moveaxis(jnp.asarray(golden.input(f"crop_{who}")), 1, -1) for who in ("student", "teacher")
    )
    distance = distances.decoded(distances.l2(), lambda z: scale * z + shift, CROP)
    total, gradient = jax.value_and_grad(lambda x: distance(x, teacher).mean())(student)
    golden.check("crop_loss", total)
    golden.check("crop_grad_sum", gradient.sum())
    golden.check("crop_grad_abs_rowsum", jnp.abs(gradient).sum((2, 3)))
