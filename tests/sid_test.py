"""SiD against closed forms: Gaussian data and a linear generator; its draws, and who sees what."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond, rng
from fastdiff_jax.losses import generation, identity, matching
from fastdiff_jax.methods import sid
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.types import Augment, Model, Network, Parts, expand

MEAN = jnp.array([0.8, -0.4])
COVARIANCE = jnp.array([[0.30, 0.12], [0.12, 0.20]])
TRUTH = {"mean": MEAN, "root": jnp.linalg.cholesky(COVARIANCE)}
STEPS, BATCH, SIGMA_INIT = 3000, 256, 2.5


def gaussian_denoiser():
    """mu + C (C + sigma^2 I)^-1 (x - mu), C = L L^T, with params {"mean": mu, "root": L}."""

    def init(key, x, cond=None):
        return {"mean": jnp.zeros(2), "root": jnp.eye(2)}

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        covariance = params["root"] @ params["root"].T
        total = covariance + expand(sigma, jnp.zeros((len(x), 2, 2))) ** 2 * jnp.eye(2)
        centred = (x - params["mean"])[..., None]
        return params["mean"] + (covariance @ jnp.linalg.solve(total, centred))[..., 0]

    return Model(Network(init, apply), precond.identity())


def linear_generator():
    """L z + b out of its input sigma_init z, with the parameters of a Gaussian: {"mean": b, "root": L}."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        return x / SIGMA_INIT @ params["root"].T + params["mean"]

    return Model(Network(gaussian_denoiser().network.init, apply), precond.identity())


def method_of(models=None, labels=None, request=None, augment=None, **settings):
    """SiD of a linear generator in the plane, its fake score and its teacher Gaussians."""
    tx = optimizers.build(request or dict(name="adam", learning_rate=1e-3, b1=0.0), BATCH, STEPS * BATCH)
    gaussians = {role: gaussian_denoiser() for role in ("teacher", "fake")}
    models = gaussians | {"generator": linear_generator()} | (models or {})
    optimizer = {"generator": tx, "fake": tx}
    parts = Parts(models, optimizer, (2,), labels, objective=matching.edm(), augment=augment)
    return sid.build(dict(sigma_init=SIGMA_INIT) | settings, parts)


def trained(alpha, start, steps=STEPS):
    """The state after the whole loop, from A = start I, b = 0 and the fake score at the data."""
    request = dict(name="adam", learning_rate=5e-3, b1=0.0, decay="cosine", final=0.02)
    half_life = BATCH * np.log(0.5) / np.log(0.98)  # EMA of 0.98 a step
    method = method_of(request=request, alpha=alpha, ema_half_life=half_life, ema_ramp=None)
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    params = {"mean": jnp.zeros(2), "root": start * jnp.eye(2)}
    state = state._replace(generator=params, ema=params)
    batch = {"image": jnp.zeros((BATCH, 2))}

    def body(state, key):
        draws = method.draw(key, batch, None)
        return method.update(state, {"teacher": TRUTH}, batch, draws, None)[0], None

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.jit(lambda s: jax.lax.scan(body, s, keys)[0])(state)


@pytest.mark.parametrize(
    "alpha, start", [(1.0, 0.2), (1.2, 0.2), pytest.param(1.2, 1.5, marks=pytest.mark.slow)]
)
def test_a_linear_generator_reaches_the_gaussian(alpha, start):
    state = trained(alpha, start)
    for params, bar in ((state.ema, 0.03), (state.fake, 0.02)):
        chex.assert_trees_all_close(params["mean"], MEAN, atol=bar)
        chex.assert_trees_all_close(params["root"] @ params["root"].T, COVARIANCE, atol=bar)


def test_with_teacher_and_fake_score_swapped_it_fails_grossly(monkeypatch):
    right = identity.elements
    monkeypatch.setattr(identity, "elements", lambda x, real, fake, *rest: right(x, fake, real, *rest))
    error = trained(1.0, 0.2).ema["mean"] - MEAN
    assert not jnp.abs(error).max() < 0.3  # it may well be NaN


