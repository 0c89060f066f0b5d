"""SFD against closed forms: linear students, exact teachers, and who sees what."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastdiff_jax import precond, rng, trees
from fastdiff_jax.methods import sfd
from fastdiff_jax.networks import gmm, mlp, song
from fastdiff_jax.runtime import commands, experiment, optimizers
from fastdiff_jax.solvers import driver, nested, schedules
from fastdiff_jax.types import Model, Network, Parts

RANGE = {"sigma_min": 0.01, "sigma_max": 20.0}
SCHEDULE = {"name": "polynomial", "zero": False} | RANGE
EULER = {"name": "euler"}
BATCH = {"image": jnp.zeros((16, 2))}
SCALE = 0.5  # of Gaussian data, whose exact denoiser is x s^2 / (s^2 + sigma^2)


def model(function):
    """A model whose denoiser is function(params, x, sigma (B,1), cond)."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        return function(params, x, sigma[:, None], cond)

    return Model(Network(lambda key, x, cond=None: {"w": jnp.zeros(())}, apply), precond.identity())


LINEAR = model(lambda params, x, sigma, cond: params["w"] * x)
GAUSSIAN = model(lambda params, x, sigma, cond: x * SCALE**2 / (SCALE**2 + sigma**2))


def method_of(student=LINEAR, above=GAUSSIAN, tx=None, labels=None, **settings):
    """SFD of points in the plane; by default SGD, no analytical step, and a teacher that takes Euler steps."""
    parts = Parts(
        {"student": student, "teacher": above}, {"student": tx or optax.sgd(1e-2)}, (2,), labels
    )
    given = dict(schedule=SCHEDULE, teacher=EULER, afs=False) | settings
    return sfd.build(given, parts)


def started(method, **params):
    return method.init(jax.random.key(0), {"teacher": params or {"w": jnp.float32(0.3)}})


def one_step(method, state, variant=4, frozen=None):
    draws = method.draw(jax.random.key(1), BATCH, variant)
    return draws, *method.update(state, {"teacher": frozen or state.params}, BATCH, draws, variant)


def mixture():
    network = gmm.build({}, (2,))
    return Model(network, precond.identity()), network.init(jax.random.key(0), jnp.zeros((1, 2)))


@pytest.mark.parametrize("start", sfd.START)
@pytest.mark.parametrize("loss, rate", [("l1", 0.0), ("l2", 1e-2)])
def test_a_student_that_is_its_teacher_at_the_same_levels_has_nothing_to_learn(
    start, loss, rate, x64
):
    """At L1 not with a rate: the sign of a rounding error is a gradient."""
    exact, weights = mixture()
    method = method_of(exact, exact, optax.sgd(rate), extra=0, start=start, loss=loss)
    state = method.init(jax.random.key(0), {"teacher": weights})
    _, after, metrics = one_step(method, state, frozen=weights)
    assert set(metrics) == {"loss_1", "loss_2", "loss_3"}
    np.testing.assert_allclose(list(metrics.values()), 0.0, atol=1e-12)
    chex.assert_trees_all_close(after.params, weights, rtol=1e-12)


def by_hand(z, levels, passed, w, rate, start="global", norm="l1"):
    """Losses and weight of D = w x under SGD, by the formulas of the method's docstring, in numpy."""
    x, losses = levels[0] * z, []
    for sigma, below, target in zip(levels[:-1], levels[1:], passed):
        y = x + (below - sigma) * (x - w * x) / sigma
        gap = y - target
        slope = np.sign(gap) if norm == "l1" else 2 * gap
        losses.append(np.sum(np.abs(gap) if norm == "l1" else gap**2) / len(z))
        w -= rate * np.sum(slope * (1 - below / sigma) * x) / len(z)
        x = y if start == "global" else target
    return losses, w


