"""CLD: kernels against numerical integration, single precision, its loss, its samplers on Gaussian data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from fastdiff_jax import precond, rng
from fastdiff_jax.losses import hybrid, matching
from fastdiff_jax.methods import teacher
from fastdiff_jax.networks import mlp, song
from fastdiff_jax.processes import cld
from fastdiff_jax.runtime import experiment
from fastdiff_jax.runtime.assemble import assemble
from fastdiff_jax.solvers import driver, sampling, sscs
from fastdiff_jax.types import Model, Network, Parts

CASES = [dict(), dict(beta0=0.1, beta1=6.9, mass=0.5, gamma=0.3), dict(beta0=2.0, beta1=-1.0, mass=3.0)]


def made(case, **options):
    return cld.process(**{"numerical_eps": 0.0, **case, **options})


# Kernels.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("start", [(0.0, 0.0), (0.0, None), (0.3, 0.7)])
def test_kernels_solve_the_moment_equations(case, start, x64):
    """d mean = f mean, d cov = f cov + cov f^T + g g^T, with the process's own drift f and diffusion g."""
    process = made(case)
    drift, diffusion = jax.jit(process.drift), jax.jit(process.diffusion)

    def slope(t, y):
        phi, spread = y[:4].reshape(2, 2), y[4:].reshape(2, 2)
        f, g = np.asarray(drift(t)), np.asarray(diffusion(t))
        return np.concatenate([(f @ phi).ravel(), (f @ spread + spread @ f.T + g @ g.T).ravel()])

    var_v = process.gamma * process.mass if start[1] is None else start[1]
    first = np.concatenate([np.eye(2).ravel(), [start[0], 0, 0, var_v]])
    times = np.linspace(0.01, 1, 12)
    found = solve_ivp(slope, (0, 1), first, "DOP853", times, rtol=1e-11, atol=1e-13).y.T.reshape(-1, 2, 2, 2)
    t = jnp.asarray(times)
    np.testing.assert_allclose(process.mean(t), found[:, 0], atol=1e-9)
    np.testing.assert_allclose(cld.covariance(process, t, *start), found[:, 1], atol=1e-9)


def test_the_coefficients_are_the_published_ones():
    process = cld.process()
    np.testing.assert_allclose(process.drift(0.3), 4 * np.array([[0, 4], [-1, -4]]))  # Gamma / M = 4
    np.testing.assert_allclose(process.diffusion(0.3), [[0, 0], [0, np.sqrt(2 * 1.0 * 4)]])  # Gamma = 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gamma", [0.0, 0.04])
def test_kernels_keep_their_digits_in_single_precision(case, gamma):
    """Down to t = 1e-5, where the textbook's difference has none left."""
    process = made(case)
    t = np.geomspace(1e-5, 1, 3000).astype(np.float32)
    scaled = lambda t: cld.moments(process.clock(t) / np.sqrt(process.mass), gamma)
    single = [np.asarray(v, np.float64) for v in scaled(jnp.asarray(t))]
    lower = np.asarray(process.chol(jnp.asarray(t), gamma), np.float64)
    with jax.enable_x64(True):
        t = jnp.asarray(t, jnp.float64)
        double, exact = [np.asarray(v) for v in scaled(t)], np.asarray(process.chol(t, gamma))
    for name, found, expected in zip(("x", "xv", "v", "det"), single, double, strict=True):
        scale = np.sqrt(double[0] * double[2]) if name == "xv" else expected  # the covariance changes sign
        assert np.abs((found - expected) / scale).max() < (2e-5 if name == "det" else 1e-5), name
    np.testing.assert_allclose(lower[:, [0, 1], [0, 1]], exact[:, [0, 1], [0, 1]], rtol=1e-5)
    if not gamma:  # what would happen otherwise
        b = np.float32(process.clock(np.float32(1e-3)) / np.sqrt(process.mass))
        textbook = 1 - np.exp(-2 * b) * (1 + 2 * b + 2 * b**2)
        assert abs(textbook / float(scaled(jnp.float32(1e-3))[0]) - 1) > 0.01


