"""Flash Diffusion against closed forms of a Gaussian teacher: targets, matching, draws, stages, refusals."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastdiff_jax import precond, rng, trees
from fastdiff_jax.losses import curriculum, perceptual
from fastdiff_jax.losses.grid import grid
from fastdiff_jax.methods import flash
from fastdiff_jax.networks import discriminator
from fastdiff_jax.networks.module import conditions, tapped
from fastdiff_jax.processes import discrete
from fastdiff_jax.types import Adapter, Model, Network, Parts, Task, expand

MEAN, SPREAD, K = jnp.array([0.8, -0.4, 0.1]), 0.5, 8
ABAR = discrete.alphas_cumprod()
LEVELS = grid(ABAR, K)
TRUTH = {"mean": MEAN, "spread": jnp.array(SPREAD), "shift": jnp.array([0.3, -0.2, 0.6])}
HEAD = Model(discriminator.build({"layers": ((4, 1, 1, 0),)}, ()), precond.identity())
GAINED = Adapter(lambda key, base: {"gain": jnp.ones(())}, lambda base, delta: {**base, **delta})
ONCE = dict(steps=(1,), modes=((1.0,),), distill=(0.0,), matching=(0.0,), adversarial=(0.0,))
HINTS = Task(lambda key, batch: {}, lambda batch, draws, frozen: {"hint": jnp.ones((len(batch["image"]), 1))})
CALLS = []  # conditions of the network's calls, in order of tracing


def gaussian():
    """A Gaussian's denoiser, its mean moved by the label's `shift`; with a "gain", mean + gain (x - mean)."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        cond = conditions(cond, ("label", "hint"))
        CALLS.append(sorted(cond))
        mean = params["mean"]
        for name, sign in (("label", 1.0), ("hint", 0.5)):
            if name in cond:
                mean = mean + sign * cond[name][:, :1] * params["shift"]
        variance = params["spread"] ** 2
        share = params["gain"] if "gain" in params else variance / (variance + expand(sigma, x) ** 2)
        answer = mean + share * (x - mean)
        return tapped(answer, {"answer": answer}, taps)

    return Model(Network(lambda key, x, cond=None: TRUTH, apply), precond.identity())


def kept_gradients():
    """An optimizer that moves nothing and has the gradients as its state."""
    zeros = partial(jax.tree.map, jnp.zeros_like)
    return optax.GradientTransformation(zeros, lambda grads, state, params=None: (zeros(grads), grads))


def method_of(labels=None, task=None, adapter=None, tx=None, models=None, **settings):
    tx = tx or kept_gradients()
    models = {"student": gaussian(), "teacher": gaussian(), "discriminator": HEAD} | (models or {})
    roles = ("student", "discriminator", "fake")
    parts = Parts(models, dict.fromkeys(roles, tx), (3,), labels, task=task, adapter=adapter)
    defaults = dict(betas=dict(betas="scaled_linear"), grid=K, guidance=(1.0, 1.0), boundary=None, pure=False)
    return flash.build(defaults | settings, parts)


def batch_of(size):
    return {"image": jax.random.normal(jax.random.key(7), (size, 3)), "label": jnp.arange(size) % 2}


def step_of(method, index=None, size=4, frozen=None, turn=None, key=1, state=None):
    """(state before, after, metrics, draws) of a step; with the level `index` given."""
    truth = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), TRUTH)
    frozen, turn = {"teacher": truth} | (frozen or {}), turn or flash.Turn(0, 0)
    state = method.init(jax.random.key(0), frozen) if state is None else state
    draws = method.draw(jax.random.key(key), batch_of(size), turn)
    if index is not None:
        draws["student"]["index"] = jnp.asarray(index)
    after, metrics = method.update(state, frozen, batch_of(size), draws, turn)
    return state, after, metrics, draws


def ddim_gain(index):
    """Of x - mean, from level `index` to zero in Euler steps."""
    gain = 1.0
    for high, low in zip(LEVELS.levels[index:-1], LEVELS.levels[index + 1 :]):
        share = SPREAD**2 / (SPREAD**2 + high**2)
        gain *= share + low / high * (1 - share)
    return gain


# The distillation target.