@pytest.mark.parametrize("start, norm", [("global", "l1"), ("local", "l1"), ("global", "l2")])
def test_an_iteration_is_its_formula(start, norm, x64):
    """So also: the next input is what the step made before its update, which moves w a lot here."""
    method = method_of(tx=optax.sgd(1e-2), start=start, loss=norm)
    state = started(method, w=jnp.float64(0.3))
    draws, after, metrics = one_step(method, state)
    path = nested.path_of(schedules.build(SCHEDULE), 4, 3)
    denoise = precond.denoiser(GAUSSIAN, {})
    passed = nested.targets(denoise, nested.teacher_of(EULER), path.student[0] * draws["latents"], path)
    losses, w = by_hand(
        np.asarray(draws["latents"]), path.student, np.asarray(passed), 0.3, 1e-2, start, norm
    )
    np.testing.assert_allclose([metrics[f"loss_{k}"] for k in (1, 2, 3)], losses, rtol=1e-10)
    np.testing.assert_allclose(after.params["w"], w, rtol=1e-10)
    assert abs(w - 0.3) > 1e-2
    other = by_hand(
        np.asarray(draws["latents"]), path.student, np.asarray(passed), 0.3, 1e-2,
        "local" if start == "global" else "global", norm,
    )  # fmt: skip
    assert abs(other[1] - w) > 1e-4


def test_a_linear_student_finds_the_one_step_that_the_flow_of_a_gaussian_is():
    """x(sigma) = x sqrt(s^2 + sigma^2) / sqrt(s^2 + sigma_max^2); Euler's step with D = w x must equal it."""
    request = dict(name="adam", learning_rate=2e-3, decay="drop", final=0.1)
    steps, size = 400, len(BATCH["image"])
    tx = optimizers.build(request, size, float(steps * size))
    method = method_of(tx=tx, stamps=2, extra=31, teacher={"name": "heun"})
    state = started(method, w=jnp.float32(0.2))

    @jax.jit
    def step(state, key):
        return method.update(state, {"teacher": {}}, BATCH, method.draw(key, BATCH, 2), 2)

    for key in jax.random.split(jax.random.key(0), steps):
        state, metrics = step(state, key)
    low, high = RANGE["sigma_min"], RANGE["sigma_max"]
    flow = np.sqrt((SCALE**2 + low**2) / (SCALE**2 + high**2))
    np.testing.assert_allclose(state.params["w"], (flow - low / high) / (1 - low / high), atol=5e-4)
    assert metrics["loss_1"] < 0.05


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("stamps", [3, 5])
def test_every_step_but_an_analytical_one_is_one_update(afs, stamps):
    tx = optimizers.build(dict(name="adam", learning_rate=1e-3), 16, 1600.0)
    method = method_of(tx=tx, stamps=stamps, afs=afs)
    _, after, metrics = one_step(method, started(method), stamps)
    assert optax.tree.get(after.opt, "mu")["w"] != 0
    counts = {int(count) for _, count in optax.tree.get_all_with_path(after.opt, "count")}
    assert counts == {stamps - 1 - afs}
    assert len(metrics) == stamps - 1
    assert after.step == 1


def test_an_analytical_step_is_the_score_of_a_unit_gaussian_and_has_a_loss(x64):
    method = method_of(afs=True, loss="l2")
    draws, _, metrics = one_step(method, started(method, w=jnp.float64(0.3)))
    path = nested.path_of(schedules.build(SCHEDULE), 4, 3)
    x = path.student[0] * draws["latents"]
    passed = nested.targets(precond.denoiser(GAUSSIAN, {}), nested.teacher_of(EULER), x, path)
    high, low = path.student[:2]
    y = x + (low - high) * x / np.sqrt(1 + high**2)
    np.testing.assert_allclose(metrics["loss_1"], np.sum((y - passed[0]) ** 2) / len(x), rtol=1e-9)


def test_rates_go_by_iterations_however_many_updates_these_make():
    """Four iterations of two updates: at half of the run, one late, the rate is a tenth."""
    tx = optimizers.build(dict(name="adam", learning_rate=1.0, decay="drop", final=0.1), 16, 64.0)
    state, sizes = tx.init({"w": jnp.zeros(())}), []
    for iteration in range(4):
        for _ in range(2):
            moves, state = tx.update(
                {"w": jnp.ones(())}, state, images_seen=jnp.float32(16 * iteration)
            )
            sizes.append(float(moves["w"]))
    np.testing.assert_allclose(sizes, [-1.0] * 6 + [-0.1] * 2, rtol=1e-4)


