"""AMED against the solvers that it becomes for fixed nodes; its predictor; its training on a toy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import guidance, precond, registry, trees
from fastdiff_jax.methods import amed as method
from fastdiff_jax.networks import gmm
from fastdiff_jax.networks import nodes as predictors
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.solvers import amed, driver, schedules
from fastdiff_jax.types import Model, Parts

SIGMAS = schedules.polynomial(0.02, 80.0, 7.0, zero=False)(4)
WIDTH, MODES = 3, 4
TRUTH = {
    "weights": jnp.array([0.1, 0.2, 0.3, 0.4]),
    "means": jnp.array([[1.0, 0.0], [0.0, 1.5], [-1.0, 0.2], [0.3, -1.0]]),
    "scales": jnp.array([0.3, 0.2, 0.4, 0.3]),
}


def mixture():
    return Model(gmm.build({"modes": MODES}, (2,)), precond.identity())


def denoise(x, sigma):
    """A mixture's denoiser with features that tell where it was called."""
    x0 = precond.denoiser(mixture(), TRUTH)(x, sigma)
    return x0, jnp.stack([x0[:, 0], x0[:, 1], jnp.ones(len(x))], 1)


def plain(x, sigma):
    return denoise(x, sigma)[0]


def fixed(share=0.5, slope=1.0, level=1.0):
    return lambda u, t, t_next: amed.Nodes(jnp.full(len(u), share), slope, level)


def merged(share):
    """SIGMAS with the nodes in between: the levels of the two half steps."""
    middle = SIGMAS[1:] ** share * SIGMAS[:-1] ** (1 - share)
    return np.append(np.stack([SIGMAS[:-1], middle], 1).ravel(), SIGMAS[-1])


def start(size=6):
    return SIGMAS[0] * jax.random.normal(jax.random.key(0), (size, 2))


def solver_named(name, **options):
    return registry.entries("solvers", "SOLVERS")[name](**options)


def ran(kind, nodes, **options):
    return driver.sample(denoise, amed.amed(kind, nodes, WIDTH, **options), start(), SIGMAS)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_dpm_at_fixed_nodes_is_dpm_2(share, x64):
    x = start()
    for t, end in zip(SIGMAS[:-1], SIGMAS[1:]):
        middle = end**share * t ** (1 - share)
        d = (x - plain(x, t)) / t
        inner = x + (middle - t) * d
        d_m = (inner - plain(inner, middle)) / middle
        x = x + (end - t) * (d_m / (2 * share) + (1 - 1 / (2 * share)) * d)
    np.testing.assert_allclose(ran("dpm", fixed(share)), x, rtol=1e-10)
    if share == 0.5:  # then the first slope drops out
        np.testing.assert_allclose(ran("amed", fixed(share)), x, rtol=1e-10)
    else:
        assert np.abs(ran("amed", fixed(share)) - x).max() > 1e-3


@pytest.mark.parametrize("share", [0.35, 0.5])
@pytest.mark.parametrize(
    "kind, options, name, ours",
    [
        ("euler", {}, "euler", {}),
        *[("ipndm", dict(order=k), f"ipndm_{k}", {}) for k in (1, 2, 3, 4)],
        *[("dpmpp", dict(order=k, target="data"), f"dpmpp_{k}m", dict(target="data")) for k in (1, 2, 3)],
        *[("dpmpp", dict(order=k, target="noise"), f"dpmpp_{k}m", dict(target="noise")) for k in (1, 2, 3)],
    ],
)
def test_plugins_at_fixed_nodes_are_their_solver_on_merged_levels(kind, options, name, ours, share, x64):
    """For any share: the half steps take the coefficients of uneven levels, per sample."""
    reached = driver.sample(plain, solver_named(name, **ours), start(), merged(share))
    np.testing.assert_allclose(ran(kind, fixed(share), **options), reached, rtol=1e-9)