@pytest.mark.parametrize("index", [0, 3, K - 1])
def test_a_student_equal_to_the_solve_has_no_loss_and_no_gradient(index, x64):
    """On a Gaussian, K - i steps of DDIM are one factor; at another gain the loss is its square's error."""
    stages = ONCE | dict(distill=(1.0,))
    method = method_of(adapter=GAINED, solver=dict(name="ddim"), stages=stages)
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    for gain in (ddim_gain(index), 0.3):
        state = state._replace(params={"gain": jnp.asarray(gain)})
        _, after, metrics, draws = step_of(method, index, state=state)
        x = batch_of(4)["image"] + LEVELS.levels[index] * draws["student"]["noise"] - MEAN
        gap = gain - ddim_gain(index)
        np.testing.assert_allclose(metrics["loss_distill"], gap**2 * jnp.mean(x**2), rtol=1e-9, atol=1e-20)
        np.testing.assert_allclose(after.opt["gain"], 2 * gap * jnp.mean(x**2), rtol=1e-9, atol=1e-12)


def test_the_second_order_solve_nears_the_flow_as_its_grid_grows(x64):
    """The flow's own factor is SPREAD / sqrt(SPREAD^2 + sigma^2), which the best gain then is."""
    errors = []
    for count in (16, 64):
        method = method_of(adapter=GAINED, grid=count, stages=ONCE | dict(distill=(1.0,)))
        sigma = grid(ABAR, count).levels[0]
        state = method.init(jax.random.key(0), {"teacher": TRUTH})
        state = state._replace(params={"gain": jnp.asarray(SPREAD / np.hypot(SPREAD, sigma))})
        _, _, metrics, _ = step_of(method, 0, state=state)
        errors.append(float(metrics["loss_distill"]))
    # Its last step, from the grid's last level onto zero, is of first order.
    assert errors[1] < errors[0] / 15 and errors[1] < 1e-4


def test_lpips_is_the_distance_where_it_is_asked_for():
    """Of images in [-1, 1], in the variant that is named, by the weights in `frozen`."""

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        return tapped(x, {"one": jnp.sin(x @ params)}, taps)

    perceiving = Model(Network(lambda key, x: jnp.ones((3, 2)), apply), precond.identity())
    weights = {"trunk": jax.random.normal(jax.random.key(3), (3, 2)), "heads": {"one": jnp.array([0.5, 2.0])}}
    models = {role: gaussian() for role in ("student", "teacher")} | {"lpips": perceiving}
    settings = dict(
        betas=dict(betas="scaled_linear"), grid=K, guidance=(1.0, 1.0), boundary=None, adversarial=None,
        stages=ONCE | dict(distill=(1.0,)), lpips=dict(weights="file", variant="standard"),
    )  # fmt: skip
    parts = Parts(models, {"student": kept_gradients()}, (4, 4, 3))
    method = flash.build(settings, parts)
    batch = {"image": jax.random.normal(jax.random.key(0), (2, 4, 4, 3))}
    frozen = {"teacher": TRUTH, "lpips": weights}
    state = method.init(jax.random.key(0), frozen)
    draws = method.draw(jax.random.key(1), batch, flash.Turn(0, 0))
    draws["student"]["index"] = jnp.asarray(K - 1)  # one step: the target is the teacher's answer
    moved = state._replace(params=TRUTH | {"mean": -MEAN})
    _, metrics = method.update(moved, frozen, batch, draws, flash.Turn(0, 0))
    x, sigma = LEVELS.start(batch["image"], jnp.asarray(K - 1), draws["student"]["noise"])
    made, target = (precond.denoiser(gaussian(), params)(x, sigma) for params in (moved.params, TRUTH))
    features = lambda images: {"one": jnp.sin(images @ weights["trunk"])}
    expected = perceptual.distance(features, weights["heads"], made, target, "standard")
    np.testing.assert_allclose(metrics["loss_distill"], expected.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="lpips has no variant; published runs have variant='standard'"):
        flash.build(settings | dict(lpips=dict(weights="file")), parts)


