"""PNDM and PLMS: exact cases, the paper's own coordinates and labels, costs, and what is refused."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond
from fastdiff_jax.processes import discrete
from fastdiff_jax.solvers import driver, multistep, named, pndm, schedules

ABAR = discrete.alphas_cumprod("linear")
SOLVERS = sorted(pndm.SOLVERS)


def gaussian(x, sigma):
    return 0.25 / (0.25 + sigma**2) * x


def of_noise(eps):
    """The denoiser whose noise prediction is eps(sigma) at every x."""
    return lambda x, sigma: x - sigma * eps(sigma) * jnp.ones_like(x)


def levels_of(steps):
    """PNDM's levels, with its labels."""
    labels = discrete.pndm_labels(steps)
    return discrete.sigmas(ABAR[labels + 1]), labels


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [4, 9])
def test_of_constant_noise_every_method_is_ddim(name, steps, x64):
    x, sigmas = jnp.ones((2, 3)), schedules.polynomial(0.1, 10.0)(steps)
    constant = of_noise(lambda sigma: 0.7)
    found = driver.sample(constant, pndm.SOLVERS[name](), x, sigmas)
    chex.assert_trees_all_close(found, x - 10.0 * 0.7, rtol=1e-12)
    chex.assert_trees_all_close(found, driver.sample(constant, multistep.euler(), x, sigmas))


@pytest.mark.parametrize("middle", [discrete.halfway, discrete.halfway_twice])
def test_of_constant_noise_label_middles_are_ddim(middle, x64):
    x, (sigmas, _) = jnp.ones((2, 3)), levels_of(8)
    found = driver.sample(of_noise(lambda sigma: 0.7), pndm.pndm(middle(ABAR)), x, sigmas)
    chex.assert_trees_all_close(found, x + (sigmas[-1] - sigmas[0]) * 0.7, rtol=1e-12)


@pytest.mark.parametrize("name, degree", [("pndm", 3), ("s_pndm", 1), ("plms", 1)])
def test_noise_polynomial_in_sigma_is_integrated_exactly_on_even_levels(name, degree, x64):
    """Simpson's rule and AB4 are exact for cubics, the trapezium rule and AB2 for straight lines only."""
    sigmas, x = np.linspace(3.0, 1.0, 9), jnp.ones((1, 1))

    def error(power):
        found = driver.sample(of_noise(lambda s: s**power), pndm.SOLVERS[name](), x, sigmas)
        return abs(found.item() - 1 - (1 - 3.0 ** (power + 1)) / (power + 1))

    assert error(degree) < 1e-11
    assert error(degree + 1) > 1e-4


def transfer(z, e, a, b):
    """The paper's phi from abar a to abar b, in its coordinates z = sqrt(abar) x."""
    return z + (b - a) * (
        z / (np.sqrt(a) * (np.sqrt(a) + np.sqrt(b)))
        - e / (np.sqrt(a) * (np.sqrt((1 - b) * a) + np.sqrt((1 - a) * b)))
    )


def test_the_transfer_is_ddim_in_our_coordinates():
    draws = np.random.default_rng(0)
    z, e = draws.normal(size=(2, 50))
    a, b = np.sort(draws.uniform(0.01, 0.99, (2, 50)), axis=0)
    ours = z / np.sqrt(a) + (discrete.sigmas(b) - discrete.sigmas(a)) * e
    np.testing.assert_allclose(transfer(z, e, a, b), np.sqrt(b) * ours, rtol=1e-12, atol=1e-13)


def in_paper_coordinates(z, labels, abar, model, warm_up, whole):
    """All methods once more, by labels: abar(label) is a level, model(z, label) the noise.

    whole: diffusers' middles, which differ by one for odd strides; else the official fraction.
    """
    past = []
    for i, (t, end) in enumerate(zip(labels, labels[1:])):
        e1 = model(z, t)
        past.insert(0, e1)
        half = (t - end) // 2 if whole else (t - end) / 2
        if i < warm_up[1] and warm_up[0] == 4:
            y = transfer(z, e1, abar(t), abar(t - half))
            e2 = model(y, end + half)
            e3 = model(transfer(z, e2, abar(t), abar(end + half)), end + half)
            e4 = model(transfer(z, e3, abar(t), abar(end)), end)
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        elif i < warm_up[1]:
            e = (e1 + model(transfer(z, e1, abar(t), abar(end)), end)) / 2
        else:
            weights = {2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}[min(len(past), warm_up[2])]
            e = sum(w * p for w, p in zip(weights, past)) / sum(weights)
        z = transfer(z, e, abar(t), abar(end))
    return z


@pytest.mark.parametrize(
    "name, solver, warm_up, whole",
    [
        ("official", pndm.pndm(discrete.halfway(ABAR)), (4, 3, 4), False),
        ("official", pndm.s_pndm(), (2, 1, 2), False),
        ("diffusers", pndm.pndm(discrete.halfway_twice(ABAR)), (4, 3, 4), True),
        ("diffusers", pndm.plms(), (2, 1, 4), True),
    ],
    ids=["fpndm", "spndm", "prk", "plms"],
)
@pytest.mark.parametrize("steps", [8, 10, 40])
def test_steps_are_the_paper_s_in_its_own_coordinates(name, solver, warm_up, whole, steps, x64):
    """Strides 125 and 25 are odd, so middles are fractional or differ by one."""

    def abar(label):
        return ABAR[int(np.floor(label)) + 1] if name == "official" else ABAR[max(int(label), 0)]

    def model(z, label):
        a = abar(label)
        x, sigma = z / np.sqrt(a), discrete.sigmas(a)
        return (x - np.asarray(gaussian(x, sigma))) / sigma

    labels = (discrete.pndm_labels if name == "official" else discrete.plms_labels)(steps)
    z = np.random.default_rng(0).normal(size=(4, 3))
    expected = in_paper_coordinates(z, labels, abar, model, warm_up, whole)
    sigmas = discrete.sigmas([abar(t) for t in labels])
    scale = 1 / np.sqrt(1 + sigmas**2)
    found = driver.sample(gaussian, solver, jnp.asarray(z / scale[0]), sigmas)
    np.testing.assert_allclose(scale[-1] * found, expected, rtol=1e-9)