@pytest.mark.parametrize("kind", amed.KINDS)
def test_samples_do_not_mix(kind, x64):
    """Nodes differ by sample; each then moves as if it were alone, with levels () or (B,)."""
    def nodes(u, t, t_next):
        return amed.Nodes(jax.nn.sigmoid(u[:, 0]), 1 + 0.1 * jnp.tanh(u[:, 1]), 1 - 0.1 * jnp.tanh(u[:, 0]))

    together = ran(kind, nodes)
    solver = amed.amed(kind, nodes, WIDTH)
    alone = [driver.sample(denoise, solver, row[None], SIGMAS)[0] for row in start()]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-10)
    steps = driver.prepare(solver, SIGMAS, jnp.float64)
    spread = jnp.broadcast_to(steps.sigma[:, None], (4, 6)), jnp.broadcast_to(steps.sigma_next[:, None], (4, 6))
    per_sample = driver.Steps(steps.index, *spread, steps.row, steps.plan, steps.step, steps.init)
    np.testing.assert_allclose(driver.run(denoise, start(), per_sample), together, rtol=1e-12)


def test_scales_act_where_they_should(x64):
    """One Euler-like step by hand: c scales the second increment, a only what the network is told."""
    sigmas, x, (r, c, a) = SIGMAS[:2], start(), (0.4, 0.9, 1.2)
    t, end = sigmas
    middle = end**r * t ** (1 - r)
    inner = x + (middle - t) * (x - plain(x, t)) / t
    slope = (inner - plain(inner, a * middle)) / middle
    expected = {"amed": x + c * (end - t) * slope, "euler": inner + c * (end - middle) * slope}
    for kind, reached in expected.items():
        solver = amed.amed(kind, fixed(r, c, a), WIDTH)
        np.testing.assert_allclose(driver.sample(denoise, solver, x, sigmas), reached, rtol=1e-12)


def test_a_known_first_prediction_costs_a_call_less_and_shows_zeros(x64):
    seen, levels = [], []

    def nodes(u, t, t_next):
        seen.append(u)
        return amed.Nodes(jnp.full(len(u), 0.5))

    def counted(x, sigma):
        levels.append(sigma)
        return denoise(x, sigma)

    known, solver = guidance.gaussian_guess(start(), SIGMAS[0]), amed.amed("ipndm", nodes, WIDTH)
    with jax.disable_jit():
        driver.sample(counted, solver, start(), SIGMAS, known=known)
    assert len(levels) == driver.evaluations(solver, SIGMAS, known=True) == 7
    assert not np.any(seen[0]) and seen[0].shape == (6, WIDTH) and np.all(seen[1][:, 2] == 1)


@pytest.mark.parametrize("kind", ["ipndm", "dpmpp"])
def test_a_run_may_begin_inside_the_levels(kind, x64):
    """Its first prediction stands for all before, so nothing is extrapolated from them."""
    x, solver = start() * SIGMAS[2] / SIGMAS[0], amed.amed(kind, fixed(), WIDTH, order=2)
    begun = driver.sample(denoise, solver, x, SIGMAS, start=2)
    same = driver.sample(denoise, solver, x, SIGMAS[2:])
    np.testing.assert_allclose(begun, same, rtol=1e-9)


