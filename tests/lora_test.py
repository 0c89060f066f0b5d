"""LoRA: what a delta does to weights, how large it is, and the requests that are refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_jax import trees
from fastdiff_jax.networks import lora, song
from fastdiff_jax.networks.layers import correlate

WHOLE = dict(rank=2, where="kernel$")
DIGITS = dict(model_channels=16, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,))


@pytest.fixture(scope="module")
def base():
    """Weights of a small DDPM++."""
    network = song.build(DIGITS, (8, 8, 1), 10)
    return jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), {"label": jnp.zeros((1, 10))})


def filled(delta, seed=1):
    """A delta as after training: no zeros."""
    leaves, form = jax.tree.flatten(delta)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return form.unflatten([jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


def adapter(**rules):
    return lora.build({"rules": rules})


def test_a_dense_kernel_gets_the_scaled_product():
    base = {"layer": {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)}}
    delta = {"layer": {"kernel": {"down": jnp.array([[1.0], [2.0], [3.0]]), "up": jnp.array([[1.0, -1.0]])}}}
    merged = adapter(all=dict(rank=1, alpha=0.5, where="kernel")).merge(base, delta)
    change = jnp.array([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
    chex.assert_trees_all_equal(merged, {"layer": {"kernel": 0.5 * change, "bias": jnp.ones(2)}})


def test_a_convolution_gets_one_to_r_channels_and_then_one_of_1x1(x64):
    base = {"conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 5))}}
    made = adapter(all=dict(rank=2, alpha=8.0, where="conv"))
    delta = filled(made.init(jax.random.key(1), base))
    down, up = delta["conv"]["kernel"]["down"], delta["conv"]["kernel"]["up"]
    chex.assert_shape([down, up], [(3, 3, 4, 2), (1, 1, 2, 5)])
    x = jax.random.normal(jax.random.key(2), (2, 6, 6, 4))
    apart = correlate(x, base["conv"]["kernel"], 1) + 4.0 * correlate(correlate(x, down, 1), up, 0)
    whole = correlate(x, made.merge(base, delta)["conv"]["kernel"], 1)
    np.testing.assert_allclose(whole, apart, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=10)
def test_the_change_has_at_most_the_rank(inputs, outputs, rank):
    base = {"kernel": np.zeros((inputs, outputs), np.float32)}
    made = adapter(all=dict(rank=rank, where="kernel"))
    change = made.merge(base, filled(made.init(jax.random.key(0), base)))["kernel"]
    assert np.linalg.matrix_rank(change) <= min(rank, inputs, outputs)


def test_a_fresh_delta_changes_nothing(base):
    made = adapter(all=WHOLE)
    delta = made.init(jax.random.key(0), base)
    chex.assert_trees_all_equal(made.merge(base, delta), base)
    chex.assert_trees_all_equal(jax.jit(made.merge)(base, delta), base)
    ups = [leaf for path, leaf in trees.named(delta) if path.endswith("/up")]
    assert ups and not any(leaf.any() for leaf in ups)


def test_initial_values_are_those_of_the_published_runs():
    base = {"kernel": jnp.zeros((400, 3))}
    draw = lambda init: adapter(all=dict(rank=16, init=init, where="kernel")).init(jax.random.key(0), base)
    gaussian, kaiming = (draw(init)["kernel"]["down"] for init in ("gaussian", "kaiming"))
    np.testing.assert_allclose(gaussian.std(), 1 / 16, rtol=0.05)
    assert abs(np.asarray(gaussian)).max() > 3 / 16
    np.testing.assert_allclose(abs(np.asarray(kaiming)).max(), 400**-0.5, rtol=0.01)
    np.testing.assert_allclose(kaiming.std(), 400**-0.5 / 3**0.5, rtol=0.05)


def test_layers_draw_apart_and_from_the_key(base):
    made = adapter(attention=dict(rank=2), convolutions=dict(rank=2))
    delta, again = (made.init(jax.random.key(0), base) for _ in range(2))
    chex.assert_trees_all_equal(delta, again)
    downs = [leaf for path, leaf in trees.named(delta) if path.endswith("qkv/kernel/down")]
    assert len(downs) == 3 and not np.array_equal(downs[0], downs[1])
    other = made.init(jax.random.key(1), base)
    assert not np.array_equal(jax.tree.leaves(other)[0], jax.tree.leaves(delta)[0])


def test_targets_of_the_digits_network(base):
    def paths(**rules):
        delta = adapter(**rules).init(jax.random.key(0), base)
        return sorted({path.rpartition("/kernel/")[0] for path, _ in trees.named(delta)})

    attention = paths(attention=dict(rank=1))
    assert attention == sorted(
        f"{block}/{layer}"
        for block in ("enc/4x4_block0", "dec/4x4_in0", "dec/4x4_block1")
        for layer in ("qkv", "proj")
    )
    convolutions = paths(convolutions=dict(rank=1))
    assert {path.rpartition("/")[2] for path in convolutions} == {"conv0", "conv1", "skip"}
    embeddings = paths(embeddings=dict(rank=1))
    assert {path.rpartition("/")[2] for path in embeddings} == {"affine", "map_layer0", "map_layer1"}
    both = paths(attention=dict(rank=1), convolutions=dict(rank=1))
    assert both == sorted(attention + convolutions)


def test_counts_need_no_values(base):
    made = adapter(attention=dict(rank=4))
    shapes = jax.eval_shape(lambda: base)
    delta = jax.eval_shape(made.init, jax.random.key(0), shapes)
    assert trees.count(delta) == 3 * 4 * (16 + 48 + 16 + 16)  # rank times inputs and outputs of both layers
    merged = jax.eval_shape(made.merge, shapes, delta)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, shapes)


def stable_diffusion(layers, context):
    """Shapes of the attention of Stable Diffusion's U-Net: {width: transformer layers}."""

    def dense(*shape):
        return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def attention(width, given):
        keys = dict(to_q=dense(width, width), to_k=dense(given, width), to_v=dense(given, width))
        return {**keys, "to_out": {"0": dense(width, width)}}

    return {
        f"{width}_{index}": {"attn1": attention(width, width), "attn2": attention(width, context)}
        for width, count in layers.items()
        for index in range(count)
    }


