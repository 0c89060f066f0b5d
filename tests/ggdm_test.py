"""GGDM: the family against DDIM and linear algebra, the kernel distance against loops, and its training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import precond, rng
from fastdiff_jax.losses import distances
from fastdiff_jax.methods import ggdm
from fastdiff_jax.runtime import commands, experiment
from fastdiff_jax.runtime.assemble import assemble
from fastdiff_jax.solvers import driver, learned, multistep, schedules
from fastdiff_jax.types import Model, Network, Parts

SIGMAS = np.array([10.0, 4.0, 1.5, 0.4, 0.0])  # K = 4 steps
EDM = SIGMAS[::-1]
ALPHA = 1 / np.sqrt(1 + EDM**2)
SIGMA = ALPHA * EDM
DEVIATION = 0.5


def mixture(x, sigma):
    """Two modes at +-1 of deviation 0.3, in every coordinate."""
    variance = 0.3**2 + jnp.square(sigma)
    return (0.3**2 * x + jnp.square(sigma) * jnp.tanh(x / variance)) / variance


def sampler_of(seed, steps):
    """Random M (K,K+1) and s (K,) of the paper's form, with the alpha and sigma of a VP process."""
    random = np.random.default_rng(seed)
    m = random.normal(size=(steps, steps + 1))
    m[:, 1:] *= np.arange(1, steps + 1) > np.arange(steps)[:, None]
    alpha = np.sort(random.uniform(0.05, 0.999, steps + 1))[::-1]
    return m, random.uniform(0, 1, steps), alpha, np.sqrt(1 - alpha**2)


def parameters(eta=0.0, **trained):
    return learned.parameters(*learned.ddim_coefficients(ALPHA, SIGMA, eta), ALPHA, SIGMA, **trained)


@jax.jit
def of_parameters(params):
    return learned.coefficients(params, ALPHA, SIGMA)


def carried(rows, x, sigmas, denoise=mixture, noise=None, **options):
    by_step = None if noise is None else (lambda step, draw: noise[step])
    return driver.sample(denoise, learned.ggdm(rows), x, sigmas, noise=by_step, **options)


def test_by_default_it_is_euler_to_the_bit():
    x = 10 * jax.random.normal(jax.random.key(0), (8, 3))
    found, exact = (driver.sample(mixture, s, x, SIGMAS) for s in (learned.ggdm(), multistep.euler()))
    chex.assert_trees_all_equal(found, exact)


def test_the_embedding_of_ddim_is_euler(x64):
    x = 10 * jax.random.normal(jax.random.key(0), (8, 3))
    m, s = learned.ddim_coefficients(ALPHA, SIGMA)
    noise = jax.random.normal(jax.random.key(1), (4, 8, 3))
    exact = driver.sample(mixture, multistep.euler(), x, SIGMAS)
    found = carried(learned.from_vp(m, s, ALPHA), x, SIGMAS, noise=noise)
    chex.assert_trees_all_close(found, exact, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 5))
def test_a_run_is_the_paper_s_recursion_and_conversions_invert(seed, steps):
    m, s, alpha, sigma = sampler_of(seed, steps)
    random = np.random.default_rng(seed + 1)
    z, noise = {steps: random.normal(size=(2, 3))}, random.normal(size=(steps, 2, 3))
    with jax.enable_x64(True):
        for k in reversed(range(steps)):  # the text's loop, in its own coordinates
            xhat = np.asarray(mixture(z[k + 1] / alpha[k + 1], sigma[k + 1] / alpha[k + 1]))
            past = sum(m[k, u] * z[u] for u in range(k + 1, steps + 1))
            z[k] = m[k, 0] * xhat + past + s[k] * noise[k]
        rows, sigmas = learned.from_vp(m, s, alpha), (sigma / alpha)[::-1]
        x = jnp.asarray(z[steps] / alpha[-1])
        trace = carried(rows, x, sigmas, noise=jnp.asarray(noise[::-1]), trace=True)
        for i, state in enumerate(trace.states):
            chex.assert_trees_all_close(alpha[steps - i] * state, z[steps - i], rtol=1e-9, atol=1e-9)
        back = learned.to_vp(rows, alpha)
    chex.assert_trees_all_close(back, (m, s), rtol=1e-12, atol=1e-12)


