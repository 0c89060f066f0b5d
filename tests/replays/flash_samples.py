"""The teacher's solves from any level of a grid, and the student's few-step samplers."""

import re

import jax.numpy as jnp
import numpy as np

from fastdiff_jax import guidance, precond
from fastdiff_jax.losses.grid import grid
from fastdiff_jax.precond import denoiser
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import driver, multistep, named, strided
from replays import flash_toy
from replays.flash_toy import array


def replay(golden):
    toy = flash_toy.toy(golden)
    scale = toy.scale(golden.input("u_guidance"))
    golden.check("teacher_guidance", scale)
    for key in golden.keys("teacher_traj_"):
        solver, count, start = re.fullmatch(r"teacher_traj_(\w+)_K(\d+)_s(\d+)", key).groups()
        golden.check(key, walked(golden, toy, scale, solver, int(count), int(start)))
    for key in golden.keys("sample_lcm_timesteps_"):
        golden.check(key, discrete.labels("trailing", int(key.rpartition("_")[2]), len(toy.abar)))
    for key in golden.keys("sample_lcm_"):
        if found := re.fullmatch(r"sample_lcm_(\d+)_g([\d.]+)", key):
            golden.check(key, sampled(golden, toy, int(found[1]), "trailing", float(found[2])))
    for key in golden.keys("sample_pipe_"):
        golden.check(key, sampled(golden, toy, int(key.rpartition("_")[2]), "lcm", 1.0))


def walked(golden, toy, scale, solver, count, start):
    """(K-i+1,B,...) states of a solve from level i, in the model's own coordinates."""
    levels = grid(toy.abar, count)
    x, _ = levels.start(toy.z, jnp.asarray(start), array(golden, "noise_init"))
    sigmas = levels.levels[start:]
    made = {"dpm2m": lambda: multistep.dpmpp(2), "ddim": lambda: strided.ddim(toy.abar, len(toy.abar) // count)}
    trace = driver.sample(toy.guided(scale), made[solver](), x, sigmas, trace=True)
    return trace.states / np.sqrt(1 + sigmas**2).reshape(-1, *(1,) * x.ndim)


def sampled(golden, toy, count, spacing, scale):
    table, noise = discrete.sigmas(toy.abar), array(golden, "sample_noise")
    schedule = lambda steps: np.append(table[discrete.labels(spacing, steps, len(table))], 0.0)
    jump = precond.with_boundary(toy.model.precond, discrete.clock(toy.abar))
    model = toy.model._replace(precond=jump)
    aimed = denoiser(model, toy.student, {"label": toy.y})
    bound = guidance.guided(aimed, denoiser(model, toy.student), scale)
    sampler = named.sampler("lcm", count, schedule=schedule, precond=jump)
    return named.generate(bound, sampler, array(golden, "sample_init"), noise=lambda step, draw: noise[step])
