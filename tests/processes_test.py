"""Processes and preconditioners against closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import precond
from fastdiff_jax.processes import gaussian, standard
from fastdiff_jax.types import Model, Network

T = np.linspace(0.05, 1.0, 7)


def test_vp_drift_and_diffusion_are_those_of_the_linear_beta_sde(x64):
    process, t = standard.vp(), jnp.asarray(T)
    beta = 0.1 + 19.9 * t  # dx = -beta/2 x dt + sqrt(beta) dw
    chex.assert_trees_all_close(gaussian.drift(process, t), -beta / 2, rtol=1e-12)
    chex.assert_trees_all_close(gaussian.diffusion(process, t), jnp.sqrt(beta), rtol=1e-12)


def test_ve_and_edm_have_no_drift_and_their_own_diffusion(x64):
    t = jnp.asarray(T)
    chex.assert_trees_all_close(gaussian.drift(standard.ve(), t), jnp.zeros_like(t))
    chex.assert_trees_all_close(gaussian.diffusion(standard.ve(), t), jnp.ones_like(t), rtol=1e-12)
    chex.assert_trees_all_close(gaussian.diffusion(standard.edm(), t), jnp.sqrt(2 * t), rtol=1e-12)


@given(st.sampled_from(sorted(standard.PROCESSES)), st.floats(0.003, 70.0))
@settings(deadline=None, max_examples=40)
def test_inverse_undoes_sigma(name, sigma):
    process = standard.PROCESSES[name]()
    np.testing.assert_allclose(process.sigma(process.inverse(jnp.float32(sigma))), sigma, rtol=2e-3)


def test_vp_keeps_unit_variance_of_unit_data():
    x0, eps = jax.random.normal(jax.random.key(0), (2, 100_000, 1))
    x = gaussian.perturb(standard.vp(), x0, jnp.full(100_000, 0.4), eps)
    assert abs(float(x.std()) - 1) < 0.03


@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_edm_holds_input_and_target_at_unit_variance(sigma):
    """x0 of deviation sd: c_in x, and the target (x0 - c_skip x) / c_out, have deviation one."""
    x0, eps = jax.random.normal(jax.random.key(0), (2, 100_000))
    c = precond.edm(0.5).coefficients(jnp.array([sigma]))
    x = 0.5 * x0 + sigma * eps
    assert abs(float((c.inp * x).std()) - 1) < 0.02
    assert abs(float(((0.5 * x0 - c.skip * x) / c.out).std()) - 1) < 0.02


def test_iddpm_levels_round_to_themselves_and_drop_the_variance_channels(x64):
    discrete, table = precond.iddpm(), precond.iddpm_table()
    np.testing.assert_array_equal(discrete.round(jnp.asarray(table[:-1])), table[:-1])
    assert (discrete.sigma_min, discrete.sigma_max) == (table[-2], table[0])
    doubled = Network(None, lambda p, x, c, cond, **k: jnp.concatenate([x, 7 * x], -1))
    out = precond.denoiser(Model(doubled, discrete), {})(jnp.ones((2, 4, 4, 3)), 1.0)
    chex.assert_shape(out, (2, 4, 4, 3))


def test_denoisers_take_one_level_or_one_a_sample():
    network = Network(None, lambda p, x, c, cond, **k: x * c[:, None])
    denoise = precond.denoiser(Model(network, precond.edm()), {})
    x = jnp.ones((3, 2))
    chex.assert_trees_all_close(denoise(x, 0.7), denoise(x, jnp.full(3, 0.7)))


@pytest.mark.parametrize("options, words", [
    (dict(name="vpp"), "known: edm, vp, ve"),
    (dict(name="edm", sigma_data=-1.0), "positive; got -1"),
])  # fmt: skip
def test_bad_preconditioners_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        precond.build(options)