@given(st.floats(0.05, 20), st.floats(0.0, 2.0), st.floats(1e-5, 1.0), st.floats(0.0, 1e-3))
@settings(deadline=None, max_examples=30)
def test_the_factor_is_that_of_the_textbook_covariance(mass, gamma, t, eps):
    """Sigma = S - Phi (S - S0) Phi^T in double precision, with eps on both variances."""
    with jax.enable_x64(True):
        process = cld.process(mass=mass, gamma=gamma, numerical_eps=eps)
        phi, end = np.asarray(process.mean(jnp.float64(t))), np.diag([1.0, mass])
        expected = end - phi @ (end - np.diag([0.0, gamma * mass])) @ phi.T + eps * np.eye(2)
        lower = process.chol(jnp.float64(t))
        np.testing.assert_allclose(cld.multiply(lower, lower), expected, rtol=1e-9, atol=1e-12 * (1 + mass))
        assert lower[0, 1] == 0 and lower[0, 0] > 0 and lower[1, 1] > 0


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(mass=0.0), "mass must be positive and finite; got 0.0"),
        (dict(mass=-1.0), "mass must be positive and finite; got -1.0"),
        (dict(mass=float("inf")), "mass must be positive and finite; got inf"),
        (dict(gamma=-0.1), "gamma must be finite and not negative; got -0.1"),
        (dict(gamma=float("nan")), "gamma must be finite and not negative; got nan"),
        (dict(numerical_eps=-1e-9), "numerical_eps must be"),
        (dict(beta0=-1.0), "not negative and not zero throughout; got beta0 -1.0"),
        (dict(beta0=1.0, beta1=-2.0), "not negative"),
        (dict(beta0=0.0), "not zero throughout"),
        (dict(beta0=float("inf")), "must be finite"),
        (dict(beta1=float("nan")), "must be finite"),
        (dict(t_min=0.0), "t_min > 0"),
        (dict(t_min=2.0), "larger t_max; got 2.0 and 1.0"),
    ],
)
def test_bad_processes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        cld.process(**options)


# The network's part, and the loss.


def model_of(apply, **options):
    return Model(Network(None, apply), precond.cld(**options))