def test_one_program_serves_every_level():
    method = method_of(stages=ONCE | dict(distill=(1.0,)), adversarial=None)
    state, draws = method.init(jax.random.key(0), {"teacher": TRUTH}), None
    update = jax.jit(method.update, static_argnums=4)
    for index in range(K):
        draws = method.draw(jax.random.key(index), batch_of(4), flash.Turn(0, 0))
        draws["student"]["index"] = jnp.asarray(index)
        jitted = update(state, {"teacher": TRUTH}, batch_of(4), draws, flash.Turn(0, 0))
        plain = method.update(state, {"teacher": TRUTH}, batch_of(4), draws, flash.Turn(0, 0))
        chex.assert_trees_all_close(jitted, plain, rtol=2e-4, atol=2e-5)
    assert update._cache_size() == 1


def test_level_0_is_noise_alone_and_others_are_noised_images():
    image, noise = jax.random.normal(jax.random.key(0), (2, 4, 3))
    x, sigma = LEVELS.start(image, jnp.asarray(0), noise)
    np.testing.assert_allclose(x, np.hypot(1, LEVELS.levels[0]) * noise, rtol=1e-6)
    for index, pure in ((0, False), (3, True)):
        x, sigma = LEVELS.start(image, jnp.asarray(index), noise, pure)
        np.testing.assert_allclose(x, image + LEVELS.levels[index] * noise, rtol=1e-6)
        np.testing.assert_allclose(sigma, LEVELS.levels[index], rtol=1e-6)


def test_images_off_the_grid_are_noised_to_its_last_level_by_the_code_s_rule():
    """In the model's own coordinates: sqrt(abar_g) x0 + sqrt(1 - abar_g) n, whatever the label says."""
    image, noise = jax.random.normal(jax.random.key(0), (2, 3, 3))
    labels = jnp.array([500, 999, 10])
    found, told = LEVELS.renoised(image, labels, noise, "grid")
    own = found / jnp.sqrt(1 + told**2)[:, None]
    abar = ABAR[[LEVELS.labels[-1], 999, LEVELS.labels[-1]]][:, None]
    np.testing.assert_allclose(own, np.sqrt(abar) * image + np.sqrt(1 - abar) * noise, rtol=2e-5)
    np.testing.assert_allclose(told, discrete.sigmas(ABAR)[labels], rtol=1e-6)
    exact, _ = LEVELS.renoised(image, labels, noise)
    np.testing.assert_allclose(exact, image + told[:, None] * noise, rtol=1e-6)
    np.testing.assert_allclose(exact[1], found[1], rtol=1e-5)


# Guidance and conditions.


def test_the_target_is_guided_at_the_drawn_scale_away_from_the_hidden_conditions(x64):
    """Both models have one spread, so guidance moves the mean: D_u + w (D_c - D_u) has mean + w shift."""
    method = method_of(np.full(2, 0.5), HINTS, GAINED, guidance=(2.0, 6.0), solver=dict(name="ddim"),
                       stages=ONCE | dict(distill=(1.0,)), adversarial=None)  # fmt: skip
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    state = state._replace(params={"gain": jnp.asarray(ddim_gain(2))})
    _, _, metrics, draws = step_of(method, 2, state=state)
    scale = 2 + 4 * draws["student"]["scale"]
    told = (jnp.arange(4) % 2 == 0)[:, None] * TRUTH["shift"]  # the first class's column of the one-hot label
    # The student is at the conditional mean, the target at a mean `scale - 1` label shifts beyond.
    gap = (scale - 1) * told * (1 - ddim_gain(2))
    np.testing.assert_allclose(metrics["loss_distill"], jnp.mean(gap**2), rtol=1e-9)


def test_only_what_the_task_guides_is_hidden():
    """Base and aimed prediction of the solve, and the student's; the label is left out of the first alone."""
    method = method_of(np.full(2, 0.5), HINTS, guidance=(2.0, 2.0), stages=ONCE | dict(distill=(1.0,)),
                       adversarial=None)  # fmt: skip
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    CALLS.clear()
    step_of(method, state=state)
    assert sorted(CALLS) == [["hint"], ["hint", "label"], ["hint", "label"]]


# Distribution matching.


@pytest.mark.parametrize("boundary", [None, {"scaling": 10.0, "sigma_data": 0.5}])
@pytest.mark.parametrize("renoise", ["exact", "grid"])
def test_a_student_that_is_the_teacher_is_not_pushed(renoise, boundary):
    method = method_of(stages=ONCE | dict(matching=(1.0,)), renoise=renoise, boundary=boundary)
    _, after, metrics, _ = step_of(method)
    assert metrics["loss_matching"] == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.opt))


