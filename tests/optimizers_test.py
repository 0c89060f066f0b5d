"""Optimizers: rates in images, guards, decay, and refusals that name what is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastdiff_jax import trees
from fastdiff_jax.runtime import optimizers

ADAM = dict(name="adam", learning_rate=1e-3)
PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def rate(images, **options):
    return float(optimizers.learning_rate(jnp.float32(images), base=2.0, **options))


def first_updates(request, grads, steps=1, params=PARAMS, **options):
    """Updates and optimizer state of the last of some steps with the same gradients; 8 images a step."""
    tx = optimizers.build(request, 8, options.pop("total", 80.0), **options)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
    return updates, state


def test_rates_ramp_in_images():
    assert [rate(i, ramp_images=100.0) for i in (0, 50, 100, 900)] == [0.0, 1.0, 2.0, 2.0]
    assert rate(0) == rate(1e9) == 2.0


def test_rates_decay_along_a_half_cosine_and_stay():
    cosine = dict(decay="cosine", total_images=1000.0, final=0.1)
    found = [rate(i, **cosine) for i in (0, 250, 500, 1000, 2000)]
    quarter = 2 * (0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2)
    np.testing.assert_allclose(found, [2.0, quarter, 1.1, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(rate(50, ramp_images=100.0, **cosine), rate(50, **cosine) / 2, rtol=1e-6)


def test_rates_drop_from_the_step_after_the_one_that_reaches_half_of_the_run():
    """SFD's own run: 200 thousand trajectories in batches of 128 fall to a tenth at iteration 783."""
    drop = dict(decay="drop", total_images=200_000.0, final=0.1, batch_size=128.0)
    found = [rate(128 * iteration, **drop) for iteration in (0, 1, 782, 783, 1562)]
    np.testing.assert_allclose(found, [2.0, 2.0, 2.0, 0.2, 0.2], rtol=1e-6)
    later = [rate(1e6 + 128 * iteration, start_images=1e6, **drop) for iteration in (782, 783)]
    np.testing.assert_allclose(later, [2.0, 0.2], rtol=1e-6)


def test_images_seen_may_be_said_by_who_makes_several_updates_a_step():
    tx = optimizers.build(dict(ADAM, b1=0.0, b2=0.0, ramp_images=100.0), 8, 80.0)
    grads, state = {"w": jnp.ones(())}, tx.init({"w": jnp.ones(())})
    for said, images in ((50.0, 50), (50.0, 50), (None, 16)):  # its own count goes on
        given = {} if said is None else {"images_seen": jnp.float32(said)}
        updates, state = tx.update(grads, state, **given)
        np.testing.assert_allclose(updates["w"], -1e-3 * images / 100, rtol=1e-5)


def test_a_continued_run_is_past_its_ramp_but_decays_anew():
    later = dict(decay="cosine", total_images=1000.0, ramp_images=100.0, start_images=5e3)
    np.testing.assert_allclose([rate(i, **later) for i in (5e3, 5.5e3, 6e3)], [2.0, 1.0, 0.0], atol=1e-6)
    request = dict(ADAM, decay="cosine", ramp_images=100.0)
    updates, _ = first_updates(request, PARAMS, start_images=1e6)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda p: -1e-3 * p, PARAMS), rtol=1e-4)


def test_the_first_step_of_a_ramp_moves_moments_only():
    grads = {"kernel": jnp.ones((2, 2)), "bias": -jnp.ones(2)}
    updates, state = first_updates(dict(ADAM, ramp_images=100.0), grads)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    for moment in ("mu", "nu"):
        assert all(np.all(m != 0) for m in jax.tree.leaves(optax.tree.get(state, moment)))
    updates, _ = first_updates(dict(ADAM, ramp_images=100.0), grads, steps=2)
    np.testing.assert_allclose(updates["bias"], 1e-3 * 8 / 100, rtol=1e-4)  # 8 images seen before it


def test_adam_follows_its_formula(x64):
    """Two steps by hand: m = b1 m + (1 - b1) g, v likewise in g^2, both unbiased; eps outside the root."""
    grads, m, v = (3.0, -1.0), 0.0, 0.0
    params = {"w": jnp.zeros(())}
    tx = optimizers.build(dict(ADAM, b1=0.8, b2=0.9, eps=0.1), 8, 0.0)
    state = tx.init(params)
    for t, g in enumerate(grads, 1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        step = -1e-3 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 0.1)
        updates, state = tx.update({"w": jnp.float64(g)}, state, params)
        np.testing.assert_allclose(updates["w"], step, rtol=1e-10)


def test_broken_gradients_are_made_finite_and_large_ones_pass():
    tx = optimizers.finite_gradients()
    grads, _ = tx.update({"w": jnp.array([np.nan, np.inf, -np.inf, 2e5])}, tx.init({}))
    np.testing.assert_array_equal(grads["w"], np.float32([0.0, 1e5, -1e5, 2e5]))


@pytest.mark.parametrize("request_", [ADAM, dict(ADAM, clip=1.0), dict(ADAM, name="adamw")])
def test_no_optimizer_lets_nan_into_the_weights(request_):
    grads = {"kernel": jnp.array([[np.nan, np.inf], [-np.inf, 1.0]]), "bias": jnp.full(2, np.nan)}
    updates, state = first_updates(request_, grads, steps=2)
    chex.assert_tree_all_finite((updates, state))


def test_clipping_bounds_the_norm_after_the_guard():
    """In the first moment at b1 = 0: what Adam was given."""
    grads = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.array([np.nan, 8.0])}
    _, state = first_updates(dict(ADAM, b1=0.0, clip=1.0), grads)
    given = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(given), 1.0, rtol=1e-5)
    np.testing.assert_allclose(given["bias"], [0.0, 0.8], rtol=1e-5)


def test_weight_decay_is_for_matrices_whatever_their_name():
    request = dict(name="adamw", learning_rate=1.0, weight_decay=0.5)
    params = {"layer": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}, "freqs": jnp.ones(1),
              "stack": [{"W1": jnp.ones((2, 2))}]}  # fmt: skip
    updates, _ = first_updates(request, jax.tree.map(jnp.zeros_like, params), params=params)
    decayed = {path for path, leaf in trees.named(updates) if np.any(leaf)}
    assert decayed == {"layer/kernel", "stack/0/W1"}
    np.testing.assert_array_equal(updates["layer"]["kernel"], -0.5)


REFUSED = [
    (dict(name="sgdd", learning_rate=1.0), "no optimizer 'sgdd'; known: adam, adamw"),
    (dict(learning_rate=1.0), "no optimizer None; known: adam, adamw"),
    (dict(ADAM, momentum=0.9), "adam has no option 'momentum'; known: learning_rate, .*, clip, b1, b2, eps"),
    (dict(name="adamw"), "adamw needs learning_rate; known: learning_rate, .*weight_decay"),
    (dict(ADAM, decay="linear"), "'constant', or 'cosine' or 'drop' .*; got 'linear'"),
    (dict(ADAM, decay="cosine"), "positive number of images; got 'cosine' over 0.0"),
    (dict(ADAM, decay="drop"), "positive number of images; got 'drop' over 0.0"),
]


@pytest.mark.parametrize("request_, words", REFUSED)
def test_bad_optimizers_are_refused_before_training(request_, words):
    with pytest.raises(ValueError, match=words):
        optimizers.build(request_, 8, 0.0)
