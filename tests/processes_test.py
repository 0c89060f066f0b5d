"""Processes against closed forms: drift, diffusion, inverses, marginals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax.processes import gaussian, standard

T = np.linspace(0.05, 1.0, 7)
NAMES = sorted(standard.PROCESSES)


def test_vp_drift_and_diffusion_are_those_of_the_linear_beta_sde(x64):
    process, t = standard.vp(), jnp.asarray(T)
    beta = 0.1 + 19.9 * t  # dx = -beta/2 x dt + sqrt(beta) dw
    chex.assert_trees_all_close(gaussian.drift(process, t), -beta / 2, rtol=1e-12)
    chex.assert_trees_all_close(gaussian.diffusion(process, t), jnp.sqrt(beta), rtol=1e-12)


def test_ve_and_edm_have_no_drift_and_their_own_diffusion(x64):
    t = jnp.asarray(T)
    for process in (standard.ve(), standard.edm()):
        chex.assert_trees_all_close(gaussian.drift(process, t), jnp.zeros_like(t))
    chex.assert_trees_all_close(gaussian.diffusion(standard.ve(), t), jnp.ones_like(t), rtol=1e-12)
    chex.assert_trees_all_close(gaussian.diffusion(standard.edm(), t), jnp.sqrt(2 * t), rtol=1e-12)


@given(st.sampled_from(NAMES), st.floats(0.0, 1.0), st.booleans())
@settings(deadline=None, max_examples=60)
def test_inverse_undoes_sigma_over_the_whole_range(name, share, double):
    process = standard.PROCESSES[name]()
    with jax.enable_x64(double):
        t = jnp.asarray(process.t_min * (process.t_max / process.t_min) ** share)
        np.testing.assert_allclose(
            process.inverse(process.sigma(t)), t, rtol=1e-12 if double else 5e-6
        )


@pytest.mark.parametrize("name", NAMES)
def test_noise_grows_from_end_to_end(name):
    process = standard.PROCESSES[name]()
    ends = process.sigma(jnp.array([process.t_min, process.t_max]))
    expected = {"edm": (0.002, 80.0), "vp": (1.0005e-3, 152.167), "ve": (0.02, 100.0)}
    np.testing.assert_allclose(ends, expected[name], rtol=1e-4)
    t = jnp.geomspace(process.t_min, process.t_max, 50)
    assert np.all(np.diff(process.sigma(t)) > 0)


def test_vp_preserves_unit_variance(x64):
    process, t = standard.vp(), jnp.asarray(T)
    np.testing.assert_allclose(process.scale(t) ** 2 * (1 + process.sigma(t) ** 2), 1.0, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_perturbed_images_have_the_marginal_s_moments(name):
    """Mean scale x0 and deviation scale sigma, a level a sample."""
    process, num = standard.PROCESSES[name](), 50_000
    t = process.inverse(jnp.array([0.05, 3.0]))
    x0 = jnp.array([0.7, -0.2])
    eps = jax.random.normal(jax.random.key(0), (2, num, 1))
    x = gaussian.perturb(process, jnp.broadcast_to(x0[:, None, None], eps.shape), t, eps)[..., 0]
    scale, spread = process.scale(t), process.scale(t) * process.sigma(t)
    assert np.all(np.abs(x.mean(1) - scale * x0) < 5 * spread / np.sqrt(num))
    np.testing.assert_allclose(x.std(1), spread, rtol=0.02)
