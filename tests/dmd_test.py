"""Distribution matching against closed forms; order, ratio and phases of updates; the discriminator's part."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastdiff_jax import precond, rng
from fastdiff_jax.losses import identity, levels, matching
from fastdiff_jax.methods import dmd
from fastdiff_jax.networks import discriminator
from fastdiff_jax.networks.module import tapped
from fastdiff_jax.runtime import experiment, optimizers
from fastdiff_jax.runtime.assemble import assemble
from fastdiff_jax.types import Model, Network, Parts, expand

MEAN = jnp.array([0.8, -0.4])
COVARIANCE = jnp.array([[0.30, 0.12], [0.12, 0.20]])
TRUTH = {"mean": MEAN, "root": jnp.linalg.cholesky(COVARIANCE)}
STEPS, BATCH, SIGMA_INIT = 3000, 256, 2.5
HEAD = Model(discriminator.build({"layers": ((4, 1, 1, 0),)}, ()), precond.identity())


def gaussian_denoiser():
    """mu + C (C + sigma^2 I)^-1 (x - mu), C = L L^T, of params {"mean": mu, "root": L}; its tap is itself."""

    def init(key, x, cond=None):
        return {"mean": jnp.zeros(2), "root": jnp.eye(2)}

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        covariance = params["root"] @ params["root"].T
        total = covariance + expand(sigma, jnp.zeros((len(x), 2, 2))) ** 2 * jnp.eye(2)
        centred = (x - params["mean"])[..., None]
        answer = params["mean"] + (covariance @ jnp.linalg.solve(total, centred))[..., 0]
        return tapped(answer, {"answer": answer}, taps)

    return Model(Network(init, apply), precond.identity())


def linear_generator():
    """L z + b out of its input sigma_init z, with the parameters of a Gaussian: {"mean": b, "root": L}."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        return x / SIGMA_INIT @ params["root"].T + params["mean"]

    return Model(Network(gaussian_denoiser().network.init, apply), precond.identity())


DMD2 = dict(adversarial=dict(tap="answer"))
INSTRUCT = dict(
    weighted=False, form="product", reduction="sum", order="fake_first", shared=("label",), ratio=1,
    levels=dict(name="lognormal"),
)  # fmt: skip
SIDA = dict(
    loss="sid", floor=1e-5, reduction="sum", generator_scale=100.0, order="fake_first", shared=(), ratio=1,
    levels=dict(name="karras"),
    adversarial=dict(tap="answer", levels=None, weighting="score", clip=10.0, share=0.5, generator_weight=0.01,
                     discriminator_weight=0.5),
)  # fmt: skip
FAMILY = {"dmd2": DMD2, "di": INSTRUCT, "sida": SIDA}


def method_of(models=None, labels=None, tx=None, **settings):
    """The family with a linear generator in the plane, its fake score and its teacher Gaussians."""
    tx = tx or optimizers.build(dict(name="adam", learning_rate=1e-3, b1=0.0), BATCH, STEPS * BATCH)
    gaussians = {role: gaussian_denoiser() for role in ("teacher", "fake")}
    models = gaussians | {"generator": linear_generator()} | (models or {})
    parts = Parts(models, {"generator": tx, "fake": tx}, (2,), labels, objective=matching.edm())
    return dmd.build(dict(sigma_init=SIGMA_INIT) | settings, parts)


def batch_of(size):
    return {"image": jax.random.normal(jax.random.key(7), (size, 2)), "label": jnp.arange(size) % 2}


