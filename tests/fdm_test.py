"""FDM: the oscillator against numerical integration, invariance of every sampler, warm-up, its teachers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.special import gammainc

from fastdiff_jax import precond, registry, rng
from fastdiff_jax.losses import matching
from fastdiff_jax.methods import teacher
from fastdiff_jax.networks import mlp
from fastdiff_jax.processes import cld, fdm, gaussian, oscillator
from fastdiff_jax.runtime import commands, experiment, optimizers
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import assemble
from fastdiff_jax.solvers import driver, named, schedules
from fastdiff_jax.types import Model, Network, Parts

T = np.linspace(0.02, 1.0, 9)
BASES = ("vp", "ve", "edm")
SOLVERS = registry.entries("solvers", "SOLVERS")


# The oscillator.


@pytest.mark.parametrize("damping", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("frequency", [1.0, 2.0])
def test_the_oscillator_is_the_solution_of_its_moment_equations(damping, frequency, x64):
    w, z = frequency, damping
    drift = np.array([[0.0, 1.0], [-(w**2), -2 * z * w]])
    noise = np.diag([0.0, 4 * z * w**3])

    def slope(_, y):
        phi, spread = y[:4].reshape(2, 2), y[4:].reshape(2, 2)
        return np.concatenate([(drift @ phi).ravel(), (drift @ spread + spread @ drift.T + noise).ravel()])

    start, times = np.concatenate([np.eye(2).ravel(), np.zeros(4)]), np.linspace(0, 4, 30)
    found = solve_ivp(slope, (0, 4), start, "DOP853", times, rtol=1e-12, atol=1e-14).y.T.reshape(-1, 2, 2, 2)
    b = w * jnp.asarray(times)
    np.testing.assert_allclose(oscillator.transition(b, w, z), found[:, 0], atol=1e-10)
    np.testing.assert_allclose(oscillator.covariance(b, w, z), found[:, 1], atol=1e-10)
    np.testing.assert_allclose(oscillator.response(b, z), found[:, 0, 0, 0], atol=1e-10)


@pytest.mark.parametrize("damping", [0.3, 1.0, 2.5])
def test_variances_keep_their_digits_in_single_precision(damping):
    b = np.geomspace(1e-4, 20, 400).astype(np.float32)
    spread = jax.jit(lambda b: oscillator.covariance(b, 2.0, damping))
    single = spread(jnp.asarray(b))
    with jax.enable_x64(True):
        double = np.asarray(spread(jnp.asarray(b, jnp.float64)))
    diagonal = (..., [0, 1], [0, 1])
    np.testing.assert_allclose(single[diagonal], double[diagonal], rtol=1e-5)
    assert np.all(double[..., 0, 0] > 0)


def test_critical_damping_decays_fastest_without_a_change_of_sign(x64):
    b = jnp.linspace(2.0, 20.0, 50)
    critical, over, under = (oscillator.response(b, z) for z in (1.0, 1.5, 0.8))
    assert np.all(critical > 0) and np.all(over > critical) and under.min() < 0
    near = oscillator.response(b, 1 + 1e-8), oscillator.response(b, 1 - 1e-8)
    chex.assert_trees_all_close(near, (critical, critical), atol=1e-7)


def test_strong_damping_does_not_overflow():
    chex.assert_tree_all_finite(oscillator.response(jnp.linspace(0.0, 100.0, 20), 30.0))


@given(st.floats(1e-4, 0.9))
@settings(deadline=None, max_examples=20)
def test_heavy_ball_is_its_recursion(step):
    gamma, means = oscillator.heavy_ball(step, 40)
    for k in range(1, 40):
        before = means[k - 1]
        np.testing.assert_allclose(means[k + 1], (1 - step + gamma) * means[k] - gamma * before, atol=1e-12)
    assert means[0] == 1 and means[1] == pytest.approx(1 - step)  # the first step is plain descent


def test_heavy_ball_tends_to_the_oscillator(x64):
    """Step (w h)^2 for time steps h: the error is of first order in h."""
    errors = []
    for h in (0.02, 0.01):
        _, means = oscillator.heavy_ball(h**2, round(5 / h))
        errors.append(np.abs(means - oscillator.response(h * np.arange(len(means)))).max())
    assert errors[0] < 0.02 and errors[0] / errors[1] == pytest.approx(2, abs=0.2)


# The processes.


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("damping", [0.5, 1.0, 1.5])
def test_drift_and_diffusion_generate_the_kernel(base, damping, x64):
    """dx = f x dt + g dw has the mean s and the variance (s sigma)^2: moments integrated from t = 0.05 on."""
    process = fdm.PROCESSES[base](1.0, damping=damping)
    drift = jax.jit(lambda t: gaussian.drift(process, t))
    diffusion = jax.jit(lambda t: gaussian.diffusion(process, t))

    def slope(t, y):
        f, g = float(drift(t)), float(diffusion(t))
        return [f * y[0], 2 * f * y[1] + g**2]

    times = jnp.array([0.05, 0.2, 0.35])  # before the mean of the weakly damped one passes through zero
    mean, spread = process.scale(times), process.scale(times) * process.sigma(times)
    start = [float(mean[0]), float(spread[0]) ** 2]
    found = solve_ivp(slope, (0.05, 0.35), start, "DOP853", times, rtol=1e-11, atol=1e-13).y
    np.testing.assert_allclose(found, [mean, spread**2], rtol=1e-8)


def test_the_drift_of_fdm_is_its_closed_form(x64):
    process, t = fdm.edm(2.0), jnp.asarray(T)
    u = 2 * fdm.clock(t)
    chex.assert_trees_all_close(gaussian.drift(process, t), -u / (1 + u) * 2 * (0.1 + 19.9 * t), rtol=1e-10)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("time", fdm.TIMES)
def test_times_run_from_end_to_end_and_are_inverted(base, time, x64):
    process = fdm.PROCESSES[base](time=time)
    ends = {"edm": (0.002, 80.0), "vp": (1.000498e-3, 152.16697), "ve": (0.02, 100.0)}[base]
    np.testing.assert_allclose(process.sigma(jnp.array([0.0, 1.0])), ends, rtol=1e-6)
    np.testing.assert_allclose(process.inverse(process.sigma(jnp.asarray(T))), T, rtol=1e-9)
    np.testing.assert_allclose(process.scale(jnp.array([0.0])), 1.0)
    linear = np.allclose(np.diff(process.sigma(jnp.asarray(T))), np.diff(T)[0] * (ends[1] - ends[0]))
    assert linear == (time == "sigma_linear" or base == "edm")


def test_scales_are_the_tabulated_ones(x64):
    """s at sigma 1, 10, 20, 40, 80, worked out by hand."""
    sigma = jnp.array([1.0, 10.0, 20.0, 40.0, 80.0])
    for process, expected in (
        (fdm.edm(2.0), [0.99998, 0.9548, 0.629, 0.0380, 3.9e-8]),
        (fdm.edm(1.0), [1.0, 0.9874, 0.862, 0.280, 4.8e-4]),
        (fdm.vp(2.0), [1.0, 0.9954, 0.946, 0.582, 0.0243]),
        (fdm.ve(7.0), [1.0, 0.9945, 0.934, 0.515, 0.0118]),  # the multiplier is taken, and not used
    ):
        np.testing.assert_allclose(process.scale(process.inverse(sigma)), expected, rtol=1e-2)


@pytest.mark.parametrize("double", [False, True])
def test_the_momentum_process_is_the_position_of_cld(double):
    with jax.enable_x64(double):
        process, t = fdm.momentum(3.0), jnp.asarray(T)
        u = 3 * fdm.clock(t)
        tight = dict(rtol=1e-9 if double else 2e-5)
        np.testing.assert_allclose((process.scale(t) * process.sigma(t)) ** 2, gammainc(3, 2 * u), **tight)
        phase = cld.process(beta0=0.1, beta1=19.9, mass=1 / 9, gamma=0.0, numerical_eps=0.0)
        np.testing.assert_allclose(process.scale(t), phase.mean(t)[:, 0, 0], **tight)
        np.testing.assert_allclose(process.scale(t) * process.sigma(t), phase.chol(t)[:, 0, 0], **tight)
        there, slope = jax.jit(lambda t: jax.jvp(lambda t: process.inverse(process.sigma(t)), (t,), (t,)))(t)
        np.testing.assert_allclose(there, t, rtol=1e-9 if double else 1e-4)
        np.testing.assert_allclose(slope, t, rtol=1e-8 if double else 1e-3)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: fdm.edm(0.0), "multiplier must be positive and finite; got 0.0"),
        (lambda: fdm.vp(-1.0), "multiplier must be positive and finite; got -1.0"),
        (lambda: fdm.ve(float("nan")), "multiplier must be positive and finite; got nan"),
        (lambda: fdm.edm(damping=0.0), "damping must be positive"),
        (lambda: fdm.edm(beta_d=0.0, beta_min=0.0), "grow the clock"),
        (lambda: fdm.edm(time="tau"), "sigma_linear or native; got 'tau'"),
        (lambda: fdm.momentum(damping=0.5), "below critical damping"),
        (lambda: fdm.momentum(t_min=0.0), "in \\(0, 1\\); got 0.0"),
        (lambda: oscillator.transition(1.0, -1.0), "frequency must be positive"),
        (lambda: oscillator.heavy_ball(1.5, 3), "in \\(0, 1\\); got 1.5"),
        (lambda: precond.build(dict(name="edm", input_scale=dict(name="edn"))), "no input scale 'edn'"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# The network's input.


@pytest.mark.parametrize("base", BASES)
def test_only_the_input_scale_changes(base, x64):
    plain = precond.build(dict(name=base))
    made = precond.build(dict(name=base, input_scale=dict(name=base, multiplier=1.5)))
    sigma = jnp.geomspace(0.03, 70.0, 20)
    before, after = plain.coefficients(sigma), made.coefficients(sigma)
    chex.assert_trees_all_equal(after._replace(inp=before.inp), before)
    process = fdm.PROCESSES[base](1.5)
    np.testing.assert_allclose(after.inp, process.scale(process.inverse(sigma)), rtol=1e-12)
    ends = {"edm": (0.002, 80.0), "vp": (1.000498e-3, 152.16697), "ve": (0.02, 100.0)}[base]
    np.testing.assert_allclose((made.sigma_min, made.sigma_max), ends, rtol=1e-6)


def test_levels_outside_the_process_are_refused():
    made = precond.build(dict(name="ve", input_scale=dict(name="ve")))
    with pytest.raises(ValueError, match="from 0.02 to 100; the schedule asks for 0.002"):
        named.sampler("heun", 35, schedule=schedules.polynomial(0.002, 80.0), precond=made)


def mixture(x, sigma):
    """Two modes at +-0.5 of deviation 0.3 in every coordinate: the exact denoiser."""
    variance = 0.09 + sigma[:, None] ** 2
    return (0.09 * x + sigma[:, None] ** 2 * 0.5 * jnp.tanh(0.5 * x / variance)) / variance


LEVEL = {  # from c_noise
    "edm": lambda c: jnp.exp(4 * c),
    "ve": lambda c: 2 * jnp.exp(c),
    "vp": lambda c: jnp.sqrt(jnp.expm1(9.95 * (c / 999) ** 2 + 0.1 * c / 999)),
}
RANGE = {"edm": (0.002, 80.0), "vp": np.sqrt(np.expm1([1e-6 + 9.95e-10, 10.05])), "ve": (0.02, 100.0)}


def fed_with(scale, base):
    """A network that undoes its input's scale and knows the exact denoiser: F = (D* - c_skip x) / c_out."""

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        sigma = LEVEL[base](c_noise)
        x = x / scale(sigma)[:, None]
        c = precond.PRECONDS[base]().coefficients(sigma)
        return (mixture(x, sigma) - c.skip[:, None] * x) / c.out[:, None]

    return Network(None, apply)