def test_marginals_are_those_of_a_run_with_a_perfect_prediction(x64):
    """A run is linear in x0, its start and its noise: unit vectors give mean and variance exactly."""
    m, s, alpha, sigma = sampler_of(0, 4)
    rows, sigmas = learned.from_vp(m, s, alpha), (sigma / alpha)[::-1]

    def states(x0, z, noise):
        trace = carried(rows, z / alpha[-1], sigmas, lambda x, sigma: x0, noise, trace=True)
        return (trace.states * alpha[::-1, None])[::-1]

    mean = states(jnp.ones(1), alpha[-1:], jnp.zeros((4, 1)))[:, 0]
    sources = jnp.eye(5)  # the start, and the four draws
    parts = states(jnp.zeros(5), sigma[-1] * sources[0], sources[1:])
    found = learned.marginals(m, s, alpha, sigma)
    chex.assert_trees_all_close(found, (mean, (parts**2).sum(1)), rtol=1e-12)


@pytest.mark.parametrize("solver", [
    multistep.dpmpp(1), multistep.dpmpp(2), multistep.dpmpp(3), multistep.dpmpp(3, False),
    multistep.euler("noise"),
])  # fmt: skip
def test_multistep_solvers_are_members_of_the_family(solver, x64):
    """Also once their coefficients are what is trained, but for the least spread."""
    x, rows = 10 * jax.random.normal(jax.random.key(0), (8, 3)), learned.embedded(solver, SIGMAS)
    exact = driver.sample(mixture, solver, x, SIGMAS)
    chex.assert_trees_all_close(carried(rows, x, SIGMAS), exact, rtol=1e-9, atol=1e-9)
    params = learned.parameters(*learned.to_vp(rows, ALPHA), ALPHA, SIGMA)
    found = carried(of_parameters(params), x, SIGMAS, noise=jnp.zeros((4, 8, 3)))
    chex.assert_trees_all_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_and_ddpm_keep_the_marginals(eta):
    m, s = learned.ddim_coefficients(ALPHA, SIGMA, eta)
    mean, variance = learned.marginals(m, s, ALPHA, SIGMA)
    np.testing.assert_allclose(mean, ALPHA, rtol=1e-12)
    np.testing.assert_allclose(variance, SIGMA**2, rtol=1e-12, atol=1e-15)
    if eta == 1:  # the posterior's variance, arXiv:2006.11239, eq. 7
        low, high = slice(None, -1), slice(1, None)
        ratio = (ALPHA[high] / ALPHA[low]) ** 2
        np.testing.assert_allclose(s**2, SIGMA[low] ** 2 / SIGMA[high] ** 2 * (1 - ratio), atol=1e-15)


@pytest.mark.parametrize("time", [False, True])
@pytest.mark.parametrize("pred", [False, True])
def test_training_starts_at_ddim_whatever_is_trained(time, pred, x64):
    params = parameters(time=time, pred=pred)
    assert params["states"].shape == (10,) and ("time" in params) is time and ("pred" in params) is pred
    rows = learned.coefficients(params, ALPHA, SIGMA)
    ddim = learned.ddim_rows(SIGMAS)
    np.testing.assert_allclose(rows.prediction, ddim.prediction, rtol=1e-12)
    np.testing.assert_allclose(rows.states, np.pad(ddim.states, ((0, 0), (0, 3))), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rows.spread * ALPHA[-2::-1], learned.LEAST, rtol=1e-9)
    if time:
        np.testing.assert_allclose(rows.level, SIGMAS[:-1], rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-3, 1.0, 10.0]))
def test_whatever_is_learned_spread_is_not_negative_and_levels_fall(seed, size):
    params = parameters(time=True, pred=True)
    keys = rng.image_keys(jax.random.key(seed), jnp.arange(len(params)))
    moved = {n: v + size * jax.random.normal(k, v.shape) for (n, v), k in zip(params.items(), keys)}
    rows = of_parameters(moved)
    learned.ggdm(rows)  # accepts what it checks
    assert (rows.spread >= 0).all() and (rows.level > 0).all() and (np.diff(rows.level) <= 0).all()
    np.testing.assert_allclose(rows.level[0], SIGMAS[0], rtol=1e-5)