def test_where_fake_score_and_teacher_agree_loss_and_gradient_are_exactly_zero():
    x, noise = jax.random.normal(jax.random.key(0), (2, 16, 2))
    denoise, sigma = precond.denoiser(gaussian_denoiser(), TRUTH), jnp.full(16, 0.7)

    def total(x):
        elements, gap = sid.generator_loss(x, noise, sigma, denoise, denoise, 1.2, 1e-5)
        return elements.sum(), gap

    (value, gap), grads = jax.value_and_grad(total, has_aux=True)(x)
    assert value == 0 and not np.any(gap) and not np.any(grads)


def test_fake_losses_leave_the_generated_images_fixed():
    x = jax.random.normal(jax.random.key(0), (4, 2))
    draws = matching.edm().draw(jax.random.key(1), x.shape)
    denoise = precond.denoiser(gaussian_denoiser(), TRUTH)
    assert not np.any(jax.grad(lambda x: generation.fake_loss(denoise, x, draws, matching.edm()).sum())(x))


def test_draws_are_fresh_for_each_network_and_labels_follow_the_shares():
    method = method_of(labels=np.array([0.7, 0.3, 0.0]), fake_steps=2)
    draws = method.draw(jax.random.key(0), {"image": jnp.zeros((4000, 2))}, None)
    first, second, generator = *draws["fake"], draws["generator"]
    for name in ("latents", "noise", "label", "level"):
        assert not np.array_equal(first[name], second[name])
        assert not np.array_equal(first[name], generator[name])
        assert abs(np.corrcoef(np.ravel(first[name]), np.ravel(generator[name]))[0, 1]) < 0.06
    keys = [jax.random.key_data(part["dropout"]).tolist() for part in (first, second, generator)]
    assert len(set(map(tuple, keys))) == 3
    for part in (first, second, generator):
        share = np.bincount(part["label"], minlength=3) / 4000
        np.testing.assert_allclose(share, [0.7, 0.3, 0.0], atol=0.03)
        assert part["label"].max() == 1  # a class that the data lack is never drawn
        chex.assert_shape([part["latents"], part["noise"]], (4000, 2))
    assert generator["level"].min() >= 0 and generator["level"].max() < 1  # read by the Karras curve
    assert first["level"].min() < -2  # read by the log-normal law


def test_who_sees_dropout_labels_and_which_level():
    """Dropout: the fake score in its own update, the generator in its own; the teacher never."""
    calls = []

    def recorded(role, model):
        def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
            calls.append((role, dropout is not None, sorted(cond)))
            return model.network.apply(params, x, sigma)

        return model._replace(network=Network(model.network.init, apply))

    models = {role: recorded(role, gaussian_denoiser()) for role in ("teacher", "fake")}
    models["generator"] = recorded("generator", linear_generator())
    method = method_of(models, labels=np.array([0.5, 0.5]))
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    batch = {"image": jnp.zeros((8, 2))}
    draws = method.draw(jax.random.key(1), batch, None)
    jax.eval_shape(lambda *a: method.update(*a, None), state, {"teacher": TRUTH}, batch, draws)
    assert calls == [
        ("generator", False, ["label"]), ("fake", True, ["label"]),
        ("generator", True, ["label"]), ("teacher", False, ["label"]), ("fake", False, ["label"]),
    ]  # fmt: skip


def test_augmentation_changes_the_fake_score_s_images_and_no_others():
    """Its target is the changed image, and it is told; the generator's update knows nothing of it."""
    calls, seen = [], []

    def recorded(role, model):
        def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
            calls.append((role, sorted(cond)))
            return model.network.apply(params, x, sigma)

        return model._replace(network=Network(model.network.init, apply))

    def draw(key, size):
        return {"shift": jnp.arange(1.0, 1 + size)}

    def apply(x, draws):
        seen.append(x)
        return x + draws["shift"][:, None], draws["shift"][:, None]

    models = {role: recorded(role, gaussian_denoiser()) for role in ("teacher", "fake")}
    models["generator"] = recorded("generator", linear_generator())
    method, plain = method_of(models, augment=Augment(draw, apply, 1)), method_of()
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    batch = {"image": jnp.zeros((4, 2))}
    draws = method.draw(jax.random.key(1), batch, None)
    assert "augment" not in draws["generator"]
    after, metrics = method.update(state, {"teacher": TRUTH}, batch, draws, None)
    assert calls == [("generator", []), ("fake", ["augment"]), ("generator", []), ("teacher", []), ("fake", [])]
    part = draws["fake"][0]
    generated = part["latents"] @ TRUTH["root"].T + MEAN
    chex.assert_trees_all_close(seen[0], generated, atol=1e-6)
    denoise = precond.denoiser(gaussian_denoiser(), TRUTH)
    wanted = matching.edm().loss(denoise, generated + jnp.arange(1.0, 5)[:, None], part).sum() / 4
    np.testing.assert_allclose(metrics["loss_fake"], wanted, rtol=1e-5)
    without, _ = plain.update(state, {"teacher": TRUTH}, batch, draws, None)
    assert not np.array_equal(without.fake["mean"], after.fake["mean"])