def response(sigma, base, multiplier):
    """The scale, written out."""
    low, high = RANGE[base]
    t = (sigma - low) / (high - low)
    u = multiplier * (0.1 * t + 9.95 * t**2)
    return jnp.exp(-u) * (1 + u)


def denoisers(base):
    """The exact denoiser through the base preconditioner and FDM's; and FDM's with the base's network."""
    multiplier = 1.0 if base == "ve" else 1.7
    plain = precond.PRECONDS[base]()
    ours = fed_with(functools.partial(response, base=base, multiplier=multiplier), base)
    theirs = fed_with(lambda sigma: plain.coefficients(sigma).inp, base)
    with_fdm = precond.with_input_scale(plain, fdm.PROCESSES[base](multiplier))
    models = Model(theirs, plain), Model(ours, with_fdm), Model(theirs, with_fdm)
    return [jax.jit(precond.denoiser(model, {})) for model in models]


def sampled(name, denoise, base):
    """One run of a solver from the largest to the smallest level, its loops in Python: nothing to compile."""
    high = 70.0
    x = high * jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))

    def compiled(x, sigma):
        with jax.disable_jit(False):
            return denoise(x, sigma)

    noise = lambda step, draw: jnp.cos(1.0 + step + 10.0 * draw + jnp.arange(3.0))
    levels = schedules.polynomial(0.05, high, zero=False)(6)
    with jax.disable_jit():
        return driver.sample(compiled, SOLVERS[name](), x, levels, noise=noise)


