"""Teachers: hidden labels, dropout, accumulation, EMA, where training starts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax.losses import matching
from fastdiff_jax.methods import teacher
from fastdiff_jax.networks import mlp, song
from fastdiff_jax.precond import edm
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.solvers import schedules
from fastdiff_jax.types import Model, Parts

SHARES = np.full(4, 0.25)


def method_of(labels=None, network=None, shape=(3,), **settings):
    """A teacher of points, or of another network's images; Adam at 1e-3."""
    network = network or mlp.build({"hidden": (16,)}, shape, 0 if labels is None else len(labels))
    tx = optimizers.build(dict(name="adam", learning_rate=1e-3), 8, 800.0)
    models = {"student": Model(network, edm())}
    schedule = schedules.build(dict(name="polynomial"))
    return teacher.build(settings, Parts(models, {"student": tx}, shape, labels, schedule, matching.edm()))


def batch_of(size=8, shape=(3,)):
    image = 0.5 * jax.random.normal(jax.random.key(1), (size, *shape))
    return {"image": image, "label": jnp.arange(size) % 4}


def jitted(method):
    return jax.jit(method.update, static_argnums=4)


def started(method):
    """The initial state in double precision; networks are born in float32."""
    params = jax.tree.map(lambda p: p.astype(jnp.float64), method.init(jax.random.key(0), {}).params)
    return method.init(jax.random.key(0), {"initial": params})


def test_the_loss_is_summed_over_pixels_and_averaged_over_samples():
    method, batch = method_of(loss_scale=100.0), batch_of()
    state, draws = method.init(jax.random.key(0), {}), method.draw(jax.random.key(1), batch, None)
    _, metrics = method.update(state, {}, batch, draws, None)
    sigma = np.exp(-1.2 + 1.2 * draws["level"])[:, None]
    x = batch["image"] + sigma * draws["noise"]
    total = np.sqrt(sigma**2 + 0.25)
    raw = mlp.build({"hidden": (16,)}, (3,)).apply(state.params, x / total, jnp.log(sigma[:, 0]) / 4)
    made = 0.25 / total**2 * x + 0.5 * sigma / total * raw
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    np.testing.assert_allclose(metrics["loss"], (weight * (made - batch["image"]) ** 2).sum() / 8, rtol=1e-5)


def test_guided_samplers_need_labels_that_training_hides():
    guided = {"euler, guided 2": dict(name="euler", nfe=2, guidance=dict(scale=2.0))}
    assert list(method_of(SHARES, samplers=guided, label_dropout=0.1).samplers) == list(guided)
    with pytest.raises(ValueError, match="that training has hidden now and then .*label_dropout"):
        method_of(SHARES, samplers=guided)