@pytest.mark.parametrize("fake", ["student", "separate"])
def test_matching_pushes_along_the_difference_of_the_answers(fake, x64):
    """dL/dx_S = 2 w (D_fake - D_real) / numel at the drawn label, with either fake score, here far off."""
    method = method_of(adapter=None, stages=ONCE | dict(matching=(1.0,)), fake=fake, adversarial=None)
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    moved = TRUTH | {"mean": -MEAN}
    state = state._replace(params=moved, fake=TRUTH | {"mean": 3 * MEAN} if fake == "separate" else {})
    _, after, metrics, draws = step_of(method, 2, state=state)
    part, table = draws["student"], discrete.sigmas(ABAR)
    denoise = lambda params, x, sigma: precond.denoiser(gaussian(), params)(x, sigma)
    x_i = batch_of(4)["image"] + LEVELS.levels[2] * part["noise"]
    sigma = jnp.asarray(table[part["matching_label"]])

    def made(params):
        return denoise(params, x_i, jnp.asarray(LEVELS.levels[2]))

    x_s = made(moved)
    x_t = x_s + sigma[:, None] * part["matching_noise"]
    real, wrong = denoise(TRUTH, x_t, sigma), denoise(state.fake or moved, x_t, sigma)
    push = (wrong - real) / (jnp.abs(x_s - real).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(metrics["loss_matching"], jnp.mean(push**2), rtol=1e-9)
    _, pulled = jax.vjp(made, moved)
    chex.assert_trees_all_close(after.opt, pulled(2 * push / push.size)[0], rtol=1e-9, atol=1e-15)


def test_a_separate_fake_score_learns_to_denoise_the_student_s_images(x64):
    """Its gradient is that of |D(x_S + sigma n) - x_S|^2 / sigma^2, by draws of its own."""
    method = method_of(stages=ONCE | dict(distill=(1.0,)), fake="separate", adversarial=None)
    before, after, metrics, draws = step_of(method)
    x, sigma = LEVELS.start(batch_of(4)["image"], draws["rival"]["index"], draws["rival"]["noise"], pure=False)
    made = precond.denoiser(gaussian(), TRUTH)(x, sigma)
    part, level = draws["fake"], jnp.asarray(discrete.sigmas(ABAR))[draws["fake"]["fake_label"]][:, None]

    def dsm(params):
        answer = precond.denoiser(gaussian(), params)(made + level * part["fake_noise"], level[:, 0])
        return jnp.mean(((answer - made) / level) ** 2)

    value, grads = jax.value_and_grad(dsm)(before.fake)
    np.testing.assert_allclose(metrics["loss_fake"], value, rtol=1e-9)
    chex.assert_trees_all_close(after.fake_opt, grads, rtol=1e-9)


# The discriminator.


def test_the_discriminator_learns_before_its_term_enters_and_teaches_the_student_then():
    stages = dict(ONCE, distill=(1.0,))
    tap = dict(tap="answer")
    _, early, metrics, _ = step_of(method_of(stages=stages, adversarial=tap))
    assert "loss_adversarial" not in metrics and np.any(early.head_opt["kernel0"])
    _, late, metrics, _ = step_of(method_of(stages=stages | dict(adversarial=(0.5,)), adversarial=tap))
    assert metrics["loss_student"] == metrics["loss_distill"] + 0.5 * metrics["loss_adversarial"]
    assert np.any(late.opt["mean"] != early.opt["mean"])


@pytest.mark.parametrize("tap", ["answer", "noise"])
def test_the_adversarial_gradient_passes_the_frozen_features_into_the_image(tap, x64):
    method = method_of(stages=ONCE | dict(adversarial=(1.0,)), adversarial=dict(tap=tap, labels=(40, 700)))
    before, after, metrics, draws = step_of(method, 4)
    part = draws["student"]
    level = jnp.asarray(discrete.sigmas(ABAR)[jnp.array([40, 700])[part["rival_label"]]])

    def term(params, of_real=False):
        x = batch_of(4)["image"] + LEVELS.levels[4] * part["noise"]
        x0 = precond.denoiser(gaussian(), params)(x, jnp.asarray(LEVELS.levels[4]))
        x_t = x0 + level[:, None] * part["rival_noise"]
        answer = precond.denoiser(gaussian(), TRUTH)(x_t, level)
        values = answer if tap == "answer" else (x_t - answer) / level[:, None]
        return ((jax.nn.sigmoid(HEAD.network.apply(before.head, values, level)) - 1) ** 2).mean()

    value, grads = jax.value_and_grad(term)(before.params)
    np.testing.assert_allclose(metrics["loss_adversarial"], value, rtol=1e-9)
    chex.assert_trees_all_close(after.opt, grads, rtol=1e-8, atol=1e-15)


def test_real_and_made_images_have_one_noise_and_level():
    """Images that the student returns as they were are the real ones, so logits r are the same for both.

    Hinge is then mean relu(1 - r) + relu(1 + r) = 2, as |r| < 1; with another noise or level it is not.
    """
    same = Adapter(lambda key, base: {}, lambda base, delta: base)
    whole = {"mean": jnp.zeros(3), "spread": jnp.array(1e4), "shift": jnp.zeros(3)}
    method = method_of(adapter=same, stages=ONCE | dict(distill=(1.0,)), adversarial=dict(
        tap="answer", loss=dict(name="hinge")))  # fmt: skip
    draws = method.draw(jax.random.key(1), batch_of(4), flash.Turn(0, 0))
    draws["rival"] = draws["rival"] | {"noise": jnp.zeros((4, 3))}
    state = method.init(jax.random.key(0), {"teacher": whole})
    _, metrics = method.update(state, {"teacher": whole}, batch_of(4), draws, flash.Turn(0, 0))
    np.testing.assert_allclose(metrics["loss_discriminator"], 2, rtol=1e-6)


def test_a_bounded_discriminator_stays_within_its_bound():
    method = method_of(stages=ONCE | dict(distill=(1.0,)), tx=optax.sgd(100.0),
                       adversarial=dict(tap="answer", loss=dict(name="wgan")))  # fmt: skip
    before, after, _, _ = step_of(method)
    for state in (before, after):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(state.head)) <= 0.01