def gradients(settings, models=None, labels=None, size=8, turn=None, score=None):
    """Gradients and metrics of one iteration from a narrow generator, and what it was drawn from."""
    turn = turn or dmd.Turn(True, bool(settings.get("adversarial")))
    add = optax.stateless(lambda updates, params: updates)
    method = method_of(models, labels, add, **settings)
    teacher = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), TRUTH)
    state = method.init(jax.random.key(0), {"teacher": teacher})
    state = state._replace(
        generator={"mean": jnp.zeros(2), "root": 0.3 * jnp.eye(2)},
        critic=state.critic | {"score": score or state.critic["score"]},
    )
    draws, batch = method.draw(jax.random.key(1), batch_of(size), turn), batch_of(size)
    update = jax.jit(method.update, static_argnums=4)
    after, metrics = update(state, {"teacher": teacher}, batch, draws, turn)
    moved = jax.tree.map(jnp.subtract, (after.generator, after.critic), (state.generator, state.critic))
    return moved, metrics, draws, state


# The losses.


def answers(key, sigma=0.7, size=16):
    x, noise = jax.random.normal(key, (2, size, 2))
    denoise = partial(precond.denoiser, gaussian_denoiser())
    return x, noise, jnp.full(size, sigma), denoise(TRUTH), denoise({"mean": jnp.zeros(2), "root": jnp.eye(2)})


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_score_identity_at_a_stopped_point_is_distribution_matching(x64, alpha):
    """lsg / B sum omega (..) with x_t stopped has the gradient of DMD's mean over B and d, times lsg d."""
    x, noise, sigma, teacher, fake = answers(jax.random.key(0))
    scale = 100.0

    def sid(x):
        x_t = jax.lax.stop_gradient(x + expand(sigma, x) * noise)
        real, critic = teacher(x_t, sigma), fake(x_t, sigma)
        return scale * identity.elements(x, real, critic, alpha).sum() / len(x)

    def matched(x):
        x_t = x + expand(sigma, x) * noise
        gradient = identity.direction(x, teacher(x_t, sigma), fake(x_t, sigma))
        return identity.squared(x, gradient).mean()

    chex.assert_trees_all_close(jax.grad(sid)(x), scale * x[0].size * jax.grad(matched)(x), rtol=1e-12)


def test_both_forms_have_the_given_gradient_and_their_own_value():
    x, gradient = jax.random.normal(jax.random.key(0), (2, 4, 3))
    for form in identity.FORMS.values():
        chex.assert_trees_all_close(jax.grad(lambda x, f=form: f(x, gradient).sum())(x), gradient)
    np.testing.assert_allclose(identity.squared(x, gradient), gradient**2 / 2)
    np.testing.assert_allclose(identity.product(x, gradient), gradient * x)
    # A gradient below the last digit of x survives.
    tiny = jnp.full((4, 3), 1e-12)
    chex.assert_trees_all_close(jax.grad(lambda x: identity.squared(x, tiny).sum())(x), tiny, rtol=1e-6)


def test_directions_are_finite_and_have_no_gradient():
    x = jnp.ones((3, 2))
    real = jnp.array([[1.0, 1.0], [0.0, 0.0], [jnp.nan, 0.0]])
    fake = jnp.array([[1.0, 1.0], [0.5, 1.0], [0.0, 0.0]])
    found = identity.direction(x, real, fake)
    np.testing.assert_allclose(found[:2], [[0, 0], [0.5, 1.0]])
    chex.assert_tree_all_finite(found)
    assert not np.any(jax.grad(lambda x: identity.direction(x, real[:2], fake[:2]).sum())(x[:2]))
    np.testing.assert_allclose(identity.direction(x, 0 * x, fake, None), fake)


