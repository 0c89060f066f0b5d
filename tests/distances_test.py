"""Distances of images in closed form, and the crop that is decoded before it is compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax.losses import distances

X = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
Y = jax.random.normal(jax.random.key(1), (3, 4, 5, 2))
GAP = np.asarray(X - Y, np.float64).reshape(3, -1)
C = 0.00054 * np.sqrt(40)
CLOSED = {
    "l2": (GAP**2).mean(1),
    "l1": np.abs(GAP).mean(1),
    "pseudo_huber": np.sqrt((GAP**2).sum(1) + C**2) - C,
}


def test_every_distance_has_its_closed_form():
    assert CLOSED.keys() == distances.DISTANCES.keys()


@pytest.mark.parametrize("name", CLOSED)
def test_distances_are_one_an_image_and_zero_between_equals(name):
    distance = distances.build({"name": name})
    np.testing.assert_allclose(distance(X, Y), CLOSED[name], rtol=1e-5)
    np.testing.assert_array_equal(distance(X, X), np.zeros(3))
    value, grads = jax.value_and_grad(lambda x: distance(x, x).sum())(X)
    assert np.isfinite(grads).all() and not np.any(jax.grad(lambda x: distance(x, X).sum())(X)) or name == "l1"


def test_pseudo_huber_bends_at_its_constant():
    distance = distances.build({"name": "pseudo_huber", "c": 2.0})
    one = jnp.zeros((1, 2))
    small, large = jnp.array([[1e-3, 0.0]]), jnp.array([[0.0, 1e4]])
    np.testing.assert_allclose(distance(small, one), 1e-6 / 4, rtol=1e-4)
    np.testing.assert_allclose(distance(large, one), 1e4 - 2, rtol=1e-6)


def test_the_middle_is_cut_rounding_up_and_left():
    images = jnp.arange(7.0 * 6).reshape(1, 7, 6, 1)
    np.testing.assert_array_equal(distances.centre(images, 4), images[:, 1:5, 1:5])
    np.testing.assert_array_equal(distances.centre(images, 6), images[:, 0:6])


def test_decoded_middles_are_compared_where_they_do_not_saturate():
    """Decoder 3 z: pixels beyond one are cut off, and have no gradient; those outside of the middle neither."""
    distance = distances.decoded(distances.l2(), lambda z: 3 * z, size=2)
    x = jnp.full((1, 4, 4, 1), 0.1).at[0, 1, 1, 0].set(0.9)
    value, grads = jax.value_and_grad(lambda x: distance(x, jnp.zeros_like(x)).sum())(x)
    np.testing.assert_allclose(value, (3 * 0.3**2 + 1) / 4, rtol=1e-6)
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 2 * 0.3 * 3 / 4
    expected[1, 1] = 0
    np.testing.assert_allclose(grads[0, ..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize("call, words", [
    (lambda: distances.build({"name": "l3"}), "no distance 'l3'; known: l2, l1, pseudo_huber"),
    (lambda: distances.build({"name": "l2", "c": 1.0}), "distance l2 has no option 'c'"),
    (lambda: distances.build({"name": "pseudo_huber", "c": 0.0}), "positive c; got 0.0"),
])  # fmt: skip
def test_bad_requests_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
