"""Adams-Bashforth and DEIS: what the weights integrate exactly, and whose mistakes they can repeat."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from fastdiff_jax.solvers import adams, deis, driver, multistep, named, schedules

ORDERS = (1, 2, 3, 4)
POLYNOMIAL = schedules.polynomial(0.002, 80.0, 7.0)
OPEN = schedules.polynomial(0.002, 80.0, 7.0, zero=False)
EVEN = np.linspace(10.0, 2.0, 9)
EXACT = {"ipndm": adams.ipndm_rows, "rhoab": adams.exact_rows, "tab": deis.tab_rows}
LEVELS = st.builds(
    lambda steps, rho, zero: schedules.polynomial(0.01, 50.0, rho, zero)(steps),
    st.integers(1, 12),
    st.floats(1, 9),
    st.booleans(),
)


def time(sigma, beta_d=deis.BETA_D, beta_min=deis.BETA_MIN):
    """The time at which a VP process has this level, as texts write it."""
    return (np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(sigma**2)) - beta_min) / beta_d


def weighed(rows, sigmas, eps, order):
    """Increments of x of the steps that are at full order, for a slope eps(sigma)."""
    past = [[eps(sigmas[i - j]) for j in range(order)] for i in range(order - 1, len(sigmas) - 1)]
    return np.sum(rows.b[order - 1 :] * np.reshape(past, (-1, order)), axis=1)


@given(LEVELS, st.sampled_from(sorted(EXACT)), st.sampled_from(ORDERS))
@settings(deadline=None, max_examples=60)
def test_rows_keep_a_constant_slope(sigmas, kind, order):
    """If eps never changes, every step is DDIM's: sum_j b_j = sigma' - sigma."""
    rows = EXACT[kind](sigmas, order)
    np.testing.assert_allclose(rows.b.sum(1), np.diff(sigmas), rtol=1e-9)
    np.testing.assert_array_equal(rows.a, 1.0)
    assert rows.b.shape == (len(sigmas) - 1, order)


@given(LEVELS, st.sampled_from(ORDERS), st.data())
@settings(deadline=None, max_examples=60)
def test_a_slope_that_is_a_polynomial_in_sigma_is_integrated_exactly(sigmas, order, data):
    degree = data.draw(st.integers(0, order - 1))
    steps = weighed(adams.exact_rows(sigmas, order), sigmas, lambda s: (s / 50) ** degree, order)
    whole = 50 / (degree + 1) * (sigmas / 50) ** (degree + 1)
    np.testing.assert_allclose(steps, np.diff(whole)[order - 1 :], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("betas", [(deis.BETA_D, deis.BETA_MIN), (19.9, 0.1)])
@pytest.mark.parametrize("steps, zero", [(4, True), (6, False), (20, True)])
@pytest.mark.parametrize("order", ORDERS)
def test_a_slope_that_is_a_polynomial_in_time_is_integrated_exactly(order, steps, zero, betas):
    """For both signs of beta_min, however long the steps are, and onto zero."""
    sigmas = schedules.polynomial(0.002, 80.0, 7.0, zero)(steps)
    rows = deis.tab_rows(sigmas, order, *betas)
    for degree in range(order):
        ours = weighed(rows, sigmas, lambda s: time(s, *betas) ** degree, order)
        for i, step in enumerate(ours, order - 1):
            # sigma = sinh u, where the time is smooth.
            ends = np.arcsinh(sigmas[i : i + 2])
            exact, _ = quad(
                lambda u: time(np.sinh(u), *betas) ** degree * np.cosh(u), *ends, epsabs=1e-13
            )
            np.testing.assert_allclose(step, exact, rtol=1e-9, atol=1e-11)


def test_on_equal_steps_ipndm_is_adams_bashforth():
    for order in ORDERS:
        ours, exact = adams.ipndm_rows(EVEN, order), adams.exact_rows(EVEN, order)
        np.testing.assert_allclose(ours.b, exact.b, rtol=1e-12)


def test_order_one_is_euler():
    sigmas = POLYNOMIAL(7)
    euler = multistep.euler_rows(sigmas, "noise")
    solvers = [adams.ipndm(1), adams.ipndm_v(1), adams.ipndm_v(1, "published"), deis.rhoab(1)]
    for solver in (*solvers, deis.tab(1)):
        np.testing.assert_array_equal(solver.table(sigmas).b, euler.b)
    published = deis.tab(1, quadrature="published")
    np.testing.assert_array_equal(published.table(OPEN(7)).b[:, 0], np.diff(OPEN(7)))


def test_the_order_rises_by_one_a_step():
    for rows in (*EXACT.values(), adams.published_rows):
        b = rows(OPEN(6), 4).b
        assert [int(np.sum(row != 0)) for row in b] == [1, 2, 3, 4, 4, 4]
        np.testing.assert_allclose(b[:2, :2], rows(OPEN(6), 2).b[:2], rtol=1e-12)


def test_rhoab_is_variable_step_adams_bashforth():
    for order in (2, 3, 4):
        one, other = deis.rhoab(order), adams.ipndm_v(order)
        assert one.step is other.step
        np.testing.assert_array_equal(one.table(POLYNOMIAL(8)).b, other.table(POLYNOMIAL(8)).b)


class TestWhatOtherCodesPublished:
    """Mistakes behind published figures, kept under their own names."""

    def test_second_order_weights_are_right(self):
        sigmas = OPEN(8)
        ours, exact = adams.published_rows(sigmas, 2), adams.exact_rows(sigmas, 2)
        np.testing.assert_allclose(ours.b, exact.b, rtol=1e-12)

    def test_on_equal_steps_only_the_fourth_order_is_wrong(self):
        third, fourth = (adams.published_rows(EVEN, order).b for order in (3, 4))
        np.testing.assert_allclose(third, adams.ipndm_rows(EVEN, 3).b, rtol=1e-12)
        np.testing.assert_allclose(fourth[3:] / -1.0, [np.array([57, -65, 43, -11]) / 24] * 5)

    def test_on_uneven_steps_fourth_order_weights_do_not_sum_to_the_step(self):
        sigmas = OPEN(8)
        third, fourth = (adams.published_rows(sigmas, order).b.sum(1) for order in (3, 4))
        np.testing.assert_allclose(third, np.diff(sigmas), rtol=1e-9)
        assert (np.abs(fourth / np.diff(sigmas) - 1)[3:] > 1e-5).all()
        assert not np.allclose(
            adams.published_rows(sigmas, 3).b, adams.exact_rows(sigmas, 3).b, rtol=0.05
        )

    def test_the_sum_of_many_points_is_nearly_the_integral(self):
        sigmas = OPEN(8)
        ours, exact = (deis.tab_rows(sigmas, 4, quadrature=q).b[1:] for q in ("published", "exact"))
        largest = np.abs(exact).max(axis=1, keepdims=True)
        assert 1e-6 < (np.abs(ours - exact) / largest).max() < 1e-3

    def test_stale_weights_are_the_fourth_steps(self):
        sigmas = OPEN(8)
        stale, exact = deis.rhoab(4, "stale").table(sigmas).b, deis.rhoab(4).table(sigmas).b
        np.testing.assert_array_equal(stale[:4], exact[:4])
        np.testing.assert_array_equal(stale[4:], [exact[3]] * 4)
        few = deis.rhoab(4, "stale").table(OPEN(3)).b
        np.testing.assert_array_equal(few, adams.exact_rows(OPEN(3), 4).b)

    def test_they_are_options_of_named_samplers(self):
        options = dict(schedule=OPEN)
        sampler = named.sampler("ipndm_v_4", 6, weights="published", **options)
        rows = sampler.solver.table(sampler.sigmas)
        np.testing.assert_array_equal(rows.b, adams.published_rows(sampler.sigmas, 4).b)
        sampler = named.sampler("deis_tab_3", 6, quadrature="published", **options)
        assert not np.array_equal(
            sampler.solver.table(sampler.sigmas).b, deis.tab_rows(OPEN(6), 3).b
        )


def test_the_published_clock_spans_edms_range_whatever_is_sampled():
    assert schedules.vp_betas(0.002, 80.0) == (deis.BETA_D, deis.BETA_MIN)
    np.testing.assert_allclose(time(np.array([0.002, 80.0])), [1e-3, 1.0], rtol=1e-9)


def test_a_whole_run_on_a_slope_linear_in_sigma():
    """eps = sigma: x falls by half the difference of squares, but for the first step, which is Euler's."""

    def denoise(x, sigma):
        return x - sigma * sigma

    sigmas = np.array([4.0, 3.0, 1.5, 1.0, 0.0])
    x = driver.sample(denoise, adams.ipndm_v(2), jnp.full((2, 3), 5.0), sigmas)
    chex.assert_trees_all_close(x, jnp.full((2, 3), 5.0 - 4.0 - 9.0 / 2), rtol=1e-6)