def test_matching_pushes_a_gaussian_the_right_way_in_closed_form(x64):
    """One dimension of spread a and mean b with the exact fake score: the gradients' expectations."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    z, n = (v.ravel() for v in np.meshgrid(nodes, nodes))
    mass = np.outer(weights, weights).ravel() / weights.sum() ** 2
    m, s2, a, b, sigma = 0.8, 0.3, 0.5, 0.1, 0.6
    kappa, rate = s2 / (s2 + sigma**2), a**2 / (a**2 + sigma**2)

    def expected(a, b):
        x = (a * z + b)[:, None]
        x_t = jax.lax.stop_gradient(x) + sigma * n[:, None]
        gradient = identity.direction(x, m + kappa * (x_t - m), 0.1 + rate * (x_t - 0.1), None)
        return mass @ identity.product(x, gradient)[:, 0]

    of_a, of_b = jax.grad(expected, (0, 1))(a, b)
    np.testing.assert_allclose(of_b, -(1 - kappa) * (m - b), rtol=1e-10)
    np.testing.assert_allclose(of_a, (rate - kappa) * a, rtol=1e-10)


def test_grid_levels_are_the_curve_at_uniform_indices():
    law = levels.karras_grid(20, 980)
    drawn = np.asarray(law.draw(jax.random.key(0), (20000,)))
    assert drawn.min() == 20 and drawn.max() == 980 and abs(drawn.mean() - 500) < 8
    np.testing.assert_allclose(levels.karras_grid().sigma(np.array([0, 999])), [0.002, 80.0], rtol=1e-4)
    assert levels.karras_grid().ends == (0.002, 80.0)
    smooth = levels.karras(1000.0).sigma(jnp.array([500 / 999]))
    np.testing.assert_allclose(law.sigma(jnp.array([500])), smooth, rtol=1e-5)
    with pytest.raises(ValueError, match="levels 20 to 1000 of a grid of 1000"):
        levels.karras_grid(20, 1000)


# Training.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dmd2", "di"])
def test_a_linear_generator_reaches_the_gaussian(kind):
    """Without discriminators, whose equilibrium in a logit without weights would be no Gaussian's."""
    request = dict(name="adam", learning_rate=5e-3, b1=0.0, decay="cosine", final=0.02)
    tx = optimizers.build(request, BATCH, STEPS * BATCH)
    half_life = BATCH * np.log(0.5) / np.log(0.98)  # EMA of 0.98 a step
    settings = dict(FAMILY[kind], adversarial=None, ratio=1, ema_half_life=half_life, ema_ramp=None)
    method = method_of(tx=tx, **settings)
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    params = {"mean": jnp.zeros(2), "root": 0.2 * jnp.eye(2)}
    state = state._replace(generator=params, ema=params)
    batch, turn = {"image": jnp.zeros((BATCH, 2))}, dmd.Turn(True, False)

    def body(state, key):
        draws = method.draw(key, batch, turn)
        return method.update(state, {"teacher": TRUTH}, batch, draws, turn)[0], None

    keys = jax.random.split(jax.random.key(0), STEPS)
    state = jax.jit(lambda s: jax.lax.scan(body, s, keys)[0])(state)
    chex.assert_trees_all_close(state.ema["mean"], MEAN, atol=0.03)
    chex.assert_trees_all_close(state.ema["root"] @ state.ema["root"].T, COVARIANCE, atol=0.03)


def test_rates_follow_the_images_of_iterations_not_the_updates_of_a_network():
    """A generator that is updated in every fifth iteration has the rate of that iteration."""
    request = dict(name="adam", learning_rate=1.0, b1=0.0, decay="cosine", final=0.0)
    tx = optimizers.build(request, 8, 100 * 8.0)
    method = method_of(tx=tx, **DMD2)
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    state = state._replace(step=jnp.int32(50), generator={"mean": jnp.zeros(2), "root": 0.3 * jnp.eye(2)})
    batch, turn = batch_of(8), dmd.Turn(True, False)
    draws = method.draw(jax.random.key(1), batch, turn)
    critic = jax.tree.map(lambda a: a + 0.1, state.critic)
    after, _ = method.update(state._replace(critic=critic), {"teacher": TRUTH}, batch, draws, turn)
    np.testing.assert_allclose(np.abs(after.generator["mean"]), 0.5, rtol=1e-3)  # half of the cosine