def test_the_classical_method_moves_by_differences_of_one_label(x64):
    """Noise that is zero leaves z' = z (1 + r h) in a straight line; by hand for one model step of length 1."""
    sigmas = discrete.sigmas(ABAR[[5, 4, 3, 2, 1]])
    x = jnp.ones((1, 2))
    found = driver.sample(lambda x, sigma: x, pndm.fon(ABAR), x, sigmas, trace=True).states
    z = np.sqrt(ABAR[[5, 4, 3, 2, 1]])[:, None, None] * found
    r = np.sqrt(ABAR[4] / ABAR[5]) - 1  # every delta of the first step is r z
    np.testing.assert_allclose(z[1] / z[0], 1 + r, rtol=1e-12)
    assert not np.allclose(found, 1.0, rtol=1e-9)  # AB4 is not the exact transfer, of which x is kept


@pytest.mark.parametrize("steps", [4, 5, 11])
@pytest.mark.parametrize("name, extra", [("pndm", 9), ("s_pndm", 1), ("plms", 1)])
def test_the_cost_is_the_paper_s(name, extra, steps):
    sigmas = schedules.polynomial()(steps)
    assert driver.evaluations(pndm.SOLVERS[name](), sigmas) == steps + extra
    assert len(named.sampler(name, steps + extra, schedule=schedules.polynomial()).sigmas) == steps + 1


def test_calls_see_their_levels_in_order():
    calls = []

    def watched(x, sigma):
        calls.append(float(sigma))
        return gaussian(x, sigma)

    sigmas = np.array([16.0, 8.0, 4.0, 2.0, 1.0])
    with jax.disable_jit():
        driver.sample(watched, pndm.pndm(), jnp.ones((1, 1)), sigmas)
    assert calls == [16, 12, 12, 8, 8, 6, 6, 4, 4, 3, 3, 2, 2]


def test_middles_are_rounded_to_trained_levels():
    model = precond.iddpm()
    found = named.sampler("pndm", 15, schedule=dict(name="polynomial"), precond=model)
    rows = found.solver.table(found.sigmas)
    assert set(rows.told) <= set(precond.iddpm_table())
    assert not set(pndm.means(found.sigmas)) <= set(precond.iddpm_table())
    np.testing.assert_array_equal(rows.factor, 1.0)


def test_few_steps_warn_and_are_runge_kutta_only():
    sigmas, x = np.array([8.0, 4.0, 2.0]), jnp.ones((1, 1))
    with pytest.warns(UserWarning, match="pndm in 2 steps is its Runge-Kutta warm-up only"):
        driver.sample(gaussian, pndm.pndm(), x, sigmas)
    assert driver.evaluations(pndm.pndm(), sigmas) == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        driver.sample(gaussian, pndm.pndm(), x, np.array([8.0, 6.0, 4.0, 2.0, 1.0]))
        driver.sample(gaussian, pndm.plms(), x, np.array([8.0, 4.0]))


@pytest.mark.parametrize("name, steps", [("pndm", 3), ("s_pndm", 1), ("plms", 1)])
def test_a_warm_up_onto_zero_is_refused_and_one_step_more_is_not(name, steps):
    x, onto = jnp.ones((1, 1)), lambda n: np.append(np.geomspace(8, 1, n), 0.0)
    with pytest.raises(ValueError, match=f"{name} evaluates .* use at least {steps + 1}"):
        driver.sample(gaussian, pndm.SOLVERS[name](), x, onto(steps))
    chex.assert_tree_all_finite(
        driver.sample(gaussian, pndm.SOLVERS[name](), x, onto(steps + 1))
    )


@pytest.mark.parametrize("solver", [pndm.pndm(), pndm.s_pndm(), pndm.plms(), pndm.fon(ABAR)])
def test_a_run_cannot_begin_inside(solver):
    sigmas, _ = levels_of(5)
    with pytest.raises(ValueError, match="a run cannot start inside it"):
        driver.sample(gaussian, solver, jnp.ones((1, 1)), sigmas, start=2)


def test_levels_without_labels_and_misshapen_middles_are_refused():
    sigmas, x = np.array([8.0, 4.0, 2.0, 1.0, 0.5]), jnp.ones((1, 1))
    for solver in (pndm.fon(ABAR), pndm.pndm(discrete.halfway(ABAR))):
        with pytest.raises(ValueError, match="8 is no level of the discrete model"):
            driver.sample(gaussian, solver, x, sigmas)
    with pytest.raises(ValueError, match=r"each of 4 steps; got shape \(5,\)"):
        driver.sample(gaussian, pndm.pndm(lambda levels: levels), x, sigmas)


def test_a_known_first_prediction_saves_its_call():
    x, (sigmas, _) = 80 * jnp.ones((2, 3)), levels_of(5)
    for solver in (pndm.pndm(), pndm.plms()):
        known = gaussian(x, sigmas[0])
        found = driver.sample(gaussian, solver, x, sigmas, known=known)
        chex.assert_trees_all_close(found, driver.sample(gaussian, solver, x, sigmas), rtol=1e-5)
