"""Teachers: the loss has its optimum at the exact denoiser; labels, rounds, EMA, rates, counters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastdiff_jax import trees
from fastdiff_jax.losses import accumulation, matching
from fastdiff_jax.methods import teacher
from fastdiff_jax.networks import mlp
from fastdiff_jax.precond import edm
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.types import Model, Parts

ADAM = dict(name="adam", learning_rate=1e-3)


def parts_of(labels=None, request=ADAM):
    classes = 0 if labels is None else len(labels)
    model = Model(mlp.build({"hidden": (16,)}, (3,), classes), edm())
    tx = optimizers.build(request, 8, 800.0)
    return Parts({"student": model}, {"student": tx}, (3,), labels=labels, objective=matching.edm())


def batch_of(size=8):
    image = 0.5 * jax.random.normal(jax.random.key(1), (size, 3))
    return {"image": image, "label": jnp.arange(size) % 4}


@pytest.mark.parametrize("name", matching.OBJECTIVES)
def test_the_exact_denoiser_minimises_the_loss(name):
    objective, s = matching.OBJECTIVES[name](), 0.5
    x0 = s * jax.random.normal(jax.random.key(0), (4096, 2))
    draws = objective.draw(jax.random.key(1), x0.shape)

    def total(factor, shift):
        denoise = lambda x, sigma: factor * s**2 / (s**2 + sigma[:, None] ** 2) * x + shift
        return float(objective.loss(denoise, x0, draws).mean())

    best = total(1.0, 0.0)
    assert best < min(total(f, d) for f, d in [(0.9, 0.0), (1.1, 0.0), (1.0, 0.1), (1.0, -0.1)])


def test_guarded_losses_drop_nan_samples_from_value_and_gradient():
    objective, x0 = matching.edm(), jnp.ones((3, 2))
    draws = objective.draw(jax.random.key(0), x0.shape)

    def total(w, guard):
        broken = lambda x, sigma: w * x + jnp.array([0.0, jnp.nan, 0.0])[:, None]
        return objective.loss(broken, x0, draws, guard=guard).sum()

    value, grad = jax.value_and_grad(total)(1.0, True)
    assert np.isfinite(value) and np.isfinite(grad) and not np.isfinite(total(1.0, False))


def test_label_dropout_hides_the_asked_share():
    method = teacher.build(dict(label_dropout=0.3), parts_of(np.full(4, 0.25)))
    kept = method.draw(jax.random.key(0), batch_of(4000), None)["label_kept"]
    assert abs(float(kept.mean()) - 0.7) < 0.03
    never = teacher.build(dict(label_dropout=0.0), parts_of(np.full(4, 0.25)))
    assert never.draw(jax.random.key(0), batch_of(4000), None)["label_kept"].all()


def test_a_hidden_label_does_not_reach_the_network():
    method, batch = teacher.build({}, parts_of(np.full(4, 0.25))), batch_of()
    state = method.init(jax.random.key(0), {})
    draws = dict(method.draw(jax.random.key(1), batch, None))
    other = batch | {"label": (batch["label"] + 1) % 4}
    losses = {}
    for kept in (True, False):
        draws["label_kept"] = jnp.full(8, kept)
        losses[kept] = [
            float(method.update(state, {}, b, draws, None)[1]["loss"]) for b in (batch, other)
        ]
    assert losses[False][0] == losses[False][1] and losses[True][0] != losses[True][1]


@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.parametrize("unroll", [True, False])
def test_rounds_add_up_to_the_full_batch(rounds, unroll):
    x = jax.random.normal(jax.random.key(0), (8, 3))

    def loss(w, part, key):
        value = jnp.sum(jnp.tanh(part["x"] @ w)) / 8
        return value, {"loss": value}

    w = jnp.arange(3.0)
    full = accumulation.value_and_grad(loss, w, {"x": x})
    parts = accumulation.value_and_grad(loss, w, {"x": x}, rounds=rounds, unroll=unroll)
    chex.assert_trees_all_close(parts, full, rtol=1e-5)
    with pytest.raises(ValueError, match="batch of 8 does not divide into 3"):
        accumulation.value_and_grad(loss, w, {"x": x}, rounds=3)


def test_rounds_drop_out_differently():
    def loss(w, part, key):
        return w * part["x"].sum(), jax.random.normal(key, (1,))

    both, _ = accumulation.value_and_grad(
        loss, 1.0, {"x": jnp.ones(2)}, jax.random.key(0), rounds=2
    )
    first = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (1,))
    assert not np.allclose(both, 2 * first)


def test_the_first_ema_is_the_first_weights_and_then_lags():
    method, batch = teacher.build(dict(ema_half_life=1e3, ema_ramp=0.05), parts_of()), batch_of()
    state = method.init(jax.random.key(0), {})
    for step in range(3):
        draws = method.draw(jax.random.key(step), batch, None)
        state, metrics = method.update(state, {}, batch, draws, None)
        if step == 0:
            assert metrics["ema_beta"] == 0
            chex.assert_trees_all_equal(state.ema, state.params)
    assert 0 < metrics["ema_beta"] < 1
    assert not np.array_equal(state.ema["W1"], state.params["W1"])


def test_image_counts_hold_for_the_longest_runs():
    steps = jnp.int32(2_500_000_000 // 512)
    np.testing.assert_allclose(float(trees.images_seen(steps, 512)), int(steps) * 512, rtol=1e-6)
    assert float(trees.images_seen(jnp.int32(3), 8, 100.0)) == 124


def test_learning_rates_ramp_and_decay_in_images():
    def rate(images, **options):
        return float(optimizers.learning_rate(jnp.float32(images), base=2.0, **options))

    assert [rate(i, ramp_images=100.0) for i in (0, 50, 100, 900)] == [0.0, 1.0, 2.0, 2.0]
    cosine = dict(decay="cosine", total_images=1000.0, final=0.1)
    np.testing.assert_allclose(
        [rate(i, **cosine) for i in (0, 500, 1000, 2000)], [2.0, 1.1, 0.2, 0.2], rtol=1e-6
    )
    with pytest.raises(ValueError, match="'constant', or 'cosine'"):
        rate(0, decay="linear")


def test_the_first_step_of_a_ramp_moves_moments_only():
    tx = optimizers.build(dict(ADAM, ramp_images=100.0), 8, 0.0)
    params, grads = {"kernel": jnp.ones(2)}, {"kernel": jnp.array([1.0, -1.0])}
    updates, state = tx.update(grads, tx.init(params), params)
    assert not np.any(updates["kernel"])
    assert np.all(optax.tree.get(state, "mu")["kernel"] != 0)


def test_broken_gradients_are_made_finite():
    tx = optimizers.finite_gradients()
    grads, _ = tx.update({"w": jnp.array([np.nan, np.inf, -np.inf, 2e5])}, tx.init({}))
    np.testing.assert_array_equal(grads["w"], np.float32([0.0, 1e5, -1e5, 2e5]))


def test_weight_decay_spares_all_but_kernels():
    tx = optimizers.build(dict(name="adamw", learning_rate=1.0, weight_decay=0.5), 8, 0.0)
    params = {"layer": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}, "freqs": jnp.ones(1)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert updates["layer"]["kernel"] == -0.5 and updates["layer"]["bias"] == 0 == updates["freqs"]


@pytest.mark.parametrize(
    "request_, words",
    [(dict(name="sgdd", learning_rate=1.0), "'sgdd'; known: adam, adamw"),
     (dict(ADAM, momentum=0.9), "does not take these settings")],
)  # fmt: skip
def test_bad_optimizers_are_refused(request_, words):
    with pytest.raises(ValueError, match=words):
        optimizers.build(request_, 8, 0.0)
