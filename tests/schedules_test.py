"""Schedules: closed forms, exact ends, what models and configs make of them, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import precond
from fastdiff_jax.processes import discrete, standard
from fastdiff_jax.solvers import driver, named, schedules

RANGED = {
    "polynomial": {},
    "logsnr": {},
    "time": {"beta_d": 19.9, "beta_min": 0.1},
    "cosine": {},
}
TABLE = discrete.sigmas(discrete.alphas_cumprod())


@given(
    st.sampled_from(sorted(RANGED)),
    st.integers(2, 60),
    st.floats(1e-4, 0.1),
    st.floats(1, 150),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_levels_fall_from_end_to_end(name, steps, low, high, zero):
    config = dict(name=name, sigma_min=low, sigma_max=high, zero=zero, **RANGED[name])
    sigmas = schedules.build(config)(steps)
    assert sigmas.dtype == np.float64 and len(sigmas) == steps + 1
    driver.levels(sigmas)
    assert sigmas[0] == high and sigmas[-1] == (0 if zero else low)
    if zero and name != "cosine":
        assert sigmas[-2] == low


@pytest.mark.parametrize("name", sorted(set(schedules.SCHEDULES) - {"levels"}))
def test_every_schedule_has_working_defaults(name):
    for steps in (1, 2, 7):
        sigmas = driver.levels(schedules.build({"name": name})(steps))
        assert len(sigmas) == steps + 1 and sigmas[-1] == 0
        assert sigmas.dtype == np.float64


def test_logsnr_levels_have_one_ratio():
    sigmas = schedules.logsnr(0.01, 100.0, zero=False)(4)
    np.testing.assert_allclose(sigmas, [100, 10, 1, 0.1, 0.01], rtol=1e-14)


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_time_levels_are_even_in_the_time_of_their_range(rho):
    """sigma_max is at time 1 and sigma_min at eps_s, by betas solved from both."""
    low, high, eps_s = 0.002, 80.0, 1e-3
    beta_d, beta_min = schedules.vp_betas(low, high, eps_s)
    sigmas = schedules.time(low, high, rho, zero=False)(10)
    t = np.linspace(1, eps_s ** (1 / rho), 11) ** rho
    np.testing.assert_allclose(np.log1p(sigmas**2), beta_d * t**2 / 2 + beta_min * t, rtol=1e-10)


def test_time_levels_of_given_betas_are_even_in_their_time(x64):
    process = standard.vp(19.9, 0.1)
    high, low = (float(process.sigma(t)) for t in (1.0, 1e-3))
    sigmas = schedules.time(low, high, 2.0, beta_d=19.9, beta_min=0.1, zero=False)(8)
    np.testing.assert_allclose(
        process.inverse(sigmas), np.linspace(1, 1e-3**0.5, 9) ** 2, rtol=1e-12
    )


def test_cosine_levels_are_the_log_snr_formula():
    b = np.arctan(np.exp(-10.0))
    a = np.arctan(np.exp(10.0)) - b
    u = np.linspace(1, 0, 9)
    sigmas = schedules.cosine(zero=False)(8)
    np.testing.assert_allclose(-2 * np.log(sigmas), -2 * np.log(np.tan(a * u + b)), atol=1e-10)


@pytest.mark.parametrize("zero", [False, True])
def test_cosine_levels_nest(zero):
    schedule = schedules.cosine(zero=zero)
    np.testing.assert_allclose(schedule(16)[::2], schedule(8), rtol=1e-10)


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_discrete_levels_are_even_in_tau_between_any_ends(rho, x64):
    """Inner ends as well, where the power of the upper end matters."""
    model = discrete.process(discrete.alphas_cumprod())
    high, low = (float(model.sigma(t)) for t in (0.64, 0.04))
    sigmas = schedules.discrete(low, high, rho, zero=False)(6)
    tau = np.linspace(0.64 ** (1 / rho), 0.04 ** (1 / rho), 7) ** rho
    np.testing.assert_allclose(model.inverse(sigmas), tau, rtol=1e-10)


def test_discrete_levels_end_at_the_models_own():
    np.testing.assert_allclose(schedules.discrete(zero=False)(9)[[0, -1]], TABLE[[-1, 0]], rtol=1e-12)
    linear = discrete.sigmas(discrete.alphas_cumprod("linear", 400, 1e-3, 0.05))
    own = schedules.discrete(betas="linear", beta_0=1e-3, beta_1=0.05, train_steps=400, zero=False)
    np.testing.assert_allclose(own(5)[[0, -1]], linear[[-1, 0]], rtol=1e-12)


@pytest.mark.parametrize("spacing", sorted(discrete.SPACINGS))
def test_timesteps_are_levels_of_the_model(spacing):
    sigmas = schedules.timesteps(spacing)(7)
    np.testing.assert_array_equal(sigmas[:-1], TABLE[discrete.labels(spacing, 7)])
    assert sigmas[-1] == 0


def test_timesteps_may_end_at_the_first_level():
    """Leading labels with offset 1, ending so, are PNDM's levels; see discrete.pndm_labels."""
    sigmas = schedules.timesteps("leading", offset=1, zero=False)(10)
    np.testing.assert_array_equal(sigmas, TABLE[discrete.pndm_labels(10) + 1])
    with pytest.raises(ValueError, match="10 leading labels end at 0 already"):
        schedules.timesteps("leading", zero=False)(10)