def zeros(params, x, c_noise, cond=None, *, dropout=None, taps=()):
    return jnp.zeros_like(x[..., : x.shape[-1] // 2])


@pytest.mark.parametrize("kind", precond.MATCHINGS)
def test_a_network_of_zeros_scores_gaussian_velocities(kind):
    """Mixed: -v / Var v, whatever the kernel; at the end of the process the velocities' own score."""
    bound = precond.velocity(model_of(zeros, mass=0.6, matching=kind), {})
    state = jax.random.normal(jax.random.key(0), (5, 4, 4, 2))
    v = cld.split(state)[1]
    chex.assert_trees_all_close(bound.score(state, 1.0), -v / 0.6, rtol=1e-2)
    t = jnp.linspace(0.01, 0.9, 5)
    variance = cld.covariance(bound.process, t)[:, 1, 1][:, None, None, None]
    chex.assert_trees_all_close(bound.score(state, t), -v / variance, rtol=1e-4)
    plain = precond.velocity(model_of(zeros, mixed_score=False), {})
    assert not np.any(plain.score(state, t))


def test_the_network_sees_state_time_condition_and_dropout():
    seen = {}

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        seen.update(params=params, x=x, c_noise=c_noise, cond=cond, dropout=dropout)
        return zeros(params, x, c_noise)

    state = jnp.ones((3, 2, 2, 2))
    for name, label in (("t", 0.5), ("log", np.log(0.5))):
        precond.velocity(model_of(apply, noise=name), "w", {"label": 1}, "key").noise(state, 0.5)
        np.testing.assert_allclose(seen.pop("c_noise"), [label] * 3, rtol=1e-6)
        chex.assert_trees_all_equal(seen.pop("x"), state)
        assert seen == {"params": "w", "cond": {"label": 1}, "dropout": "key"}


S = 0.5  # deviation of Gaussian data


def gaussian_score(process):
    """The exact velocity score of N(0, S^2) images: the state is Gaussian at all times."""

    def score(state, t):
        spread = cld.covariance(process, jnp.asarray(t, state.dtype), S**2)
        x, v = cld.split(state)
        xx, xv, vv = (spread[..., i, j][..., None] for i, j in ((0, 0), (0, 1), (1, 1)))
        return (xv * x - xx * v) / (xx * vv - xv**2)

    return score


@pytest.mark.parametrize("kind", precond.MATCHINGS)
@pytest.mark.parametrize("weighting", hybrid.WEIGHTINGS)
def test_the_exact_score_minimises_the_loss(kind, weighting, x64):
    x0 = S * jax.random.normal(jax.random.key(0), (8000, 1))
    objective = hybrid.objective(kind, weighting)
    draws = objective.draw(jax.random.key(1), x0.shape)
    draws["level"] = 0.05 + 0.95 * draws["level"]  # likelihood weights have no finite mean at zero

    def total(factor, shift):
        def noise(state, t):
            score = gaussian_score(process)(state, t)
            return -score / cld.precision(bound.lower(t))[..., None] * factor + shift

        bound = precond.Velocity(process, kind, noise)
        return float(objective.loss(bound, x0, draws).mean())

    process = cld.process()
    best = total(1.0, 0.0)
    assert best < min(total(f, d) for f, d in ((0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)))


def test_weights_are_their_formulas():
    process = cld.process(beta0=1.0, beta1=2.0, mass=0.25)
    t = jnp.array([0.1, 0.7])
    lower = process.chol(t)
    rate = 1.0 * (1 + 2 * t)  # Gamma beta
    np.testing.assert_allclose(hybrid.weight(process, "reweightedv2", t, lower), 1.0)
    np.testing.assert_allclose(hybrid.weight(process, "reweightedv1", t, lower), rate, rtol=1e-6)
    expected = rate / lower[:, 1, 1] ** 2
    np.testing.assert_allclose(hybrid.weight(process, "likelihood", t, lower), expected, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_perturbed_images_have_the_kernel_s_moments(gamma):
    process, num = cld.process(gamma=gamma, mass=0.6), 100_000
    t, key = jnp.full(num, 0.15), jax.random.key(0)
    x0 = jnp.full((num, 1), 0.7)
    v0 = jnp.sqrt(gamma * 0.6) * jax.random.normal(jax.random.key(1), x0.shape)
    noise = jax.random.normal(key, (num, 2))
    for state in (cld.perturb(process, x0, t, noise), cld.perturb(process, x0, t, noise, v0)):
        mean, spread = process.mean(0.15)[:, 0] * 0.7, cld.covariance(process, 0.15)
        np.testing.assert_allclose(state.mean(0), mean, atol=5 * np.sqrt(np.diag(spread).max() / num))
        np.testing.assert_allclose(np.cov(state.T), spread, rtol=0.03, atol=0.002)


# Samplers.


def runs(solver, u, steps, score, times, noise=None):
    return driver.sample(score, solver, u, times(steps), noise=noise)


@pytest.mark.parametrize("method, order", [("heun", 2), ("4rk", 4)])
@pytest.mark.parametrize("case", CASES[:2])
def test_the_flow_converges_to_the_data(method, order, case, x64):
    """On Gaussian data the flow is linear: it takes the covariance at the start to that at the end."""
    process = made(case)
    times, unit = sscs.times(process, end=0.05), jnp.eye(2)  # rows: (x, v) of one coordinate each
    score = jax.jit(gaussian_score(process))

    def end_of(method, steps):
        return np.asarray(runs(sscs.ode(process, method), unit, steps, score, times)).T

    fine = end_of("4rk", 400)
    errors = [np.abs(end_of(method, n) - fine).max() for n in (40, 80)]
    assert np.log2(errors[0] / errors[1]) > order - 0.4
    start = np.asarray(cld.covariance(process, jnp.float64(1.0), S**2))
    end = np.asarray(cld.covariance(process, jnp.float64(0.05), S**2))
    np.testing.assert_allclose(fine @ start @ fine.T, end, atol=1e-6)


def variance(solver, process, steps, draws):
    """Exact covariance of (x, v) at the end of a linear sampler, from its response to every unit draw."""
    times = sscs.times(process, "linear", 0.05)
    count = 2 + 2 * draws * steps
    lower = np.linalg.cholesky(np.asarray(cld.covariance(process, jnp.float64(1.0), S**2)))

    def noise(step, draw):  # rows 0 and 1 are the start, then one a draw for x and for v
        first = 2 + 2 * (draws * step + draw)
        return (jnp.arange(count)[:, None] == first + jnp.arange(2)).astype(jnp.float64)

    u = jnp.zeros((count, 2)).at[:2].set(lower.T)
    out = np.asarray(runs(solver, u, steps, gaussian_score(process), times, noise))
    return out.T @ out


@pytest.mark.parametrize("name, draws", [("em", 1), ("sscs", 2)])
@pytest.mark.parametrize("case", CASES[:2])
def test_stochastic_samplers_converge_to_the_data_s_variance(name, draws, case, x64):
    process = made(case)
    solver = sscs.PHASE_SOLVERS[name](process)
    exact = np.asarray(cld.covariance(process, jnp.float64(0.05), S**2))
    errors = [np.abs(variance(solver, process, n, draws) - exact).max() for n in (100, 200)]
    assert errors[1] < 0.1 and errors[0] / errors[1] > 1.8


def test_splitting_is_exact_where_the_score_is_that_of_the_end(x64):
    """s = -v / M makes the middle part vanish; what is left keeps N(0, 1) x N(0, M), however few the steps."""
    process = made(CASES[1])
    end = lambda state, t: -cld.split(state)[1] / process.mass
    lower, count, steps = np.diag([1.0, process.mass**0.5]), 2 + 4 * 3, 3

    def noise(step, draw):
        first = 2 + 2 * (2 * step + draw)
        return (jnp.arange(count)[:, None] == first + jnp.arange(2)).astype(jnp.float64)

    u = jnp.zeros((count, 2)).at[:2].set(lower)
    times = sscs.times(process)
    for options in (dict(), dict(repeat_interval=True)):
        out = np.asarray(runs(sscs.sscs(process, **options), u, steps, end, times, noise))
        np.testing.assert_allclose(out.T @ out, lower**2, atol=1e-12)


def test_half_steps_of_their_own_intervals_add_up_to_whole_ones(x64):
    """Where beta grows, the authors' halves do not; where it is constant, both are one."""
    process = made(CASES[1])
    levels = sscs.times(process)(4)
    clocks = np.asarray(process.clock(levels)) / np.sqrt(process.mass)
    flip = np.array([[1, -1], [-1, 1]])
    whole = np.asarray(cld.transition(-np.diff(clocks), process.mass)) * flip
    exact, repeated = (
        np.asarray(sscs.sscs(process, repeat_interval=repeat).table(levels).linear) for repeat in (False, True)
    )
    np.testing.assert_allclose(exact[:, 1] @ exact[:, 0], whole, atol=1e-13)
    assert np.abs(repeated[:, 1] @ repeated[:, 0] - whole).max() > 0.01
    constant = made(CASES[0])
    tables = [sscs.sscs(constant, repeat_interval=repeat).table(levels) for repeat in (False, True)]
    chex.assert_trees_all_close(*tables, atol=1e-13)


def test_the_last_step_denoises(x64):
    """One Euler step of the reverse process without its noise: all of the state, by hand."""
    process, t = made(CASES[0]), 0.05
    x0, noise = jnp.linspace(-1, 1, 5)[:, None], jax.random.normal(jax.random.key(3), (5, 2))
    u = cld.perturb(process, x0, jnp.full(5, t), noise)
    found = sscs.denoised(process, gaussian_score(process), u, t)
    (x, v), score = cld.split(u), gaussian_score(process)(u, t)
    beta, friction, mass = float(process.clock(1.0)), 2 * process.mass**0.5, process.mass  # beta is constant
    back = v + t * beta * (x + friction / mass * v + 2 * friction * score)
    np.testing.assert_allclose(found, jnp.concatenate([x - t * beta * v / mass, back], -1), rtol=1e-9)


def test_times_run_from_the_process_s_end_to_the_asked_one():
    process = cld.process()
    linear, quadratic = (sscs.times(process, name, 1e-3)(5) for name in ("linear", "quadratic"))
    for levels in (linear, quadratic):
        assert levels[0] == 1 and levels[-1] == 1e-3 and np.all(np.diff(levels) < 0)
    np.testing.assert_allclose(np.diff(linear), -0.999 / 5)
    np.testing.assert_allclose(1 - quadratic, 0.999 * (1 - ((5 - np.arange(6)) / 5) ** 2))


SHAPE = (4, 4, 1)


def small(kind="mlp", **options):
    """A model of images: a U-Net, or the perceptron where any network will do."""
    unet = dict(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    network = song.build(unet, SHAPE) if kind == "song" else mlp.build({"hidden": (8,)}, SHAPE)
    return Model(network, precond.cld(**options))


@pytest.mark.parametrize("name, nfe, kind", [("sscs", 6, "song"), ("em", 5, "mlp"), ("ode", 7, "mlp")])
def test_samplers_cost_what_they_say_and_depend_on_their_keys(name, nfe, kind):
    """An image network takes twice the channels and gives those of the image."""
    model, calls = small(kind), []
    shape = precond.input_shape(model, SHAPE)
    assert shape == (4, 4, 2)
    params = model.network.init(jax.random.key(0), jnp.zeros((1, *shape)), {})

    def apply(params, x, *rest, **more):
        jax.debug.callback(lambda: calls.append(1))
        chex.assert_shape(x, (None, 4, 4, 2))
        return model.network.apply(params, x, *rest, **more)

    watched = model._replace(network=Network(model.network.init, apply))
    made = sampling.samplers({"one": dict(name=name, nfe=nfe)}, watched, None, SHAPE)["one"]
    keys = rng.image_keys(jax.random.key(1), jnp.arange(3))
    images = jax.block_until_ready(jax.jit(made.generate)(params, {}, keys, {}))
    jax.effects_barrier()
    assert made.nfe == nfe == len(calls)
    chex.assert_shape(images, (3, *SHAPE))
    chex.assert_tree_all_finite(images)
    turned = jax.jit(made.generate)(params, {}, keys[::-1], {})
    chex.assert_trees_all_close(turned[::-1], images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "request_of, words",
    [
        (dict(name="heun", nfe=9), "no CLD sampler 'heun'; known: sscs, em, ode"),
        (dict(name="sscs", nfe=9, order=2), "no option 'order'"),
        (dict(name="ode", nfe=8), "exactly 8 network calls; use 7 or 9"),
        (dict(name="ode", nfe=1), "exactly 1 network calls; use 3 or 5"),
        (dict(name="ode", nfe=9, method="rk45"), "methods heun, 3kutta"),
        (dict(name="sscs", nfe=9, stabilizer=-1.0), "not negative; got -1.0"),
        (dict(name="em", nfe=9, end=1e-6), "sampling cannot end at t = 1e-06"),
        (dict(name="em", nfe=9, end=1.0), "runs from 1e-05 to 1; sampling cannot end at t = 1"),
        (dict(name="em", nfe=9, spacing="cubic"), "quadratic or linear; got 'cubic'"),
        (dict(name="em"), "needs the setting nfe"),
    ],
)
def test_bad_samplers_are_refused(request_of, words):
    with pytest.raises(ValueError, match=words):
        sampling.samplers({"bad": request_of}, small(), None, SHAPE)


def test_stochastic_samplers_ask_for_noise():
    process = cld.process()
    for name in ("em", "sscs"):
        solver = sscs.PHASE_SOLVERS[name](process)
        with pytest.raises(ValueError, match="pass noise"):
            driver.sample(gaussian_score(process), solver, jnp.ones((1, 2)), sscs.times(process)(3))


# In a run.


def parts_of(model, objective):
    return Parts({"student": model}, {"student": optax.adam(1e-2)}, (2,), objective=objective)


def test_the_teacher_method_trains_it():
    """The same method as for denoisers learns N(1, 0.1^2): its loss falls, and the flow ends at the data."""
    model = Model(mlp.build({"hidden": (32, 32)}, (2,)), precond.cld(noise="log", numerical_eps=1e-6))
    request = {"flow": dict(name="ode", nfe=61), "sscs": dict(name="sscs", nfe=100)}
    config = dict(samplers=request, ema_half_life=2e3, ema_ramp=None)
    method = teacher.build(config, parts_of(model, hybrid.objective()))
    state = method.init(jax.random.key(0), {})
    assert state.params["W1"].shape == (4, 32) and state.params["W3"].shape == (32, 2)

    @jax.jit
    def step(state, key):
        x = 1 + 0.1 * jax.random.normal(rng.stream(key, "data"), (128, 2))
        batch = {"image": x, "label": jnp.zeros(128, jnp.int32)}
        return method.update(state, {}, batch, method.draw(key, batch, None), None)

    losses = []
    for n in range(400):
        state, metrics = step(state, jax.random.key(n))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-50:]) < 0.6 * np.mean(losses[:10])
    keys = rng.image_keys(jax.random.key(1), jnp.arange(500))
    for name, sampler in method.samplers.items():
        images = sampler.generate(method.weights(state), {}, keys, {})
        np.testing.assert_allclose(images.mean(0), 1.0, atol=0.1, err_msg=name)
        assert images.std() < 0.4, name


@pytest.mark.parametrize(
    "model, objective, words",
    [
        (small(), matching.edm(), "a model of CLD is no denoiser"),
        (Model(small().network, precond.edm()), hybrid.objective(), "needs a model with precond cld"),
        (small(matching="dsm"), hybrid.objective("hsm"), "has matching hsm, its model dsm"),
    ],
)
def test_objectives_of_another_model_are_refused_at_build(model, objective, words):
    with pytest.raises(ValueError, match=words):
        teacher.build({}, parts_of(model, objective))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: precond.build(dict(name="cld", mass=-0.25)), "mass must be positive"),
        (lambda: precond.build(dict(name="cld", noise="sigma")), "told t or log; got noise 'sigma'"),
        (lambda: precond.build(dict(name="cld", matching="ism")), "hsm or dsm; got 'ism'"),
        (lambda: precond.build(dict(name="cld", input_scale=dict(name="edm"))), "no preconditioner 'cld'"),
        (lambda: matching.build(dict(name="cld", weighting="snr")), "weighting reweightedv2, .*got 'snr'"),
        (lambda: matching.build(dict(name="cld", matching="ism")), "matching hsm, dsm; got 'ism'"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_weights_of_another_process_are_refused():
    config = experiment.load("lab_cld:smoke")
    config.init_from = "lab_edm:smoke"
    with pytest.raises(ValueError, match="tied to their process"):
        assemble(config, outline=True)
    config.init_from = "lab_cld:smoke"
    assert assemble(config, outline=True).prerequisites == {"initial": "lab_cld:smoke"}
    config.models.student.precond.mass = 0.5
    with pytest.raises(ValueError, match="'mass': 0.25.*'mass': 0.5"):
        assemble(config, outline=True)


def test_students_of_it_are_refused():
    config = experiment.load("sid_digits:smoke")
    config.teacher = "cld_digits:smoke"
    with pytest.raises(ValueError, match="is of CLD, which is no denoiser, so method sid"):
        assemble(config, outline=True)