def test_the_network_is_told_other_levels_and_other_predictions_are_formed(x64):
    told = []
    params = parameters(time=True, pred=True)
    params["time"] = params["time"] + jnp.array([0.5, 0.0, -0.5, 1.0])
    params["pred"] = params["pred"].at[0].set(jnp.array([0.2, 0.3]))
    rows = learned.coefficients(params, ALPHA, SIGMA)

    def denoise(x, sigma):
        jax.debug.callback(lambda level: told.append(float(level)), sigma, ordered=True)
        return mixture(x, sigma)

    x, noise = jax.random.normal(jax.random.key(0), (2, 3)), jnp.zeros((4, 2, 3))
    states = carried(rows, x, SIGMAS, denoise, noise, trace=True).states
    jax.effects_barrier()
    np.testing.assert_allclose(told, rows.level, rtol=1e-12)
    assert not np.allclose(told, SIGMAS[:-1])
    found = mixture(x, rows.level[0])
    xhat = found + 0.2 * ALPHA[-1] * x + 0.3 * (x - found) / SIGMAS[0]
    ratio = SIGMAS[1] / SIGMAS[0]
    np.testing.assert_allclose(states[1], (1 - ratio) * xhat + ratio * x, rtol=1e-9)


def test_the_kernel_distance_is_its_definition(x64):
    x, y = (np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate((4, 5)))
    k = lambda a, b: (a @ b / 3 + 1) ** 3
    within = lambda v: np.mean([k(a, b) for i, a in enumerate(v) for j, b in enumerate(v) if i != j])
    expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    np.testing.assert_allclose(distances.kernel_distance(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-12)


def test_halves_of_one_set_are_at_distance_zero_on_average():
    values = jax.random.normal(jax.random.key(0), (200, 2, 40, 4))
    found = jax.vmap(distances.kernel_distance)(values[:, 0], values[:, 1])
    assert (found < 0).mean() > 0.2  # unbiased, so not clipped
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(200)
    apart = jax.vmap(distances.kernel_distance)(values[:, 0], values[:, 1] + 0.5)
    assert apart.mean() > 20 * found.std() / np.sqrt(200)


def test_gradients_of_the_distance_reach_every_coefficient(x64):
    params = parameters(0.5, time=True, pred=True)
    x = 10 * jax.random.normal(jax.random.key(0), (6, 3))
    noise, real = jax.random.normal(jax.random.key(1), (4, 6, 3)), jax.random.normal(jax.random.key(2), (7, 3))

    @jax.jit
    def loss(params):
        return distances.kernel_distance(
            carried(learned.coefficients(params, ALPHA, SIGMA), x, SIGMAS, noise=noise), real
        )

    grads, step = jax.grad(loss)(params), 1e-6
    for name, values in params.items():
        for place in np.ndindex(values.shape):
            ends = [loss(params | {name: values.at[place].add(way)}) for way in (-step, step)]
            numeric = (ends[1] - ends[0]) / (2 * step)
            np.testing.assert_allclose(grads[name][place], numeric, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.any(np.abs(grads[name]) > 1e-6), name


def gaussian_denoiser():
    """The exact denoiser of N(0, DEVIATION^2) at identity preconditioning."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        variance = params["deviation"] ** 2
        return variance / (variance + sigma[:, None] ** 2) * x

    return Model(Network(None, apply), precond.identity())


def feature_net():
    """Features that are a fixed linear map of the points."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        return x, dict.fromkeys(taps, x @ params["map"])

    return Model(Network(None, apply), precond.identity())


FROZEN = {"teacher": {"deviation": jnp.array(DEVIATION)}, "features": {"map": jnp.eye(2)}}
PLAIN = schedules.polynomial(0.1, 10.0)


def method_of(labels=None, tx=None, model=None, **changes):
    models = {"teacher": model or gaussian_denoiser(), "features": feature_net()}
    parts = Parts(models, {"coefficients": tx or optax.adam(1e-2)}, (2,), labels, schedule=PLAIN)
    return ggdm.build(dict(steps=3) | changes, parts)


def batch_of(number, size=256):
    image = DEVIATION * jax.random.normal(jax.random.key(1000 + number), (size, 2))
    return {"image": image, "label": jnp.arange(size, dtype=jnp.int32) % 3}


def test_training_makes_the_samples_more_like_the_data():
    """Few steps of DDIM leave Gaussian data too narrow; coefficients that widen them exist."""
    method = method_of()
    first = method.init(jax.random.key(0), FROZEN)

    @jax.jit
    def trained(state):
        def body(state, number):
            batch = batch_of(number)
            draws = method.draw(jax.random.fold_in(jax.random.key(0), number), batch, None)
            return method.update(state, FROZEN, batch, draws, None)

        return jax.lax.scan(body, state, jnp.arange(300))

    last, metrics = trained(first)
    chex.assert_tree_all_finite(metrics)
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(20000))
    widths = [method.samplers["ggdm 3"].generate(s.params, FROZEN, keys, {}).std() for s in (first, last)]
    errors = np.abs(np.array(widths) - DEVIATION)
    assert errors[0] > 0.03 and errors[1] < errors[0] / 4, widths
    assert metrics["loss"][-50:].mean() < metrics["loss"][:10].mean() / 4


def test_rematerialisation_changes_no_gradient(x64):
    """One step of plain descent shows the gradient."""
    found = []
    for remat in (False, True):
        method = method_of(tx=optax.sgd(1.0), remat=remat, time=True)
        state = method.init(jax.random.key(0), FROZEN)
        draws = method.draw(jax.random.key(1), batch_of(0), None)
        traced = jax.jit(method.update, static_argnums=4).trace(state, FROZEN, batch_of(0), draws, None)
        assert ("checkpoint" in str(traced.jaxpr) or "remat" in str(traced.jaxpr)) is remat
        updated, _ = traced.lower().compile()(state, FROZEN, batch_of(0), draws)
        found.append(updated.params)
    chex.assert_trees_all_close(*found, rtol=1e-12, atol=1e-14)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(state.params)))