@pytest.mark.parametrize("base", BASES)
def test_every_sampler_is_the_same_with_and_without_fdm(base, x64):
    """The kernel's noise-to-signal ratio is that of the base process, so its exact samples are too."""
    plain, with_fdm, wrong = denoisers(base)
    assert len(SOLVERS) > 40
    for name in SOLVERS:
        expected = sampled(name, plain, base)
        np.testing.assert_allclose(sampled(name, with_fdm, base), expected, rtol=1e-9, atol=1e-11, err_msg=name)
    # The comparison can fail: a network that undoes the base process's scale makes other images.
    assert np.abs(sampled("heun", wrong, base) - sampled("heun", plain, base)).max() > 1e-3


def test_scaled_coordinates_converge_to_the_same_flow(x64):
    """The documented option: the same end, approached more slowly, as the scale falls fast at large noise."""
    plain, _, _ = denoisers("edm")
    x = 80 * jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)))

    def end(steps, **options):
        solver = SOLVERS["generalised"](**options)
        return driver.sample(plain, solver, x, schedules.polynomial(0.05, 80.0, zero=False)(steps))

    exact = end(1500)
    errors = {n: jnp.abs(end(n, scaling="fdm", multiplier=1.0) - exact).max() for n in (300, 600)}
    assert errors[600] < 0.01 and errors[300] / errors[600] > 3  # of second order
    assert jnp.abs(end(300) - exact).max() < errors[300] / 5