def recorded(calls, role, inner=LINEAR):
    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        calls.append((role, " ".join(sorted(cond or {})), dropout is not None))
        return inner.network.apply(params, x, sigma)

    return inner._replace(network=Network(inner.network.init, apply))


def test_who_sees_dropout_labels_and_the_number_of_levels():
    """The teacher sees neither dropout nor, unless it is a student itself, the number of levels."""
    calls = []
    method = method_of(
        recorded(calls, "student"), recorded(calls, "teacher"), labels=np.array([0.5, 0.5]), stamps=(3, 4),
        conditioned=True, afs=True,
    )  # fmt: skip
    state = started(method)
    one_step(method, state, 4)
    student = ("student", "label stamps", True)
    assert calls == [("teacher", "label", False), student, student]
    calls.clear()
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(3))
    method.samplers["student 2"].generate(
        state.params, {}, keys, {"label": jnp.eye(2)[jnp.array([0, 1, 1])]}
    )
    assert set(calls) == {("student", "label stamps", False)}
    calls.clear()
    second = method_of(
        LINEAR, recorded(calls, "teacher"), teacher=EULER | {"afs": True, "stamps": 7}
    )
    one_step(second, started(second))
    assert {cond for _, cond, _ in calls} == {"stamps"}


def test_each_sampler_tells_the_student_its_number_of_levels_and_makes_its_calls():
    """A student that answers n everywhere is pulled to it: x' = r x + (1 - r) n, r the ratio of levels."""
    calls = []

    def answer(params, x, sigma, cond):
        calls.append(sigma)
        return jnp.broadcast_to(cond["stamps"][:, None], x.shape)

    method = method_of(model(answer), stamps=(4, 5, 6, 7), conditioned=True, afs=True)
    assert [f"student {nfe}" for nfe in (2, 3, 4, 5)] == list(method.samplers)
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(3))
    z = rng.normal_per_image(keys, (2,))
    for n, sampler in zip((4, 5, 6, 7), method.samplers.values(), strict=True):
        calls.clear()
        with jax.disable_jit():  # loops run in Python then
            images = sampler.generate({}, {}, keys, {})
        levels = schedules.build(SCHEDULE)(n - 1)
        x = levels[0] * z
        x = x + (levels[1] - levels[0]) * x / np.sqrt(1 + levels[0] ** 2)
        ratio = levels[-1] / levels[1]
        chex.assert_trees_all_close(images, ratio * x + (1 - ratio) * n, rtol=1e-4)
        assert len(calls) == sampler.nfe == n - 2
        np.testing.assert_allclose([sigma[0, 0] for sigma in calls], levels[1:-1], rtol=1e-6)


def test_sfdv_draws_every_number_of_levels_equally_often_from_step_and_seed():
    method = method_of(stamps=(4, 5, 6, 7))
    drawn = [method.variant(step, 3) for step in range(400)]
    assert drawn == [method.variant(step, 3) for step in range(400)]
    assert drawn != [method.variant(step, 4) for step in range(400)]
    assert min(np.bincount(drawn)[4:]) > 75
    assert {method_of(stamps=5).variant(step, 0) for step in range(5)} == {5}


def test_labels_are_drawn_by_class_shares():
    method = method_of(labels=np.array([0.7, 0.3, 0.0]))
    draws = method.draw(jax.random.key(0), {"image": jnp.zeros((4000, 2))}, 4)
    np.testing.assert_allclose(
        np.bincount(draws["label"], minlength=3) / 4000, [0.7, 0.3, 0.0], atol=0.03
    )