@pytest.mark.parametrize("z", [-12.0, -1.0, -0.3, -1e-4, 0.0, 1e-4, 0.3, 1.0, 12.0])
def test_exponentials_are_exact_near_zero_and_far_from_it(z, x64):
    """phi_{k+1} = z times the integral of e^(z (1-s)) s^k / k! over [0, 1]: by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s, w = (nodes + 1) / 2, weights / 2
    expected = [z * np.sum(w * np.exp(z * (1 - s)) * s**k / max(k, 1)) for k in (0, 1, 2)]
    np.testing.assert_allclose(amed.phis(jnp.asarray(z)), expected, rtol=1e-11, atol=1e-30)
    assert all(np.isfinite(jax.jacobian(amed.phis)(jnp.asarray(z))))
    with jax.enable_x64(False):
        np.testing.assert_allclose(amed.phis(jnp.float32(z)), expected, rtol=2e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="unipc"), "no kind 'unipc'; known: amed, dpm, euler, ipndm, dpmpp"),
        (dict(kind="ipndm", order=5), "is 1 to 4; got 5"),
        (dict(kind="dpmpp", order=0), "is 1 to 3; got 0"),
        (dict(kind="euler", order=1), "cannot be chosen"),
        (dict(kind="amed", target="noise"), "for dpmpp; got 'noise' for amed"),
        (dict(kind="dpmpp", target="velocity"), "got 'velocity'"),
    ],
)
def test_impossible_solvers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        amed.amed(nodes=fixed(), width=WIDTH, **options)


def test_levels_that_end_at_zero_are_refused():
    with pytest.raises(ValueError, match="zero=False"):
        driver.sample(denoise, amed.amed("amed", fixed(), WIDTH), start(), np.append(SIGMAS, 0.0))


def weights_of(network, width):
    return network.init(jax.random.key(0), jnp.zeros((1, width)), {"next": jnp.zeros(1)})


def test_the_predictor_has_its_published_size_and_stays_in_its_range():
    network = predictors.build(dict(scale_dir=0.01, scale_time=0.2), ())
    params = weights_of(network, 64)
    assert trees.count(params) == 64 * 128 + 128 + 4 * 128 + 4 + 8 * 8 + 8 + 3 * 21 == 8971
    u, levels = 5 * jax.random.normal(jax.random.key(1), (32, 64)), jnp.geomspace(80.0, 0.01, 32)
    r, c, a = jax.jit(network.apply)(params, u, levels, {"next": levels / 2}).T
    assert r.min() > 0 and r.max() < 1 and r.std() > 0.01
    for value, scale in ((c, 0.01), (a, 0.2)):
        assert 0 < jnp.abs(value - 1).max() < scale + 1e-6
    bare = predictors.build(dict(scale_dir=0.0), ())
    params = {name: params[name] for name in params if not name.startswith("fc_scale")}
    chex.assert_trees_all_equal_shapes(params, jax.eval_shape(lambda: weights_of(bare, 64)))
    assert np.all(bare.apply(params, u, levels, {"next": levels})[:, 1:] == 1)


def test_bad_predictors_are_refused():
    for options, message in (
        (dict(scale_dir=1.0), "scale_dir is in"),
        (dict(embedding=3), "even"),
        (dict(depth=2), "no option 'depth'"),
    ):
        with pytest.raises(ValueError, match=message):
            predictors.build(options, ())
    network = predictors.build({}, ())
    with pytest.raises(ValueError, match="'next'"):
        network.apply(weights_of(network, 3), jnp.zeros((1, 3)), jnp.ones(1), {})


def parts_of(schedule=None, rate=5e-3, **scales):
    """A mixture as the teacher, its responsibilities as the features."""
    models = {
        "teacher": mixture(),
        "predictor": Model(predictors.build(scales, (2,)), precond.identity()),
    }
    tx = optimizers.build(dict(name="adam", learning_rate=rate), 64, 1e6)
    schedule = schedule or schedules.polynomial(0.02, 80.0, 7.0, zero=False)
    return Parts(models, {"predictor": tx}, (2,), schedule=schedule)


def method_of(schedule=None, rate=5e-3, **options):
    return method.build(dict(tap="responsibilities") | options, parts_of(schedule, rate))


@pytest.mark.parametrize("kind", amed.KINDS)
def test_gradients_reach_the_predictor_through_the_second_call(kind, x64):
    """Of a step's loss, against finite differences along a random direction."""
    network = predictors.build(dict(scale_dir=0.01, scale_time=0.2, hidden=8), ())
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), weights_of(network, WIDTH))
    x, point = start(), start() / 2

    @jax.jit
    @jax.value_and_grad
    def value(params):
        solver = amed.amed(kind, method.nodes(network, params), WIDTH)
        return method.loss(driver.sample(denoise, solver, x, SIGMAS[:4]), point)

    draw = np.random.default_rng(0).normal
    along = jax.tree.map(lambda leaf: draw(size=leaf.shape), params)
    ahead, behind = (jax.tree.map(lambda p, d: p + e * d, params, along) for e in (1e-5, -1e-5))
    grads = value(params)[1]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), grads, along)))
    np.testing.assert_allclose(slope, (value(ahead)[0] - value(behind)[0]) / 2e-5, rtol=1e-5)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", ["amed", "ipndm"])