# The warm-up of the loss weights.


def test_the_cap_grows_from_5_to_500_and_is_lifted():
    cap = matching.weight_cap(np.arange(12), 10)
    np.testing.assert_allclose(cap[:10], 5 * 100 ** (np.arange(10) / 10), rtol=1e-5)
    assert np.all(np.isinf(cap[10:])) and np.isinf(matching.weight_cap(0, 0))
    np.testing.assert_allclose(jax.jit(matching.weight_cap, static_argnums=1)(5, 10), 50.0, rtol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_weights_are_capped_during_the_warm_up_only(base):
    warmed, plain = (matching.OBJECTIVES[base](warmup=w) for w in (10, 0))
    x0 = jnp.zeros((256, 2))
    draws = plain.draw(jax.random.key(0), x0.shape)
    wrong = lambda x, sigma: jnp.ones_like(x)  # so that the loss is the weight
    weight = plain.loss(wrong, x0, draws)
    assert weight.max() > 50 > 5 > weight.min()
    for step, cap in ((0, 5.0), (5, 50.0), (10, np.inf)):
        np.testing.assert_allclose(warmed.loss(wrong, x0, draws, step=step), np.minimum(weight, cap), rtol=1e-5)
    with pytest.raises(ValueError, match="needs the step"):
        warmed.loss(wrong, x0, draws)
    with pytest.raises(ValueError, match="number of steps; got -1"):
        matching.OBJECTIVES[base](warmup=-1)


def test_a_teacher_s_warm_up_is_a_function_of_its_step():
    """One state, one batch, one set of draws: the loss differs by the step alone, and not once it is over."""
    shape = (3,)
    made = precond.build(dict(name="edm", input_scale=dict(name="edm")))
    model = Model(mlp.build({"hidden": (16,)}, shape), made)
    tx = optimizers.build(dict(name="adam", learning_rate=1e-3), 8, 800.0)
    parts = Parts({"student": model}, {"student": tx}, shape, objective=matching.edm(warmup=10))
    method = teacher.build({}, parts)
    batch = {"image": 0.5 * jax.random.normal(jax.random.key(1), (64, *shape))}
    state, draws = method.init(jax.random.key(0), {}), method.draw(jax.random.key(1), batch, None)
    update = jax.jit(method.update, static_argnums=4)

    def loss(step):
        return float(update(state._replace(step=jnp.int32(step)), {}, batch, draws, None)[1]["loss"])

    losses = [loss(step) for step in (0, 5, 10, 90)]
    assert losses[0] < losses[1] < losses[2] == losses[3]


# Teachers of students, and of nothing else.


def with_teacher(stem, reference):
    """A student's smoke config on another teacher; the lab's, whose teacher is exact, takes a learned one."""
    config = experiment.load(f"{stem}:smoke")
    if stem.startswith("lab"):
        config.models = {role: dict(like="teacher") for role in config.models}
        config.init_from = ""
    config.teacher = reference
    return config


def one_step(config):
    """A smoke run's first step, from fresh teacher weights."""
    job = assemble(config)
    frozen, initial = commands.basis_shapes(job)
    fresh = lambda leaf: 0.05 * jax.random.normal(jax.random.key(0), leaf.shape)
    frozen = jax.tree.map(fresh, frozen) | initial
    state = jax.jit(job.method.init)(rng.root(0, "init"), frozen)
    shape = job.parts.shape
    batch = {"image": 0.5 * jnp.ones((4, *shape)), "label": jnp.arange(4, dtype=jnp.int32)}
    variant = job.method.variant(0, 0)
    draws = job.method.draw(rng.root(0, "train"), batch, variant)
    return job, jax.jit(job.method.update, static_argnums=4)(state, frozen, batch, draws, variant)


@pytest.mark.parametrize("stem", ["lab_sid", "lab_sfd"])
def test_an_fdm_teacher_teaches_students(stem):
    config = with_teacher(stem, "lab_fdm:smoke")
    job, (state, metrics) = one_step(config)
    chex.assert_tree_all_finite((state, metrics))
    sigma = jnp.array([2.5, 20.0])
    for role, model in job.parts.models.items():  # the students see their input as the teacher does
        scale = model.precond.coefficients(sigma).inp
        np.testing.assert_allclose(scale, response(sigma, "edm", 2.0), rtol=1e-4, err_msg=role)


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["sid_digits", "sfd_digits"])
def test_digits_students_are_trained_from_it(stem, tmp_path):
    """By the config alone: the teacher first, then the student, with the teacher's input scale."""
    config = experiment.load(f"{stem}:smoke")
    config.teacher = "fdm_digits:smoke"
    run = experiment.Experiment(stem, config, tmp_path / stem)
    assert commands.fit(run)
    above = experiment.prerequisite("fdm_digits:smoke", run.workdir)
    assert commands.finished(above) and commands.finished(run)
    job, mesh = assemble(config), meshes.make(config.mesh)
    weights, (frozen, _) = commands.product(job, run, mesh), commands.starting_weights(job, run, mesh)
    chex.assert_trees_all_equal(frozen["teacher"], commands.product(assemble(above.config), above, mesh))
    (sampler, *_), keys = job.method.samplers.values(), rng.image_keys(jax.random.key(0), jnp.arange(4))
    images = jax.jit(sampler.generate)(weights, frozen, keys, {"label": jnp.eye(10)[:4]})
    chex.assert_shape(images, (4, 8, 8, 1))
    chex.assert_tree_all_finite(images)
    for role, model in job.parts.models.items():
        scale = model.precond.coefficients(jnp.array([20.0])).inp
        np.testing.assert_allclose(scale, response(20.0, "edm", 2.0), rtol=1e-4, err_msg=role)