def test_labels_of_samples_follow_the_shares_and_not_the_batch():
    """A teacher that answers with a point per class, in one step: the loss tells which labels it was given."""
    points = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        return cond["label"] @ points

    model = Model(Network(None, apply), precond.identity())
    method = method_of(np.array([0.7, 0.3, 0.0]), model=model, steps=1, unit=False)
    state, batch = method.init(jax.random.key(0), FROZEN), batch_of(0, 1000)
    state.params["spread"] = state.params["spread"] - 20  # no noise at all
    draws = method.draw(jax.random.key(1), batch, None)
    np.testing.assert_allclose(np.bincount(draws["label"], minlength=3) / 1000, [0.7, 0.3, 0.0], atol=0.05)
    update = jax.jit(method.update, static_argnums=4)
    for labelled in (batch, batch | {"label": batch["label"][::-1]}):
        _, metrics = update(state, FROZEN, labelled, draws, None)
        expected = distances.kernel_distance(points[draws["label"]], batch["image"])
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


def test_equal_labels_on_both_sides_would_bias_the_distance():
    """Two classes far apart: sets of one distribution, but with the labels of each other, are below zero."""
    keys = jax.random.split(jax.random.key(0), 400)

    def distance(key, matched):
        labels = jax.random.bernoulli(key, shape=(2, 16, 1)) * 2.0 - 1
        noise = 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (2, 16, 2))
        return distances.kernel_distance(labels[0] + noise[0], labels[0 if matched else 1] + noise[1])

    drawn, matched = (jax.vmap(lambda key: distance(key, same))(keys) for same in (False, True))
    assert abs(drawn.mean()) < 4 * drawn.std() / 20
    assert matched.mean() < -10 * matched.std() / 20


def test_draws_are_a_start_and_a_noise_a_step():
    draws = method_of().draw(jax.random.key(0), batch_of(0, 4), None)
    chex.assert_shape([draws["latents"], draws["noise"]], [(4, 2), (3, 4, 2)])
    assert len(np.unique(np.concatenate([np.ravel(a) for a in draws.values()]))) == 32


def test_the_product_is_the_coefficients_and_costs_a_call_a_step():
    method = method_of(steps=5)
    state = method.init(jax.random.key(0), FROZEN)
    assert method.samplers["ggdm 5"].nfe == 5
    assert {name: v.shape for name, v in method.weights(state).items()} == {
        "prediction": (5,), "states": (15,), "spread": (5,)
    }  # fmt: skip
    other = jax.tree.map(lambda v: v + 1, state.params)
    chex.assert_trees_all_equal(method.init(jax.random.key(0), FROZEN | {"initial": other}).params, other)
    with pytest.raises(ValueError, match="do not fit the sampler: its prediction is .5,., theirs .3,."):
        method.init(jax.random.key(0), FROZEN | {"initial": method_of().init(None, FROZEN).params})


def rows_of(**changes):
    zeros = np.zeros((2, 2))
    return learned.Row(np.ones(2), zeros)._replace(**changes)