def test_turns_follow_ratio_warm_up_and_the_discriminator_s_begin():
    variants = lambda **settings: [tuple(method_of(**settings).variant(step, 0)) for step in range(10)]
    ratio_two = variants(**{**DMD2, "ratio": 5})
    assert [step for step, turn in enumerate(ratio_two) if turn[0]] == [4, 9]
    assert all(turn[0] == turn[1] for turn in ratio_two)
    later = variants(**{**SIDA, "warmup": 3, "adversarial": {**SIDA["adversarial"], "begin": 6}})
    assert later == [(False, False)] * 3 + [(True, False)] * 3 + [(True, True)] * 4
    assert variants(**INSTRUCT) == [(True, False)] * 10


@pytest.mark.parametrize("kind", FAMILY)
def test_without_its_turn_the_generator_stays_and_the_critic_learns(kind):
    (generator, critic), metrics, _, _ = gradients(FAMILY[kind], turn=dmd.Turn(False, False))
    assert not np.any(jax.tree.leaves(generator)[0])
    assert np.any(critic["score"]["mean"])
    assert "loss_generator" not in metrics and "loss_fake" in metrics
    assert ("loss_discriminator" in metrics) == (kind != "di")


def test_generator_first_meets_the_old_critic_and_shares_its_images():
    """DMD2's iteration: both losses on one batch of images, neither with the other's update."""
    moved, _, draws, state = gradients(dict(order="generator_first", ratio=1))
    alone, _, _, _ = gradients(dict(order="generator_first", ratio=1), turn=dmd.Turn(False, False))
    # The critic's step does not know of the generator's.
    chex.assert_trees_all_close(moved[1], alone[1], rtol=1e-4, atol=1e-6)
    x = draws["generator"]["latents"] @ state.generator["root"].T + state.generator["mean"]

    def dsm(params):
        denoise = precond.denoiser(gaussian_denoiser(), params)
        return matching.edm().loss(denoise, x, draws["fake"]).mean()

    chex.assert_trees_all_close(moved[1]["score"], jax.grad(dsm)(state.critic["score"]), rtol=2e-3, atol=1e-5)


def test_fake_first_shows_the_generator_the_new_critic():
    """From a fake score equal to the teacher: only its own update gives the generator a signal."""
    first, _, _, _ = gradients(dict(order="fake_first", ratio=1))
    stale, _, _, _ = gradients(dict(order="generator_first", ratio=1))
    assert np.abs(first[0]["mean"]).max() > 1e-3
    assert not np.any(np.abs(stale[0]["mean"]) > 1e-6)


def test_only_the_generator_s_loss_reaches_it_through_frozen_features():
    """The adversarial gradient passes the features into the image; the teacher has none of its own."""
    rival = dict(tap="answer", features="teacher", generator_weight=1.0)
    settings = dict(order="generator_first", ratio=1, adversarial=rival)
    moved, metrics, draws, state = gradients(settings, {"discriminator": HEAD})
    law, part = levels.karras_grid(), draws["generator"]
    denoise = precond.denoiser(gaussian_denoiser(), TRUTH)

    def term(params):
        x, sigma = part["latents"] @ params["root"].T + params["mean"], law.sigma(part["rival_level"])
        features = denoise(x + expand(sigma, x) * part["rival_noise"], sigma)
        logits = HEAD.network.apply(state.critic["head"], features, jnp.zeros(len(x)))
        return jax.nn.softplus(-logits).mean()

    # At the start fake score and teacher agree, so that the matching loss has no gradient.
    value, expected = jax.value_and_grad(term)(state.generator)
    np.testing.assert_allclose(metrics["loss_adversarial"], value, rtol=1e-5)
    chex.assert_trees_all_close(moved[0], expected, rtol=1e-3, atol=1e-5)
    assert np.any(moved[1]["head"]["kernel0"])


def test_features_of_the_fake_score_teach_its_weights_too():
    """DMD2's discriminator updates the encoder it sits on; the teacher's features cannot."""
    base = dict(order="generator_first", ratio=1, fake_scale=0.0)
    for features, learns in (("fake", True), ("teacher", False)):
        rival = dict(tap="answer", features=features, discriminator_weight=1.0)
        moved, _, _, _ = gradients(dict(base, adversarial=rival), {"discriminator": HEAD})
        assert np.any(np.abs(moved[1]["score"]["mean"]) > 1e-5) == learns