def test_the_teacher_s_threshold_is_its_own():
    path = nested.path_of(schedules.build(SCHEDULE), 4, 3)
    x = path.student[0] * jax.random.normal(jax.random.key(0), (8, 2))
    large = lambda x, sigma: jnp.full_like(x, 3.0)
    free, bound = (
        nested.targets(large, nested.teacher_of({"name": "dpmpp_3m", "threshold": t}), x, path)
        for t in (False, True)
    )
    np.testing.assert_allclose(free[-1], 3.0, atol=0.05)
    np.testing.assert_allclose(bound[-1], 1.0, atol=0.05)


def test_the_teacher_passes_the_student_s_levels():
    path = nested.path_of(schedules.build(SCHEDULE), 5, 2)
    assert len(path.student) == 5 and len(path.teacher) == 13
    np.testing.assert_allclose(path.teacher[::3], path.student, rtol=1e-12)
    teacher = nested.teacher_of({"name": "heun"})
    x = path.student[0] * jax.random.normal(jax.random.key(0), (8, 2))
    denoise = precond.denoiser(GAUSSIAN, {})
    passed = nested.targets(denoise, teacher, x, path)
    for level, state in zip(range(1, 5), passed, strict=True):
        alone = driver.sample(denoise, teacher.solver, x, path.teacher[: 3 * level + 1])
        chex.assert_trees_all_close(state, alone, rtol=1e-5)


@pytest.mark.parametrize("build", [
    lambda stamps: mlp.build({"hidden": (7,), "stamps": stamps}, (4, 4, 1)),
    lambda stamps: song.build(
        dict(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), stamps=stamps), (4, 4, 1)
    ),
], ids=["mlp", "song"])  # fmt: skip
def test_networks_are_told_the_number_of_levels(build):
    """With "zero" it changes nothing at first but has a gradient; "random" perturbs; without it, no weights."""
    x, c = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.array([-0.5, 0.5])
    cond = {"stamps": jnp.array([4.0, 7.0])}
    for stamps in ("zero", "random"):
        network = build(stamps)
        network = network._replace(init=jax.jit(network.init), apply=jax.jit(network.apply))
        params = network.init(jax.random.key(1), x, cond)
        plain = jax.eval_shape(network.init, jax.random.key(1), x, {})
        added = {path for path, _ in trees.named(params)} - {path for path, _ in trees.named(plain)}
        assert added and all("step" in path or path == "v" for path in added)
        # The last layers' own init is next to nothing.
        params = jax.tree.map(
            lambda leaf: leaf + 0.1 * (leaf.ndim > 1) * jnp.any(leaf != 0), params
        )
        told, untold = network.apply(params, x, c, cond), network.apply(params, x, c, {})
        assert bool(jnp.abs(told - untold).max() > 1e-6) == (stamps == "random")
        total = lambda p, network=network: jnp.square(network.apply(p, x, c, cond)).sum()
        grads = jax.jit(jax.grad(total))(params)
        assert any(np.any(leaf) for path, leaf in trees.named(grads) if path in added)
    with pytest.raises(ValueError, match="no condition 'stamps'"):
        build(None).apply(params, x, c, cond)
    with pytest.raises(ValueError, match="stamps is 'ones'; known: None, 'zero', 'random'"):
        build("ones")


def test_a_student_starts_as_its_teacher_with_fresh_leaves_for_the_condition():
    size = dict(hidden=(7,))
    above = Model(mlp.build(size, (2,)), precond.edm())
    student = Model(mlp.build(size | {"stamps": "random"}, (2,)), precond.edm())
    weights = above.network.init(jax.random.key(5), jnp.zeros((1, 2)))
    method = method_of(student, above, conditioned=True)
    state = method.init(jax.random.key(0), {"teacher": weights})
    assert np.any(state.params["v"])
    chex.assert_trees_all_equal({k: v for k, v in state.params.items() if k != "v"}, weights)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, weights))]
    assert len(set(buffers)) == len(buffers)
    again = method.init(jax.random.key(1), {"teacher": state.params})  # a second stage
    chex.assert_trees_all_equal(again.params, state.params)
    begun = method.init(jax.random.key(1), {"teacher": {}, "initial": state.params})
    chex.assert_trees_all_equal(begun.params, state.params)
    with pytest.raises(ValueError, match="do not fit the student: its v is missing, theirs"):
        method_of(student, above).init(jax.random.key(0), {"teacher": state.params})
    other = mlp.build(dict(hidden=(8,)), (2,)).init(jax.random.key(0), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"its W1 is \(2, 7\), theirs \(2, 8\)"):
        method.init(jax.random.key(0), {"teacher": other})
    deeper = mlp.build(dict(hidden=(7, 7)), (2,)).init(jax.random.key(0), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="do not fit the student"):
        method.init(jax.random.key(0), {"teacher": deeper})