def test_all_labels_of_a_model_can_be_asked_for_by_cost():
    schedule = dict(name="timesteps", train_steps=40)
    found = named.sampler("euler", 40, schedule=schedule, precond=precond.discrete(steps=40))
    assert len(found.sigmas) == 41


def test_a_list_of_levels_is_a_schedule_for_its_own_length():
    config = dict(name="levels", sigmas=(80.0, 10.0, 1.0, 0.002))
    found = named.sampler("euler", 3, schedule=config, precond=precond.edm())
    np.testing.assert_array_equal(found.sigmas, config["sigmas"])
    assert len(named.sampler("heun", 6, schedule=config).sigmas) == 4
    assert len(named.sampler("euler", 2, schedule=config, afs=True).sigmas) == 4
    with pytest.raises(ValueError, match="exactly 5 network calls .* use 3"):
        named.sampler("euler", 5, schedule=config)
    with pytest.raises(ValueError, match="a list of 4 levels is for 3 steps; got 4"):
        schedules.build(config)(4)
    with pytest.raises(ValueError, match="trained for"):
        named.sampler("euler", 3, schedule=config, precond=precond.discrete())


def test_a_list_does_not_change_with_what_was_made_of_it():
    schedule = schedules.listed([2.0, 1.0])
    schedule(1)[0] = 9.0
    assert schedule(1).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("name", ["polynomial", "logsnr", "cosine", "discrete", "timesteps"])
def test_defaults_are_cut_to_a_models_range(name):
    model = precond.discrete()
    sigmas = schedules.build({"name": name, "zero": True}, model)(5)
    schedules.check_range(sigmas, model)
    assert sigmas[0] == pytest.approx(model.sigma_max)


LOW, HIGH = dict(sigma_min=-0.1), dict(sigma_max=math.inf)
MEETING = dict(sigma_min=1.0, sigma_max=1.0)


@pytest.mark.parametrize(
    "config, words",
    [
        *[(dict(name=name, **LOW), "got sigma_min -0.1") for name in sorted(RANGED)],
        *[(dict(name=name, **HIGH), "sigma_max inf") for name in sorted(RANGED)],
        *[(dict(name=name, **MEETING), "sigma_min < sigma_max") for name in sorted(RANGED)],
        (dict(name="discrete", sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
        (dict(name="discrete", sigma_max=80.0), "from 0.0291672 to 14.6146; got .* 80"),
        (dict(name="discrete", sigma_min=0.002), "got sigma_min 0.002"),
        (dict(name="discrete", rho=0), "positive; got 0"),
        (dict(name="discrete", betas="none"), "known: linear"),
        (dict(name="time", rho=-1.0), "positive; got -1.0"),
        (dict(name="polynomial", rho=math.nan), "positive; got nan"),
        (dict(name="time", beta_d=19.9), "go together; got beta_d 19.9, beta_min None"),
        (dict(name="time", beta_d=0.0, beta_min=0.0), "not negative; got beta_d 0.0"),
        (dict(name="time", beta_d=-1.0, beta_min=2.0), "got beta_d -1.0"),
        (dict(name="time", eps_s=0.0), "within .0, 1.; got 0.0"),
        (dict(name="time", sigma_min=1.0, sigma_max=2.0), "no linear betas rise from 1"),
        (dict(name="timesteps", spacing="even"), "no label spacing 'even'"),
        (dict(name="timesteps", offset=1), "only leading"),
        (dict(name="levels", sigmas=(1.0, 2.0)), "strictly decrease; got 1 then 2"),
        (dict(name="levels", sigmas=(2.0, 1.0, -1.0)), "positive"),
        (dict(name="levels", sigmas=(math.nan, 1.0)), "finite"),
        (dict(name="levels"), r"got shape \(0,\)"),
        (dict(name="karras"), "known: polynomial, logsnr, time"),
        (dict(name="logsnr", rho=7), "no option 'rho'"),
    ],
)
def test_bad_settings_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        schedules.build(config)


@pytest.mark.parametrize("steps", [0, -3, 2.5])
@pytest.mark.parametrize("name", sorted(set(schedules.SCHEDULES) - {"levels"}))
def test_bad_step_counts_are_refused(name, steps):
    with pytest.raises(ValueError, match="whole number of steps, at least one; got"):
        schedules.build({"name": name})(steps)


def test_more_steps_than_labels_are_refused():
    with pytest.raises(ValueError, match="from 1 to 20; got 21"):
        schedules.timesteps(train_steps=20)(21)