def test_the_loss_scale_is_for_gradients_only():
    """Adam's update is nearly blind to it, its moments are not."""
    batch, found = batch_of(), {}
    for scale in (1.0, 100.0):
        method = method_of(loss_scale=scale)
        state = method.init(jax.random.key(0), {})
        draws = method.draw(jax.random.key(1), batch, None)
        found[scale] = method.update(state, {}, batch, draws, None)
    (one, first), (hundred, second) = found.values()
    assert first["loss"] == second["loss"]
    scaled = jax.tree.map(lambda m: 100 * m, one.opt[1][0].mu)
    chex.assert_trees_all_close(hundred.opt[1][0].mu, scaled, rtol=1e-4)
    chex.assert_trees_all_close(hundred.params, one.params, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_label_dropout_hides_the_asked_share(share):
    draws = method_of(SHARES, label_dropout=share).draw(jax.random.key(0), batch_of(4000), None)
    np.testing.assert_allclose(1 - draws["label_kept"].mean(), share, atol=0.03 * (0 < share < 1))


def test_labels_reach_the_network_unless_hidden_and_the_kept_ones_unchanged():
    method, batch = method_of(SHARES), batch_of()
    update, state = jitted(method), method.init(jax.random.key(0), {})
    draws = method.draw(jax.random.key(1), batch, None)

    def loss(labels, kept):
        hidden = draws | {"label_kept": jnp.asarray(kept)}
        return float(update(state, {}, batch | {"label": jnp.asarray(labels)}, hidden, None)[1]["loss"])

    half = np.arange(8) < 4
    labels, other = np.arange(8) % 4, (np.arange(8) + 1) % 4
    assert loss(labels, np.ones(8, bool)) != loss(other, np.ones(8, bool))
    assert loss(labels, np.zeros(8, bool)) == loss(other, np.zeros(8, bool))
    assert loss(labels, half) == loss(np.where(half, labels, other), half)
    assert loss(labels, half) != loss(np.where(half, other, labels), half)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_dropout_key_matters_only_to_networks_that_drop_out(rate):
    shape = (4, 4, 1)
    settings = dict(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=rate)
    method, batch = method_of(network=song.build(settings, shape), shape=shape), batch_of(4, shape)
    state = jax.jit(method.init)(jax.random.key(0), {})
    # The last convolutions start at almost zero, which would hide what is dropped before them.
    params = jax.tree.map(lambda p: p + 0.1, state.params)
    draws, update = method.draw(jax.random.key(1), batch, None), jitted(method)
    losses = []
    for seed in range(2):
        here = draws | {"dropout": jax.random.key(seed)}
        losses.append(update(state._replace(params=params), {}, batch, here, None)[1]["loss"])
    assert (losses[0] == losses[1]) == (rate == 0)


def test_accumulation_rounds_equal_the_full_batch(x64):
    batch, found = batch_of(), []
    for rounds in (1, 2, 4):
        method = method_of(SHARES, accumulation=rounds, label_dropout=0.5)
        state = started(method)
        draws = method.draw(jax.random.key(1), batch, None)
        found.append(jitted(method)(state, {}, batch, draws, None))
    for split in found[1:]:
        chex.assert_trees_all_close(split, found[0], rtol=1e-9)
    with pytest.raises(ValueError, match="batch of 8 does not divide into 3"):
        method_of(accumulation=3).update(state, {}, batch, draws, None)


def test_the_average_is_the_first_weights_and_then_follows_its_half_life(x64):
    """beta of step n is 0.5^(8 / min(12, 0.5 * 8 n)): zero, the ramp, its cap."""
    method, batch = method_of(ema_half_life=12.0, ema_ramp=0.5), batch_of()
    state, update, average = started(method), jitted(method), None
    for step, half_life in enumerate((0.0, 4.0, 8.0, 12.0, 12.0)):
        draws = method.draw(jax.random.key(step), batch, None)
        state, metrics = update(state, {}, batch, draws, None)
        beta = 0.5 ** (8 / half_life) if half_life else 0.0
        np.testing.assert_allclose(metrics["ema_beta"], beta, rtol=1e-12)
        new = state.params["W1"]
        average = new if average is None else beta * average + (1 - beta) * new
        np.testing.assert_allclose(state.ema["W1"], average, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_equal(method.weights(state), state.ema)
    assert not np.array_equal(state.ema["W1"], state.params["W1"])


def test_training_lowers_the_loss_of_its_own_draws():
    method, batch = method_of(), batch_of()
    state, update = method.init(jax.random.key(0), {}), jitted(method)
    draws = method.draw(jax.random.key(1), batch, None)
    losses = []
    for _ in range(20):
        state, metrics = update(state, {}, batch, draws, None)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] and state.step == 20


def test_it_starts_from_given_weights_in_fresh_buffers_if_they_fit():
    method = method_of()
    other = method.init(jax.random.key(5), {}).params
    state = method.init(jax.random.key(0), {"initial": other})
    chex.assert_trees_all_equal(state.params, other)
    chex.assert_trees_all_equal(state.ema, other)
    trees = (state.params, state.ema, other)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trees)]
    assert len(set(buffers)) == len(buffers)
    with pytest.raises(ValueError, match=r"the student: its W1 is \(3, 16\), theirs \(3, 7\)"):
        method.init(jax.random.key(0), {"initial": other | {"W1": jnp.ones((3, 7))}})


def test_unknown_settings_are_refused_with_the_known():
    with pytest.raises(ValueError, match="no setting emma; known: ema_half_life"):
        method_of(emma=1.0)