@pytest.mark.parametrize("fake_steps", [1, 2])
def test_accumulation_rounds_equal_the_full_batch(x64, fake_steps):
    batch, found = {"image": jnp.zeros((8, 2))}, []
    frozen = {"teacher": {"mean": jnp.array([0.8, -0.4]), "root": jnp.eye(2)}}
    for rounds in (1, 2, 4):
        method = method_of(accumulation=rounds, fake_steps=fake_steps)
        state = method.init(jax.random.key(0), frozen)
        update = jax.jit(method.update, static_argnums=4)
        for step in range(2):
            draws = method.draw(jax.random.key(step), batch, None)
            state, metrics = update(state, frozen, batch, draws, None)
        found.append((state, metrics))
    for split in found[1:]:
        chex.assert_trees_all_close(split, found[0], rtol=1e-8, atol=1e-12)


def test_the_generator_s_first_signal_is_the_fake_score_s_first_step():
    """One Adam step of psi away from phi the gradient is tiny, and Adam makes a whole step of it."""
    batch, frozen = {"image": jnp.zeros((64, 2))}, {"teacher": TRUTH}
    method = method_of()
    state = method.init(jax.random.key(0), frozen)
    narrow = {"mean": jnp.zeros(2), "root": 0.2 * jnp.eye(2)}
    state = state._replace(generator=narrow)
    draws = method.draw(jax.random.key(1), batch, None)
    after, metrics = method.update(state, frozen, batch, draws, None)
    assert metrics["gap"] > 0 and metrics["loss_generator"] != 0 and metrics["ema_beta"] == 0
    moved = np.abs(after.generator["mean"] - narrow["mean"])
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-3)  # of the learning rate's size, however tiny the loss
    chex.assert_trees_all_equal(after.ema, after.generator)


def test_samples_are_one_call_at_the_initial_level_one_key_an_image():
    method = method_of()
    keys = rng.image_keys(rng.root(0, "sample"), jnp.arange(4))
    images = method.samplers["student"].generate(TRUTH, {}, keys, {})
    latents = rng.normal_per_image(keys, (2,))
    chex.assert_trees_all_close(images, latents @ TRUTH["root"].T + MEAN, rtol=1e-5)
    assert method.samplers["student"].nfe == 1


def test_it_starts_as_its_teacher_in_fresh_buffers():
    method = method_of(labels=np.array([0.5, 0.5]))
    state = method.init(jax.random.key(0), {"teacher": TRUTH})
    copies = (state.generator, state.ema, state.fake)
    for tree in copies:
        chex.assert_trees_all_equal(tree, TRUTH)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((copies, TRUTH))]
    assert len(set(buffers)) == len(buffers)
    other = {"mean": -MEAN, "root": jnp.eye(2)}
    begun = method.init(jax.random.key(0), {"teacher": TRUTH, "initial": other})
    chex.assert_trees_all_equal(begun.generator, other)


def test_weights_that_do_not_fit_are_refused():
    """As when the teacher is an analytic one, and no other weights to start from are named."""
    method = method_of()
    with pytest.raises(ValueError, match="do not fit the generator: its mean is .*, theirs missing"):
        method.init(jax.random.key(0), {"teacher": {"weights": jnp.ones(3)}})


@pytest.mark.parametrize("settings, words", [
    (dict(alhpa=1.0), "no setting alhpa; known: alpha, sigma_init"),
    (dict(fake_steps=0), "fake_steps is 1 or more; got 0"),
    (dict(levels=dict(name="karras", tmax=800.0)), "no option 'tmax'; known: t_max"),
    (dict(levels=dict(t_max=800.0)), "known: lognormal, karras"),
])  # fmt: skip
def test_bad_settings_are_refused_with_the_known(settings, words):
    with pytest.raises(ValueError, match=words):
        method_of(**settings)