@pytest.mark.parametrize("settings, words", [
    (dict(stmaps=4), "no setting stmaps; known: stamps, extra"),
    (dict(schedule=SCHEDULE | {"zero": True}), "level 1 is .* use a schedule that nests"),
    (dict(schedule={"name": "cosine"} | RANGE | {"zero": False}, extra=-1), "got 4 levels, extra -1"),
    (dict(stamps=1), r"stamps \(1,\) leave a student no network call; use 2 or more"),
    (dict(stamps=(4, 2), afs=True), r"stamps \(4, 2\) leave a student no network call; use 3 or more"),
    (dict(stamps=()), "leave a student no network call"),
    (dict(stamps=(4, 5, 6, 7), afs=True, nfe=(2, 6)), "trained for 2, 3, 4, 5 network calls, not for 6; add 8"),
    (dict(teacher={"name": "dpmpp_4m"}), "no solver 'dpmpp_4m'; known: .*dpmpp_3m"),
    (dict(teacher=EULER | {"treshold": True}), "euler has no option 'treshold'"),
    (dict(start="middle"), "start is 'middle'; known: global, local"),
    (dict(loss="huber"), "no trajectory loss 'huber'; known: l1, l2"),
    (dict(lpips="vgg"), "set lpips=None"),
])  # fmt: skip
def test_bad_settings_are_refused_with_what_would_do(settings, words):
    with pytest.raises(ValueError, match=words) as caught:
        method_of(**settings)
    assert "\n" not in str(caught.value)


def test_levels_outside_a_model_s_range_are_refused():
    narrow = LINEAR._replace(precond=precond.identity()._replace(sigma_min=0.02, sigma_max=100.0))
    for models in (dict(student=narrow), dict(above=narrow)):
        with pytest.raises(ValueError, match="trained for noise levels from 0.02"):
            method_of(**models)


@pytest.mark.parametrize(
    "reference, changes, words",
    [
        ("sfd_digits:smoke", {"teacher": "edm_fashion_mnist:16,smoke"},
         r"is for images \(16, 16, 1\), and the data of sfd have \(8, 8, 1\)"),
        ("sfd_digits:smoke", {"models.student.precond": dict(name="vp")}, "trained with precond .*'edm'.*'vp'"),
        ("sfd2_digits:smoke", {"method.teacher.stamps": 9}, "told 4, 5, 6, 7 levels; it walks 7 here, .*is 9"),
        ("sfd2_digits:smoke", {"method.stamps": 4}, "told 4, 5, 6, 7 levels; it walks 10 here"),
        ("sfd2_digits:smoke", {"method.teacher": dict(name="euler", afs=True)}, "teacher.stamps is None"),
        ("sfd2_digits:plain,smoke", {"method.teacher.stamps": 7}, "not trained to be told .* leave it out"),
    ],
)  # fmt: skip
def test_a_teacher_that_cannot_teach_is_refused_before_training(reference, changes, words, tmp_path):
    config = experiment.load(reference)
    for key, value in changes.items():
        *sections, last = key.split(".")
        functools.reduce(getattr, sections, config)[last] = value
    with pytest.raises(ValueError, match=words):
        commands.check(experiment.Experiment("sfd", config, tmp_path / "sfd"))
    assert not list(tmp_path.iterdir())