@pytest.mark.parametrize("rows, words", [
    (rows_of(prediction=np.ones(0)), "prediction .K,. and states .K,h."),
    (rows_of(states=np.zeros((2, 3))), "1 <= h <= K; got .2,. and .2, 3."),
    (rows_of(states=np.triu(np.ones((2, 2)))), "row i weighs its i . 1 latest states only"),
    (rows_of(prediction=np.array([1.0, np.nan])), "prediction must be finite; got nan"),
    (rows_of(spread=np.array([0.1, -0.1])), "not negative; got -0.1"),
    (rows_of(spread=np.ones(3)), "spread has 2 rows as the prediction; got .3,."),
    (rows_of(level=np.array([1.0, 0.0])), "undefined at level zero; got level 0.0"),
])  # fmt: skip
def test_coefficients_that_no_sampler_has_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        learned.ggdm(rows)


@pytest.mark.parametrize("work, words", [
    (lambda: learned.from_vp(np.ones((2, 3)), np.zeros(2), np.ones(3)), "columns u > k only"),
    (lambda: learned.from_vp(np.ones((0, 1)), np.zeros(0), np.ones(1)), "with K >= 1; got .0, 1."),
    (lambda: learned.from_vp(np.zeros((2, 3)), np.zeros(2), np.ones(2)), r"alpha \(K\+1,\) with K >= 1"),
    (lambda: learned.to_vp(rows_of(), np.ones(2)), r"alpha is \(K\+1,\) for 2 steps; got \(2,\)"),
    (lambda: learned.ddim_coefficients(np.ones(1), np.zeros(1)), r"\(K\+1,\) for K >= 1 steps; got \(1,\)"),
    (lambda: learned.ddim_coefficients(ALPHA, SIGMA[::-1]), "sigma / alpha rises"),
    (lambda: learned.ddim_coefficients(ALPHA, SIGMA, 1.5), "0 .DDIM. to 1 .DDPM.; got 1.5"),
    (lambda: carried(rows_of(), jnp.ones((1, 2)), SIGMAS), "for 2 steps; got 4"),
    (lambda: carried(rows_of(spread=np.ones(2)), jnp.ones((1, 2)), SIGMAS[:3]), "draws noise; pass noise"),
    (lambda: carried(rows_of(), jnp.ones((1, 2)), SIGMAS[:3], start=jnp.array(1)), "cannot begin inside"),
    (lambda: distances.kernel_distance(jnp.ones((1, 3)), jnp.ones((4, 3))), "two samples or more .* 1 and 4"),
    (lambda: distances.kernel_distance(jnp.ones((2, 3)), jnp.ones((2, 4))), r"\(2, 3\) and \(2, 4\)"),
    (lambda: distances.kernel_distance(jnp.ones((2, 3)), jnp.full((2, 3), jnp.inf)), "2 rows of the second"),
    (lambda: method_of(steps=0), "steps is 1 or more; got 0"),
    (lambda: method_of(eta=2.0), "0 .DDIM. to 1 .DDPM.; got 2.0"),
    (lambda: method_of(start="dpmpp_2m", eta=1.0), "eta 1.0 is of a start at ddim; dpmpp_2m has none"),
    (lambda: method_of(start="dpmpp2m"), "no solver 'dpmpp2m'; known: .*dpmpp_2m"),
    (lambda: method_of(start="heun"), "starts as a multistep solver of one call a step"),
    (lambda: method_of(stpes=3), "no setting stpes; known: steps, start, eta"),
    (lambda: method_of(schedule=dict(name="karras")), "no schedule 'karras'; known: .*polynomial"),
    (lambda: method_of(model=gaussian_denoiser()._replace(precond=precond.ve(0.5, 5.0))), "from 0.5 to 5; "),
])  # fmt: skip
def test_bad_input_is_refused_with_what_to_do(work, words):
    with pytest.raises(ValueError, match=words):
        work()


def test_the_feature_net_is_the_shipped_one_and_no_other():
    config = experiment.load("ggdm_digits:smoke")
    frozen, _ = commands.basis_shapes(assemble(config, outline=True))
    assert isinstance(frozen["features"]["dense0"]["kernel"], np.ndarray)  # read, not only outlined
    asked = config.evaluation.panel.features.ft.sha256
    assert config.models.features.weights.sha256 == asked
    wrong = experiment.load("ggdm_digits:smoke")
    wrong.models.features.weights = dict(name="classifier", weights="digits", sha256="0" * 64)
    with pytest.raises(ValueError, match="asked for sha256 000.*the file has"):
        commands.basis_shapes(assemble(wrong, outline=True))
    wrong = experiment.load("ggdm_digits:smoke")
    wrong.models.features.network.features = 32
    with pytest.raises(ValueError, match="model features is the network .*32.*, its weights digits are of"):
        commands.basis_shapes(assemble(wrong, outline=True))