def test_shares_weigh_both_losses_of_the_generator():
    pure = {**SIDA, "order": "generator_first", "adversarial": {**SIDA["adversarial"], "share": 0.0}}
    half = {**pure, "adversarial": {**SIDA["adversarial"], "share": 0.5}}
    whole = {**pure, "adversarial": {**SIDA["adversarial"], "share": 1.0}}
    other = {"mean": -MEAN, "root": jnp.eye(2)}
    found = [gradients(settings, score=other)[0][0] for settings in (pure, half, whole)]
    assert all(np.any(np.abs(tree["mean"]) > 1e-4) for tree in (found[0], found[2]))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, found[0], found[2])
    chex.assert_trees_all_close(found[1], mean, rtol=1e-3, atol=1e-6)


def test_sida_s_images_share_label_and_level_with_the_real_ones():
    """The critic's labels are those of the batch: one x_t, one label; features come out of the same call."""
    seen, base = [], gaussian_denoiser().network

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        seen.append((cond["label"], sigma, taps, dropout is not None))
        return base.apply(params, x, sigma, taps=taps)

    models = {"fake": Model(Network(base.init, apply), precond.identity())}
    method, turn = method_of(models, np.array([0.5, 0.5]), **SIDA), dmd.Turn(False, False)
    seen.clear()  # of what `build` has looked at
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    draws = method.draw(jax.random.key(1), batch_of(4), turn)
    method.update(state, {"teacher": TRUTH}, batch_of(4), draws, turn)
    assert len(seen) == 2
    for label, sigma, taps, dropped in seen:
        assert np.argmax(label, -1).tolist() == [0, 1, 0, 1]
        np.testing.assert_allclose(sigma, matching.laws.lognormal().sigma(draws["fake"]["level"]), rtol=1e-6)
        assert taps == ("answer",) and dropped


def test_shared_draws_are_those_that_are_named():
    """Diff-Instruct's two updates have one label and latents of their own."""
    method = method_of(labels=np.array([0.5, 0.5]), **INSTRUCT)
    draws = method.draw(jax.random.key(0), batch_of(64), dmd.Turn(True, False))
    assert not np.array_equal(draws["fake"]["label"], draws["generator"]["label"])  # before they are shared
    seen, generator = [], linear_generator().network

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        seen.append((cond["label"], x))
        return generator.apply(params, x, sigma)

    models = {"generator": Model(Network(generator.init, apply), precond.identity())}
    method = method_of(models, np.array([0.5, 0.5]), **INSTRUCT)
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    method.update(state, {"teacher": TRUTH}, batch_of(64), draws, dmd.Turn(True, False))
    (of_critic, first), (of_generator, second) = seen
    chex.assert_trees_all_equal(of_critic, of_generator)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", FAMILY)
def test_accumulation_rounds_equal_the_full_batch(x64, kind):
    settings = FAMILY[kind]
    if kind == "sida":
        settings = settings | {"adversarial": settings["adversarial"] | {"groups": 2}}
    with_rounds = [gradients(settings | {"accumulation": rounds})[:2] for rounds in (1, 2)]
    chex.assert_trees_all_close(*with_rounds, rtol=1e-8, atol=1e-12)


def test_a_bounded_discriminator_stays_within_its_bound():
    rival = dict(tap="answer", loss=dict(name="wgan", bound=0.01), discriminator_weight=100.0)
    method = method_of({"discriminator": HEAD}, adversarial=rival)
    state, turn = method.init(jax.random.key(0), {"teacher": TRUTH}), dmd.Turn(False, False)
    largest = lambda state: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(state.critic["head"]))
    assert largest(state) <= 0.01
    draws = method.draw(jax.random.key(1), batch_of(8), turn)
    state, _ = method.update(state, {"teacher": TRUTH}, batch_of(8), draws, turn)
    assert 0.009 < largest(state) <= 0.01