CALLED = {  # calls that a step traces: the solve's body, the student; then the student again, features twice
    "apart": (dict(), 1 + 1 + 1 + 2),
    "solves as real": (dict(adversarial=dict(tap="answer", real="teacher")), 1 + 1 + 1 + 1 + 2),
    "shared": (dict(shared=True), 1 + 1 + 2),
    "none": (dict(adversarial=None), 1 + 1),
}


@pytest.mark.parametrize("name", CALLED)
def test_the_discriminator_s_step_does_no_work_that_only_the_student_needs(name):
    settings, expected = CALLED[name]
    method = method_of(stages=ONCE | dict(distill=(1.0,)), **(dict(adversarial=dict(tap="answer")) | settings))
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    CALLS.clear()
    step_of(method, state=state)
    assert len(CALLS) == expected


def test_updates_have_draws_of_their_own_unless_shared():
    settings = dict(stages=ONCE | dict(distill=(1.0,), matching=(1.0,), adversarial=(1.0,)))
    draws = method_of(**settings).draw(jax.random.key(0), batch_of(4), flash.Turn(0, 0))
    assert draws.keys() == {"student", "rival"}
    common = draws["student"].keys() & draws["rival"].keys()
    assert common == {"index", "scale", "noise", "rival_label", "rival_noise"}
    assert not np.array_equal(draws["student"]["rival_noise"], draws["rival"]["rival_noise"])
    shared = method_of(shared=True, **settings).draw(jax.random.key(0), batch_of(4), flash.Turn(0, 0))
    assert shared.keys() == {"student"}
    assert method_of(stages=ONCE | dict(distill=(1.0,)), adversarial=None).draw(
        jax.random.key(0), batch_of(4), flash.Turn(0, 0)
    ).keys() == {"student"}  # fmt: skip


# Stages and the level drawn.