@pytest.mark.parametrize(
    "layers, context, rank, published",
    [
        ({320: 5, 640: 5, 1280: 6}, 768, 128, 25_509_888),  # SD 1.5
        ({640: 10, 1280: 60}, 2048, 64, 92_897_280),  # SDXL
    ],
)
def test_published_sizes(layers, context, rank, published):
    made = adapter(attention=dict(rank=rank, alpha=float(rank)))
    delta = jax.eval_shape(made.init, jax.random.key(0), stable_diffusion(layers, context))
    assert trees.count(delta) == published


def test_scale_is_alpha_over_rank_and_one_by_default():
    assert lora.Rule(64, 8.0).scale == 0.125  # PixArt and SD3
    assert lora.Rule(64).scale == lora.Rule(64, 64.0).scale == 1


def test_taking_a_change_away_again_does_not_give_the_base(base):
    """Why nothing unmerges: the base tree is kept."""
    made = adapter(all=WHOLE)
    delta = filled(made.init(jax.random.key(0), base))
    merged = made.merge(base, delta)
    negative = jax.tree.map_with_path(lambda path, a: -a if trees.name(path).endswith("/up") else a, delta)
    back = made.merge(merged, negative)
    chex.assert_trees_all_close(back, base, atol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(back, base)


def test_the_delta_trains_through_the_merge(base):
    network = song.build(DIGITS, (8, 8, 1), 10)
    made = adapter(attention=dict(rank=2), convolutions=dict(rank=2))
    delta = made.init(jax.random.key(0), base)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))

    def loss(delta):
        return jnp.mean((network.apply(made.merge(base, delta), x, jnp.zeros(2), {}) - x) ** 2)

    grads = dict(trees.named(jax.jit(jax.grad(loss))(delta)))
    assert all(grad.any() for path, grad in grads.items() if path.endswith("/up"))
    assert not any(grad.any() for path, grad in grads.items() if path.endswith("/down"))  # up is zero