def test_noise_tables_of_one_length_share_one_executable_and_one_network_body():
    traces = []

    @jax.jit
    def run(x, steps):
        def denoise(x, sigma):
            traces.append(1)
            return x / (1 + sigma**2)

        return driver.run(denoise, x, steps)

    solvers = [
        multistep.euler("noise", history=4),
        multistep.dpmpp(3, target="noise", history=4),
        *(make(order, history=4) for make in (adams.ipndm, adams.ipndm_v, deis.tab, deis.rhoab)
          for order in ORDERS),
    ]  # fmt: skip
    outs = [run(jnp.ones((2, 3)), driver.prepare(solver, POLYNOMIAL(6))) for solver in solvers]
    assert len(traces) == 1
    chex.assert_trees_all_close(outs[0], outs[2])
    assert len({round(float(out[0, 0]), 5) for out in outs}) > 10


def test_a_run_that_begins_inside_the_table_begins_with_euler():
    x, sigmas = jnp.ones((2, 3)), OPEN(6)

    def gaussian(x, sigma):
        return x / (1 + sigma**2)

    for solver in (adams.ipndm(4), adams.ipndm_v(4), deis.tab(4)):
        last = driver.sample(gaussian, solver, x, sigmas, start=jnp.int32(5))
        euler = driver.sample(gaussian, multistep.euler(), x, sigmas[5:])
        chex.assert_trees_all_close(last, euler, rtol=1e-5)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: adams.ipndm(5), "iPNDM has orders 1 to 4; got 5"),
        (lambda: adams.ipndm_v(0), "iPNDM_v has orders 1 to 4; got 0"),
        (lambda: adams.ipndm_v(3, "wrong"), "weights exact or published; got 'wrong'"),
        (lambda: deis.tab(2.5), "DEIS-tAB has orders 1 to 4; got 2.5"),
        (lambda: deis.tab(3, quadrature="simpson"), "exact or published; got 'simpson'"),
        (lambda: deis.tab(3, beta_d=-1.0), "positive beta_d .* got -1.0"),
        (lambda: deis.rhoab(5), "DEIS-rhoAB has orders 1 to 4; got 5"),
        (lambda: deis.rhoab(3, "stale"), "stale for order 4; got 'stale' for order 3"),
        (
            lambda: driver.prepare(deis.tab(2, quadrature="published"), POLYNOMIAL(4)),
            "infinite onto sigma 0",
        ),
    ],
)
def test_bad_requests_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