@pytest.mark.parametrize("stage", [0, 3])
def test_levels_are_drawn_by_the_stage_s_law_one_a_batch(stage):
    method = method_of(adversarial=None, stages=dict(adversarial=(0.0,) * 4))
    draw = lambda key: method.draw(key, batch_of(2), flash.Turn(stage, stage))["student"]["index"]
    found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
    assert found.shape == (4000,)
    expected = curriculum.mixture(K, curriculum.Stages().modes[stage])
    np.testing.assert_allclose(np.bincount(found, minlength=K) / 4000, expected, atol=0.03)


def test_turns_follow_the_steps_or_the_reference():
    stages = dict(steps=(2, 1, 1, 5))
    turns = [tuple(method_of(stages=stages).variant(step, 0)) for step in range(6)]
    assert turns == [(0, 0), (0, 0), (1, 1), (2, 2), (3, 3), (3, 3)]
    method = method_of(stages=stages, stage_rule="reference")
    turns = [tuple(method.variant(step, 0)) for step in range(11)]
    # Of 4, 2, 2, 10 iterations, two a step; number 18 belongs to stage 0 once more.
    assert turns == [(0, 0), (0, 1), (1, 2), (2, 3), *[(3, 3)] * 4, (3, 0), (3, 3), (3, 3)]


def test_cost_counts_the_solve_s_expected_length():
    """From the last level one call, twice with guidance; the student 3, matching 2 + 1, a rival 2, 1, 2."""
    last = ONCE | dict(modes=((0.0,) * 7 + (1.0,),), distill=(1.0,))
    alone = dict(adversarial=None, width=0.01)
    turn = flash.Turn(0, 0)
    assert method_of(stages=last, **alone).cost(turn, False) == 3 + 1
    guided = dict(labels=np.full(2, 0.5), guidance=(1.0, 3.0))
    assert method_of(stages=last, **guided, **alone).cost(turn, False) == 3 + 2
    both = last | dict(matching=(1.0,), adversarial=(1.0,))
    assert method_of(stages=both, width=0.01, **guided).cost(turn, False) == 3 + 2 + 3 + 2 + 1 + 2


# The product.


def test_weights_are_the_trainable_tree_and_samplers_merge_it():
    """One call of a student with a gain of its own is mean + gain (x - mean), merged with the base."""
    exact = lambda sigma: SPREAD / np.hypot(SPREAD, sigma)
    method = method_of(adapter=GAINED, nfe=(1, 2), sampler=dict(name="lcm", pure=False))
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    chex.assert_trees_all_equal(method.weights(state), {"gain": jnp.ones(())})
    assert {name: one.nfe for name, one in method.samplers.items()} == {"student 1": 1, "student 2": 2}
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(5))
    params, sigma = {"gain": jnp.asarray(exact(LEVELS.table[-1]))}, LEVELS.table[-1]
    found = jax.jit(method.samplers["student 1"].generate)(params, {"teacher": TRUTH}, keys, {})
    latents = sigma * rng.normal_per_image(keys, (3,))
    np.testing.assert_allclose(found, MEAN + params["gain"] * (latents - MEAN), rtol=1e-4, atol=1e-5)


def test_samplers_are_of_the_consistency_function_and_may_be_spaced_otherwise():
    asked = dict(nfe=(4,), samplers={"default labels": dict(name="lcm", nfe=4, spacing="lcm", renoise=False)})
    method = method_of(boundary=dict(scaling=10.0, sigma_data=0.5), **asked)
    steps = {name: one.generate.args[0].args[0].steps for name, one in method.samplers.items()}
    table = discrete.sigmas(ABAR)
    np.testing.assert_allclose(steps["student 4"].sigma, table[[999, 749, 499, 249]], rtol=1e-6)
    np.testing.assert_allclose(steps["default labels"].sigma, table[[999, 759, 499, 259]], rtol=1e-6)


def test_a_start_from_other_weights_must_fit():
    method = method_of(adversarial=None, stages=ONCE | dict(distill=(1.0,)))
    other = jax.tree.map(lambda leaf: leaf + 1, TRUTH)
    state = method.init(jax.random.key(0), {"teacher": TRUTH, "initial": other})
    chex.assert_trees_all_equal(state.params, other)
    with pytest.raises(ValueError, match="do not fit the student"):
        method.init(jax.random.key(0), {"teacher": TRUTH, "initial": {"gain": jnp.ones(())}})


