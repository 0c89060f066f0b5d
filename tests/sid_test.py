"""SiD against closed forms: Gaussian data and a linear generator, and its draws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond
from fastdiff_jax.losses import identity, levels, matching
from fastdiff_jax.methods import sid
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.types import Model, Network, Parts, expand

MEAN = jnp.array([0.8, -0.4])
COVARIANCE = jnp.array([[0.30, 0.12], [0.12, 0.20]])
STEPS, BATCH = 3000, 256


def gaussian_denoiser():
    """mu + C (C + sigma^2 I)^-1 (x - mu), C = L L^T, with params {"mean", "root"}."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        covariance = params["root"] @ params["root"].T
        total = covariance + expand(sigma, jnp.zeros((len(x), 2, 2))) ** 2 * jnp.eye(2)
        centred = (x - params["mean"])[..., None]
        return params["mean"] + (covariance @ jnp.linalg.solve(total, centred))[..., 0]

    return Model(Network(None, apply), precond.identity())


def linear_generator(sigma_init):
    """A z + b, from its input sigma_init z."""

    def apply(params, x, sigma, cond=None, *, dropout=None, taps=()):
        return x / sigma_init @ params["A"].T + params["b"]

    return Model(Network(None, apply), precond.identity())


def trained(alpha, start, swap=False):
    """EMA of the generator and the fake score after the whole loop of SiD, from A = start I, b = 0."""
    truth = {"mean": MEAN, "root": jnp.linalg.cholesky(COVARIANCE)}
    request = dict(name="adam", learning_rate=5e-3, b1=0.0, decay="cosine", final=0.02)
    tx = optimizers.build(request, BATCH, STEPS * BATCH)
    models = {
        "teacher": gaussian_denoiser(),
        "fake": gaussian_denoiser(),
        "generator": linear_generator(2.5),
    }
    if swap:  # the teacher's answer is taken for the fake score's: its sign, so ascent
        exact = models["teacher"].network.apply
        turned = Network(None, lambda p, x, s, *a, **k: 2 * x - exact(p, x, s))
        models["teacher"] = models["teacher"]._replace(network=turned)
    objective = matching.edm()
    settings = dict(alpha=alpha, ema_half_life=BATCH * 35.0, ema_ramp=None)
    parts = Parts(models, {"generator": tx, "fake": tx}, (2,), objective=objective)
    method = sid.build(settings, parts)
    params = {"A": start * jnp.eye(2), "b": jnp.zeros(2)}
    state = sid.State(
        jnp.zeros((), jnp.int32), params, params, tx.init(params), truth, tx.init(truth)
    )
    batch = {"image": jnp.zeros((BATCH, 2))}

    def body(state, key):
        draws = method.draw(key, batch, None)
        return method.update(state, {"teacher": truth}, batch, draws, None)[0], None

    keys = jax.random.split(jax.random.key(0), STEPS)
    state, _ = jax.jit(lambda s: jax.lax.scan(body, s, keys))(state)
    return state


@pytest.mark.parametrize("alpha, start", [(1.0, 0.2), (1.2, 0.2), (1.2, 1.5)])
def test_a_linear_generator_reaches_the_gaussian(alpha, start):
    state = trained(alpha, start)
    chex.assert_trees_all_close(state.ema["b"], MEAN, atol=0.03)
    chex.assert_trees_all_close(state.ema["A"] @ state.ema["A"].T, COVARIANCE, atol=0.03)
    chex.assert_trees_all_close(state.fake["mean"], MEAN, atol=0.02)
    chex.assert_trees_all_close(state.fake["root"] @ state.fake["root"].T, COVARIANCE, atol=0.02)


def test_a_wrong_sign_fails_grossly():
    state = trained(1.0, 0.2, swap=True)
    assert not jnp.abs(state.ema["b"] - MEAN).max() < 0.3