def test_a_run_of_another_process_is_refused(tmp_path):
    """A work directory holds one process: neither training nor sampling goes on with another's weights."""
    run = experiment.prerequisite("lab_fdm:smoke", tmp_path / "any")
    assert commands.fit(run)
    for words, key in (("vp", "models.student.precond.name"), ("plain", "precond.input_scale.multiplier")):
        other = run._replace(config=experiment.load(f"lab_fdm:{words},smoke"))
        job = assemble(other.config, outline=True)
        mesh = meshes.make(other.config.mesh)
        for refused in (lambda: commands.fit(other), lambda: commands.product(job, other, mesh)):
            with pytest.raises(ValueError, match=key) as caught:
                refused()
            assert "\n" not in str(caught.value)


def test_weights_of_another_process_are_refused():
    config = experiment.load("fdm_digits:smoke")
    for reference in ("edm_digits:smoke", "fdm_digits:vp,smoke"):
        config.init_from = reference
        with pytest.raises(ValueError, match="tied to their process"):
            assemble(config, outline=True)
    config.init_from = "fdm_digits:smoke"
    assert assemble(config, outline=True).prerequisites == {"initial": "fdm_digits:smoke"}
    config.models.student.precond.input_scale.multiplier = 1.0
    with pytest.raises(ValueError, match="'multiplier': 2.0.*'multiplier': 1.0"):
        assemble(config, outline=True)
    student = with_teacher("sid_digits", "fdm_digits:smoke")
    student.models.generator.precond = dict(input_scale=dict(name="edm", multiplier=1.0))
    with pytest.raises(ValueError, match="model generator"):
        assemble(student, outline=True)