def test_steps_start_where_they_should_and_each_updates(kind):
    """At the teacher's points without a history, else where the last step arrived; weights move every step."""
    parts = parts_of()
    network, tx = parts.models["predictor"].network, parts.optimizers["predictor"]
    params, visited = weights_of(network, WIDTH), []

    def watched(x, sigma):
        visited.append((x, sigma))
        return denoise(x, sigma)

    targets = jnp.stack([start() / k for k in (2, 3)])
    course = method.Course(start(), SIGMAS[:3], targets, None, kind in method.OWN_PATH)
    solver = lambda params: amed.amed(kind, method.nodes(network, params), WIDTH)
    taught = list(method.lessons(params, tx.init(params), tx, solver, watched, course))
    firsts = [x for x, sigma in visited if jnp.ndim(sigma) == 0]
    expected = [lesson.reached for lesson in taught] if kind == "ipndm" else targets
    chex.assert_trees_all_equal(list(map(np.asarray, firsts[1:])), list(map(np.asarray, expected[:-1])))
    for lesson, before in zip(taught, [params, *[lesson.params for lesson in taught]]):
        assert not np.array_equal(lesson.params["fc_r"]["kernel"], before["fc_r"]["kernel"])
    for lesson, target in zip(taught, targets):
        np.testing.assert_allclose(lesson.loss, jnp.sum((lesson.reached - target) ** 2) / 6, rtol=1e-6)


def test_training_halves_the_distance_to_the_teacher_and_samples_cost_what_they_say():
    trained = method_of(rate=2e-2)
    (name, sampler), = trained.samplers.items()
    assert (name, sampler.nfe) == ("amed 5", 5)
    frozen, batch = {"teacher": TRUTH}, {"image": jnp.zeros((64, 2))}
    state = trained.init(jax.random.key(0), frozen)
    update, losses = jax.jit(trained.update, static_argnums=4), []
    for key in jax.random.split(jax.random.key(1), 150):
        state, metrics = update(state, frozen, batch, trained.draw(key, batch, None), None)
        losses.append(metrics["loss"])
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
    assert state.step == 150
    keys = jax.random.split(jax.random.key(2), 3)
    images = sampler.generate(state.params, frozen, keys, {})
    chex.assert_shape(images, (3, 2))
    again = sampler.generate(state.params, frozen, keys[::-1], {})
    np.testing.assert_allclose(images, again[::-1], rtol=1e-4)


def test_without_afs_a_run_costs_every_call():
    assert list(method_of(afs=False, kind="dpmpp", order=2, steps=2).samplers) == ["amed_dpmpp 4"]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="heun"), "no kind 'heun'"),
        (dict(steps=0), "steps is 1 or more; got 0"),
        (dict(extra=-1), "extra is 0 or more; got -1"),
        (dict(teacher=dict(name="hoin")), "no solver 'hoin'"),
        (dict(teacher=dict(name="heun", order=3)), "no option 'order'"),
        (dict(schedule=schedules.polynomial(0.02, 80.0)), "zero=False"),
        (dict(layers=2), "no setting layers"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method_of(**options)


def test_an_unknown_tap_is_named():
    with pytest.raises(ValueError, match="no tap 'bottom'; known: responsibilities"):
        method_of(tap="bottom").init(jax.random.key(0), {"teacher": TRUTH})


def test_tapped_denoisers_say_the_same_and_need_a_tap():
    x = start()
    x0, features = precond.tapped(mixture(), TRUTH, {}, ["responsibilities"])(x, 2.0)
    chex.assert_trees_all_equal(x0, precond.denoiser(mixture(), TRUTH)(x, 2.0))
    np.testing.assert_allclose(features["responsibilities"].sum(1), np.ones(6), rtol=1e-6)
    with pytest.raises(ValueError, match="name of a tap"):
        precond.tapped(mixture(), TRUTH, {}, [])