def loss_of(x, kind, noise, sigma, stop=False, alpha=1.0):
    x_t = x + sigma * noise
    x_t = jax.lax.stop_gradient(x_t) if stop else x_t
    real, fake = (s2 / (s2 + sigma**2) * (x_t - m) + m for m, s2 in ((0.3, 0.4), (-0.2, 0.9)))
    if kind == "sid":
        return identity.elements(x, real, fake, alpha).sum()
    weight = identity.inverse_weight(x, real)
    return (jax.lax.stop_gradient((fake - real) / expand(weight, x)) * x).sum()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_with_the_sampling_path_stopped_it_is_distribution_matching(alpha):
    x, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    stopped = jax.grad(loss_of)(x, "sid", noise, 0.7, True, alpha)
    chex.assert_trees_all_close(stopped, jax.grad(loss_of)(x, "dmd", noise, 0.7), rtol=1e-5)
    assert not np.allclose(jax.grad(loss_of)(x, "sid", noise, 0.7, False, alpha), stopped)


def test_nan_samples_drop_out_of_value_and_gradient():
    x, real, fake = jax.random.normal(jax.random.key(0), (3, 4, 3))
    broken = real.at[1, 2].set(jnp.nan)
    full = identity.elements(x, real, fake, 1.2)
    guarded = identity.elements(x, broken, fake, 1.2)
    chex.assert_trees_all_close(guarded, full.at[1].set(0.0))
    grads = jax.grad(lambda x: identity.elements(x, broken, fake, 1.2).sum())(x)
    chex.assert_tree_all_finite(grads)
    assert jnp.all(grads[1] == 0)


def test_the_weight_has_a_floor():
    x = jnp.ones((2, 3))
    chex.assert_trees_all_close(identity.inverse_weight(x, x), jnp.full(2, 1e-5))
    chex.assert_trees_all_close(identity.inverse_weight(x, x + 0.5), jnp.full(2, 0.5))


@pytest.mark.parametrize(
    "tau, sigma", [(0.1, 0.01672), (0.5, 2.51522), (0.8, 24.40834), (0.0, 0.002)]
)
def test_generator_levels_follow_the_published_curve(tau, sigma):
    np.testing.assert_allclose(levels.karras(1000.0).sigma(jnp.float32(tau)), sigma, rtol=1e-3)
    np.testing.assert_allclose(levels.karras(800.0).sigma(jnp.float32(tau / 0.8)), sigma, rtol=1e-3)


def test_generator_levels_refuse_an_impossible_end():
    with pytest.raises(ValueError, match="t_max <= 1000; got 1200"):
        levels.karras(1200.0)


def method_with_labels(shares):
    tx = optimizers.build(dict(name="adam", learning_rate=1e-3), 8, 0.0)
    models = {role: gaussian_denoiser() for role in ("teacher", "fake", "generator")}
    parts = Parts(
        models,
        {"generator": tx, "fake": tx},
        (2,),
        labels=np.array(shares),
        objective=matching.edm(),
    )
    return sid.build(dict(fake_steps=2), parts)


def test_draws_are_fresh_for_each_network_and_labels_follow_the_shares():
    draws = method_with_labels([0.7, 0.3, 0.0]).draw(
        jax.random.key(0), {"image": jnp.zeros((4000, 2))}, None
    )
    first, second, generator = *draws["fake"], draws["generator"]
    for name in ("latents", "noise", "label"):
        assert not np.array_equal(first[name], second[name])
        assert not np.array_equal(first[name], generator[name])
    share = np.bincount(generator["label"], minlength=3) / 4000
    np.testing.assert_allclose(share, [0.7, 0.3, 0.0], atol=0.03)
    chex.assert_shape(generator["latents"], (4000, 2))


def test_it_starts_as_its_teacher_in_fresh_buffers():
    method = method_with_labels([0.5, 0.5])
    teacher = {"mean": MEAN, "root": jnp.eye(2)}
    state = method.init(jax.random.key(0), {"teacher": teacher})
    for tree in (state.generator, state.ema, state.fake):
        chex.assert_trees_all_equal(tree, teacher)
    buffers = [
        leaf.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves((state.generator, state.ema, state.fake))
    ]
    assert len(set(buffers)) == len(buffers)
    other = {"mean": -MEAN, "root": jnp.eye(2)}
    begun = method.init(jax.random.key(0), {"teacher": teacher, "initial": other})
    chex.assert_trees_all_equal(begun.generator, other)


def test_unknown_settings_are_refused_with_the_known():
    with pytest.raises(ValueError, match="no setting alhpa; known: alpha, sigma_init"):
        sid.build(dict(alhpa=1.0), Parts({}, {}, (2,)))
