"""Weight trees: copies, counts, averages, image counts, names."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import trees

TREE = {"enc": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2, jnp.bfloat16)}, "scale": jnp.ones(())}


def test_copies_share_no_buffer():
    copied = trees.copy(TREE)
    chex.assert_trees_all_equal(copied, TREE)
    pairs = zip(jax.tree.leaves(copied), jax.tree.leaves(TREE))
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


def test_counts_and_bytes_need_no_values():
    for tree in (TREE, jax.eval_shape(lambda: TREE)):
        assert (trees.count(tree), trees.nbytes(tree)) == (9, 4 * 6 + 2 * 2 + 4)
    assert trees.count({}) == 0


def test_paths_are_readable():
    assert [path for path, _ in trees.named(TREE)] == ["enc/bias", "enc/kernel", "scale"]


@given(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), st.floats(0, 1, width=32))
@settings(deadline=None, max_examples=50)
def test_what_never_moves_stays_equal_to_the_bit(value, beta):
    leaf = {"freqs": jnp.float32(value)}
    chex.assert_trees_all_equal(trees.ema(leaf, leaf, jnp.float32(beta)), leaf)


def test_averages_lie_between_their_ends(x64):
    old, new = {"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([1.0, 0.0])}
    np.testing.assert_allclose(trees.ema(old, new, jnp.array(0.25))["w"], [0.75, 1.0])
    chex.assert_trees_all_equal(trees.ema(old, new, jnp.array(1.0)), old)


def test_an_average_that_forgets_is_the_weights_to_the_bit():
    old, new = ({"w": jax.random.normal(jax.random.key(i), (1000,))} for i in range(2))
    chex.assert_trees_all_equal(trees.ema(old, new, jnp.float32(0.0)), new)


@pytest.mark.parametrize("batch", [1, 50, 1000])
def test_weights_halve_in_a_half_life(x64, batch):
    beta = trees.half_life_beta(jnp.array(1e9), batch, 1000.0, 0.05)
    np.testing.assert_allclose(beta ** (1000 / batch), 0.5, rtol=1e-12)


def test_the_ramp_caps_the_half_life_and_starts_at_zero(x64):
    beta = lambda images, ramp: float(trees.half_life_beta(jnp.float64(images), 8, 1000.0, ramp))
    assert beta(0, 0.05) == 0.0
    np.testing.assert_allclose(beta(4000, 0.05), 0.5 ** (8 / 200))
    assert beta(20_000, 0.05) == beta(1e9, 0.05) == beta(0, None)
    assert beta(4000, 0.05) < beta(8000, 0.05) < beta(20_000, 0.05) < 1


@pytest.mark.parametrize("batch", [1, 256, 4096])
def test_image_counts_hold_for_the_longest_runs(batch):
    """2.5e9 images overflow int32; the count must not, in float32 and under jit."""
    steps = min(2_500_000_000 // batch, 2**31 - 1)
    seen = jax.jit(trees.images_seen, static_argnums=1)(jnp.int32(steps), batch, 1e6)
    assert seen.dtype == jnp.float32
    np.testing.assert_allclose(float(seen), steps * batch + 1e6, rtol=1e-6)


def test_image_counts_are_exact_at_first():
    assert [float(trees.images_seen(jnp.int32(n), 512, 100.0)) for n in (0, 3)] == [100.0, 1636.0]


def test_weights_that_do_not_fit_are_refused_by_the_name_of_a_leaf():
    trees.check_fits(TREE, jax.eval_shape(lambda: TREE), "student")
    wide = {"enc": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(2)}, "scale": jnp.ones(())}
    with pytest.raises(ValueError, match=r"the student: its enc/kernel is \(3, 2\), theirs \(3, 4\)"):
        trees.check_fits(wide, TREE, "student")
    with pytest.raises(ValueError, match="its scale is .*, theirs missing"):
        trees.check_fits({"enc": TREE["enc"]}, TREE, "student")
    with pytest.raises(ValueError, match=r"its more is missing, theirs \(\)"):
        trees.check_fits(TREE | {"more": jnp.ones(())}, TREE, "student")


def test_grafted_leaves_take_the_place_of_the_template_s():
    template = {"a": {"x": 1, "y": 2}, "b": {"z": 3}}
    assert trees.grafted({"a": {"x": 10}}, template) == {"a": {"x": 10, "y": 2}, "b": {"z": 3}}
    assert trees.grafted({}, template) == template
    assert trees.grafted({"a": {"x": 7, "y": 8}, "b": {"z": 9}}, template)["b"] == {"z": 9}
