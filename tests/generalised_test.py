"""EDM's generalised sampler: its special cases, its order in every time and scale, its levels, bad settings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond
from fastdiff_jax.solvers import driver, generalised, heun, multistep, named, schedules

S = 0.5
POLYNOMIAL = schedules.polynomial(0.01, 10.0)


def gaussian(x, sigma):
    return S**2 / (S**2 + sigma**2) * x


def ends(solver, sigmas, noise=None):
    x = sigmas[0] * jax.random.normal(jax.random.key(0), (3, 2))
    return driver.sample(gaussian, solver, x, sigmas, noise=noise)


def ones(step, draw):
    return jnp.ones((3, 2))


def test_with_its_defaults_it_is_heun(x64):
    ours, theirs = ends(generalised.generalised(), POLYNOMIAL(6)), ends(heun.heun(), POLYNOMIAL(6))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-13)


def test_with_churn_it_is_heun_with_churn(x64):
    options = dict(s_churn=3.0, s_min=0.05, s_max=5.0, s_noise=1.01)
    ours = ends(generalised.generalised(**options), POLYNOMIAL(6), ones)
    theirs = ends(heun.heun_churn(**options), POLYNOMIAL(6), ones)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-13)
    assert jnp.abs(theirs - ends(heun.heun(), POLYNOMIAL(6))).max() > 1e-3


def test_euler_in_linear_time_is_euler(x64):
    ours = ends(generalised.generalised("euler"), POLYNOMIAL(6))
    chex.assert_trees_all_close(ours, ends(multistep.euler(), POLYNOMIAL(6)), rtol=1e-12)


@pytest.mark.parametrize("time", generalised.TIMES)
@pytest.mark.parametrize("scaling", ["none", "vp"])
@pytest.mark.parametrize("solver, alpha", [("euler", 1.0), ("heun", 1.0), ("heun", 2 / 3)])
def test_converges_at_its_order_in_any_time_and_scale(time, scaling, solver, alpha, x64):
    """Gaussian data: x(low) = x(high) sqrt((S^2 + low^2) / (S^2 + high^2))."""
    made = generalised.generalised(solver, time, scaling, alpha, sigma_min=0.002, sigma_max=80.0)
    schedule = schedules.polynomial(0.1, 10.0, zero=False)

    def error(steps):
        gain = driver.sample(gaussian, made, jnp.ones((1, 1)), schedule(steps))
        return abs(float(gain[0, 0]) / np.sqrt((S**2 + 0.01) / (S**2 + 100)) - 1)

    assert np.log2(error(80) / error(160)) > generalised.STAGES[solver] - 0.2


def test_time_vp_turns_with_its_own_betas_and_the_range_it_is_given():
    """The range of betas 19.9 and 0.1 gives these back; their clock is what the levels are even in."""
    sigmas = generalised.vp_levels()(5)
    clock = generalised.vp_clock(sigmas[-2], sigmas[0], 1e-3)
    np.testing.assert_allclose(clock.inverse(sigmas[:-1]), np.linspace(1, 1e-3, 5), rtol=1e-9)
    np.testing.assert_allclose(clock.sigma(0.5), np.sqrt(np.expm1(19.9 / 8 + 0.05)), rtol=1e-9)
    numeric = (clock.sigma(0.3 + 1e-6) - clock.sigma(0.3 - 1e-6)) / 2e-6
    np.testing.assert_allclose(clock.slope(0.3), numeric, rtol=1e-8)
    wide, own = (
        ends(generalised.generalised(time="vp", sigma_min=low), POLYNOMIAL(6)) for low in (0.002, None)
    )
    assert jnp.abs(wide - own).max() > 1e-5


def test_iddpm_levels_are_trained_ones():
    sigmas = generalised.iddpm_levels()(6)
    table = precond.iddpm_table()
    assert set(sigmas[:-1]) <= set(table) and sigmas[-1] == 0
    assert sigmas[0] == table[8] and sigmas[-2] == table[999]  # the paper's j_0 = 8
    picked = [list(table).index(sigma) - 8 for sigma in sigmas[:-1]]
    assert picked == [round(991 / 5 * i) for i in range(6)]


def test_levels_are_rounded_to_the_model_s():
    model = precond.iddpm()
    made = named.sampler(
        "generalised", 11, schedule=generalised.iddpm_levels(0.0065), precond=model, s_churn=5.0
    )
    hats = made.solver.table(made.sigmas).hat
    assert set(hats) <= set(precond.iddpm_table()) and (hats > made.sigmas[:-1]).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: generalised.generalised("rk4"), "solver euler, heun; got 'rk4'"),
        (lambda: generalised.generalised(time="cosine"), "time linear, ve, vp; got 'cosine'"),
        (lambda: generalised.generalised(scaling="ve"), "scaling none, vp, fdm; got 've'"),
        (lambda: generalised.generalised(alpha=0), r"in \(0, 1\]; got 0"),
        (lambda: generalised.generalised(s_churn=-1), "amounts of noise"),
        (lambda: ends(generalised.generalised(time="vp"), np.array([2.0, 0.0])), "give both, or more"),
        (lambda: generalised.iddpm_levels(1.0, 1.001)(3), "levels .* got 3 steps"),
        (lambda: ends(generalised.generalised(s_churn=1), POLYNOMIAL(3)), "churn draws noise"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