def test_bases_keep_their_dtype(base):
    made = adapter(attention=dict(rank=2))
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), base)
    merged = made.merge(half, filled(made.init(jax.random.key(0), half)))
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, half)


@pytest.mark.parametrize(
    "rules, message",
    [
        ({}, "lora needs a rule"),
        ({"attention": dict(rank=0)}, "lora rule attention: rank is a positive whole number; got 0"),
        ({"attention": dict(rank=-4)}, "positive whole number; got -4"),
        ({"attention": dict(rank=2.0)}, "positive whole number; got 2.0"),
        ({"attention": dict(rank=2, alpha=0.0)}, "alpha is positive, or None for the rank; got 0.0"),
        ({"attention": dict(rank=2, init="zeros")}, "init is 'zeros'; known: gaussian, kaiming"),
        ({"atention": dict(rank=2)}, "does not say where; .* attention, convolutions"),
        ({"mine": dict(rank=2, where="(")}, r"'\(' is no regular expression"),
        ({"attention": dict(rank=2, target="qkv")}, "no setting target; known: rank, alpha, init, where"),
        ({"attention": dict(alpha=2.0)}, "lora rule attention needs the setting rank"),
    ],
)
def test_impossible_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        lora.build({"rules": rules})


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="lora has no setting rank; known: rules"):
        lora.build({"rules": {"attention": dict(rank=2)}, "rank": 2})


def test_a_rule_that_meets_nothing_says_what_there_is(base):
    made = adapter(attention=dict(rank=2, where="to_q/kernel"))
    there = r"lora rule attention .*'to_q/kernel'.*conv0 \(\d+\).*qkv \(3\)"
    with pytest.raises(ValueError, match=there) as error:
        made.init(jax.random.key(0), base)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="its kernels are absent altogether"):
        made.merge({"bias": jnp.ones(3)}, {})


def test_rules_that_overlap_are_refused(base):
    made = adapter(attention=dict(rank=2), mine=dict(rank=2, where="enc/.*proj"))
    with pytest.raises(ValueError, match="attention and mine both change enc/4x4_block0/proj/kernel"):
        made.init(jax.random.key(0), base)


def test_deltas_of_other_shapes_or_targets_are_refused(base):
    made = adapter(attention=dict(rank=2))
    merge = lambda delta: made.merge(base, delta)
    wider = adapter(attention=dict(rank=3)).init(jax.random.key(0), base)
    leaf = "dec/4x4_block1/proj/kernel/down"
    with pytest.raises(ValueError, match=rf"{leaf} is \(1, 1, 16, 3\) there, .* make it \(1, 1, 16, 2\)"):
        merge(wider)
    fewer = adapter(mine=dict(rank=2, where="enc/.*qkv")).init(jax.random.key(0), base)
    with pytest.raises(ValueError, match=rf"{leaf} is absent there"):
        merge(fewer)
    more = adapter(attention=dict(rank=2), convolutions=dict(rank=2)).init(jax.random.key(0), base)
    with pytest.raises(ValueError, match=r"conv0/kernel/down is \(.*\) there, .* make it absent"):
        merge(more)
    with pytest.raises(ValueError, match="does not fit"):
        jax.eval_shape(made.merge, base, wider)  # before anything is computed


def test_full_training_starts_from_a_copy_of_the_base(base):
    made = trees.FULL.init(jax.random.key(0), base)
    chex.assert_trees_all_equal(made, base)
    buffers = {leaf.unsafe_buffer_pointer() for tree in (made, base) for leaf in jax.tree.leaves(tree)}
    assert len(buffers) == 2 * len(jax.tree.leaves(base))
    assert trees.FULL.merge(base, made) is made