def test_full_training_starts_from_a_copy_of_the_teacher():
    state = method_of().init(jax.random.key(0), {"teacher": TRUTH})
    chex.assert_trees_all_equal(state.params, TRUTH)
    assert trees.count(state.head) > 0 and state.fake == {} and state.fake_opt == {}


def test_a_discrete_teacher_has_levels_of_its_own():
    model = gaussian()._replace(precond=precond.discrete("linear"))
    method = method_of(models={"teacher": model, "student": model}, betas=None)
    sigma = method.samplers["student 1"].generate.args[0].args[0].steps.sigma
    np.testing.assert_allclose(sigma, discrete.sigmas(discrete.alphas_cumprod("linear"))[[999]], rtol=1e-6)


COLUMNS = dict(stages=dict(matching=(0.0, 0.5)))


@pytest.mark.parametrize("settings, words", [
    (dict(guidence=(1, 1)), "no setting guidence; known: grid"),
    (dict(guidance=(2.0, 3.0)), r"guidance \(2.0, 3.0\) needs a teacher with labels .* set guidance=\(1.0"),
    (dict(guidance=(3.0, 2.0)), "a smallest and a largest scale"),
    (dict(adversarial=dict(tap="middle")), "no tap 'middle'; known: answer"),
    (dict(adversarial=dict(tap="answer", real="both")), "real is 'both'; known: data, teacher"),
    (dict(adversarial=dict(labels=(10, 1000))), r"labels \(10, 1000\) are not all within .* 0..999"),
    (dict(adversarial=dict(tap="answer", loss=dict(name="gan"))), "no adversarial loss 'gan'"),
    (dict(adversarial=None), r"stages.adversarial \(0.0, 0.1, 0.2, 0.3\) weighs a discriminator"),
    (COLUMNS, "stages.steps has 4 entries, stages.matching 2"),
    (dict(stages=dict(step=(1,))), "stages has no setting step; known: steps, modes"),
    (dict(grid=(16, 32)), r"all stages have one grid of levels; got \(16, 32\): give a number"),
    (dict(grid=30), "4 modes do not divide a grid of 30 levels"),
    (dict(grid=2000), "from 1 to 1000; got 2000"),
    (dict(law="cauchy"), "law is 'cauchy'; known: mixture, uniform, gaussian"),
    (dict(renoise="none"), "renoise is 'none'; known: exact, grid"),
    (dict(stage_rule="code"), "stage_rule is 'code'; known: steps, reference"),
    (dict(fake="none"), "fake is 'none'; known: student, separate"),
    (dict(solver=dict(name="ipndm")), "no solver of a Flash teacher 'ipndm'; known: dpmpp_2m, ddim"),
    (dict(solver=dict(name="ddim_strided", eta=1)), "ddim_strided has no option 'eta'"),
    (dict(distance=dict(name="l3")), "no distance 'l3'"),
    (dict(lpips=dict(variant="standard")), "method flash: lpips is asked for without weights"),
    (dict(betas=None), "a teacher of a continuum of levels needs a list"),
    (dict(sampler=dict(name="lcm", spacing="even")), "no label spacing 'even'"),
    (dict(sampler=dict(name="lcm", churn=1)), "solver lcm has no option 'churn'"),
])  # fmt: skip
def test_bad_settings_are_refused_with_the_known(settings, words):
    with pytest.raises(ValueError, match=words):
        method_of(**settings)


def test_what_is_missing_is_named():
    models = {"student": gaussian(), "teacher": gaussian()}
    base = dict(betas=dict(betas="linear"), grid=K, guidance=(1.0, 1.0))
    tx = kept_gradients()
    with pytest.raises(ValueError, match="no optimizer discriminator; add config.optimizers.discriminator"):
        flash.build(base, Parts(models, {"student": tx}, (3,)))
    with pytest.raises(ValueError, match="no model discriminator; add config.models.discriminator"):
        flash.build(base, Parts(models, {"student": tx, "discriminator": tx}, (3,)))
    discrete_teacher = models["teacher"]._replace(precond=precond.discrete())
    with pytest.raises(ValueError, match="a discrete one has its own, betas=None; got .* for 1000 labels"):
        method_of(models={"teacher": discrete_teacher})