@pytest.mark.parametrize("initial", ["edm_digits:smoke", "sid_digits:smoke"])
@pytest.mark.parametrize("stem", ["sid_digits", "sfd_digits"])
def test_a_student_does_not_start_from_weights_of_another_process(stem, initial):
    config = with_teacher(stem, "fdm_digits:smoke")
    config.init_from = initial
    with pytest.raises(ValueError, match=f"config.init_from '{initial}' was trained with precond"):
        assemble(config, outline=True)


CIFAR = dict(batch=512, rate=1e-3, dropout=0.13, p=0.12)
FACES = dict(batch=256, rate=2e-4, p=0.15, widths=(1, 2, 2, 2))
OFFICIAL = {  # of the authors' README and command line
    "fdm_cifar10": dict(CIFAR, m=2.0, warmup=200, widths=(2, 2, 2)),
    "fdm_cifar10:vp": dict(CIFAR, m=2.0, warmup=400, widths=(1, 2, 2, 2)),
    "fdm_cifar10:ve": dict(CIFAR, m=None, warmup=400, widths=(1, 2, 2, 2)),
    "fdm_ffhq64": dict(FACES, m=1.0, warmup=800, dropout=0.05),
    "fdm_ffhq64:vp": dict(FACES, m=1.0, warmup=400, dropout=0.05),
    "fdm_ffhq64:ve": dict(FACES, m=None, warmup=400, dropout=0.05),
    "fdm_afhqv2": dict(FACES, m=2.0, warmup=400, dropout=0.25),
    "fdm_afhqv2:vp": dict(FACES, m=2.0, warmup=400, dropout=0.25),
    "fdm_afhqv2:ve": dict(FACES, m=None, warmup=400, dropout=0.25),
}


@pytest.mark.parametrize("reference", OFFICIAL)
def test_the_official_settings_are_the_published_ones(reference):
    config = experiment.load(reference)
    network, adam = config.models.student.network, config.optimizers.student
    found = dict(
        batch=config.train.batch_size, rate=adam.learning_rate, dropout=network.dropout, p=config.augment.p,
        m=config.models.student.precond.input_scale.get("multiplier"), warmup=config.objective.warmup,
        widths=tuple(network.channel_mult),
    )  # fmt: skip
    assert found == OFFICIAL[reference]
    assert network.architecture == ("ncsnpp" if ":ve" in reference else "ddpmpp")
    assert config.train.batch_size * config.train.steps == pytest.approx(200e6, rel=1e-5)
    assert adam.ramp_images == 10e6 and config.method.ema_half_life == 500e3


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(name="edm", beta_d=float("nan")), "betas must grow the clock"),
        (dict(name="vp", beta_min=float("inf")), "betas must grow the clock"),
        (dict(name="edm", sigma_min=80.0, sigma_max=0.002), "run up from one end to the other"),
        (dict(name="edm", sigma_min=2.0, sigma_max=2.0), "run up from one end to the other"),
        (dict(name="vp", eps=2.0), "run up from one end to the other"),
        (dict(name="edm", multiplier="two"), "multiplier must be positive and finite; got two"),
    ],
)
def test_scales_without_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        precond.build(dict(name="edm", input_scale=options))


def test_the_words_of_a_config_choose_base_process_and_part():
    for base in BASES:
        full = experiment.load(f"fdm_digits:{base}")
        assert full.models.student.precond.name == full.objective.name == base
        assert full.objective.warmup > 0 and full.models.student.precond.input_scale.name == base
        plain = experiment.load(f"fdm_digits:{base},plain")
        assert plain.objective.warmup == 0 and "input_scale" not in plain.models.student.precond
        scale, warmup = (experiment.load(f"fdm_digits:{base},{part}") for part in ("scale", "warmup"))
        assert scale.models.student.precond == full.models.student.precond and scale.objective.warmup == 0
        assert warmup.objective.warmup == full.objective.warmup
        assert "input_scale" not in warmup.models.student.precond
    with pytest.raises(ValueError, match="at most; got edm, vp"):
        experiment.load("fdm_digits:vp,edm")