def test_the_head_has_an_optimizer_of_its_own_if_there_is_one():
    add = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, updates))
    stay = optax.stateless(lambda updates, params: jax.tree.map(jnp.zeros_like, updates))
    models = {role: gaussian_denoiser() for role in ("teacher", "fake")}
    models |= {"generator": linear_generator(), "discriminator": HEAD}
    tx = {"generator": add, "fake": stay, "discriminator": add}
    parts = Parts(models, tx, (2,), objective=matching.edm())
    method, turn = dmd.build(DMD2, parts), dmd.Turn(False, False)
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    draws = method.draw(jax.random.key(1), batch_of(8), turn)
    after, _ = method.update(state, {"teacher": TRUTH}, batch_of(8), draws, turn)
    moved = jax.tree.map(jnp.subtract, after.critic, state.critic)
    chex.assert_trees_all_close(moved["head"], jax.tree.map(jnp.ones_like, moved["head"]), rtol=1e-5)
    assert not np.any(moved["score"]["mean"])


def test_the_fake_score_may_begin_as_the_teacher_and_the_generator_elsewhere():
    method, other = method_of(fake_start="teacher", **DMD2), {"mean": -MEAN, "root": jnp.eye(2)}
    state = method.init(jax.random.key(0), {"teacher": TRUTH, "initial": other})
    chex.assert_trees_all_equal((state.generator, state.ema, state.critic["score"]), (other, other, TRUTH))


def test_samples_are_one_call_at_the_initial_level_one_key_an_image():
    method = method_of(**DMD2)
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(4))
    images = method.samplers["student"].generate(TRUTH, {}, keys, {})
    latents = rng.normal_per_image(keys, (2,))
    chex.assert_trees_all_close(images, latents @ TRUTH["root"].T + MEAN, rtol=1e-5)


RIVAL = SIDA["adversarial"]


@pytest.mark.parametrize("settings, words", [
    (dict(looss="dmd"), "no setting looss; known: loss, weighted"),
    (dict(loss="mse"), "loss is 'mse'; known: dmd, sid"),
    (dict(order="random"), "order is 'random'; known: generator_first, fake_first"),
    (dict(ratio=0), "ratio is 1 or more; got 0"),
    (dict(shared=("noise",)), "shared names noise; known: latents, label"),
    (dict(adversarial=dict(tap="middle")), "no tap 'middle'; known: answer"),
    (dict(adversarial=dict(tap="answer", features="real")), "features is 'real'; known: fake, teacher"),
    (dict(adversarial=dict(tap="answer", loss=dict(name="gan"))), "no adversarial loss 'gan'; known: hinge"),
    (dict(adversarial=RIVAL), "without adversarial.levels the features are those of the score loss"),
    (dict(adversarial=dict(tap="answer", weighting="score")), "weighting score takes the weights"),
    (SIDA | dict(accumulation=2), "1 adversarial groups do not divide over 2 accumulation rounds"),
])  # fmt: skip
def test_bad_settings_are_refused_with_the_known(settings, words):
    with pytest.raises(ValueError, match=words):
        method_of(**settings)


@pytest.mark.parametrize("reference", ["dmd_digits", "dmd_digits:sida"])
def test_a_tap_that_does_not_exist_is_named_with_the_network_s_taps_before_anything_runs(reference):
    config = experiment.load(f"{reference},smoke" if ":" in reference else f"{reference}:smoke")
    config.method.adversarial.tap = "enc/2x2_block0"
    with pytest.raises(ValueError, match="no tap 'enc/2x2_block0'; known: enc/8x8_conv, enc/8x8_block0"):
        assemble(config, outline=True)


def test_a_head_that_does_not_fit_its_tap_is_refused_before_anything_runs():
    config = experiment.load("dmd_digits:smoke")
    config.models.discriminator.network.layers = ((None, 4, 2, 1), (None, 4, 4, 0))
    with pytest.raises(ValueError, match="is 4x4 with padding 0 and sees 2x2"):
        assemble(config, outline=True)
