"""ADM: official size, initialisation, heads, conditions, step condition, precision, names both ways."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond, trees
from fastdiff_jax.interop import names
from fastdiff_jax.networks import adm, song
from fastdiff_jax.runtime import command_line
from fastdiff_jax.types import Model

SMALL = dict(
    model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), channels_per_head=8,
    augment_dim=9,
)  # fmt: skip
ONE = SMALL | dict(channel_mult=(1,), attn_resolutions=())
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
C_NOISE = jnp.array([-1.0, 0.5])
LABEL = jax.nn.one_hot(jnp.array([3, 1]), 5)
COND = {"label": LABEL, "augment": jnp.ones((2, 9))}
QUICK = {"xla_backend_optimization_level": 0}


def shapes_of(network, shape=(8, 8, 3), **cond):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, *shape)), cond)


@functools.cache
def small(**changes):
    """A small ADM with every weight drawn, as the last layers' own init is zero."""
    network = adm.build({**SMALL, **changes}, (8, 8, 3), 5)
    # Each program runs a few times, so compiling is what costs.
    apply = jax.jit(network.apply, static_argnames="taps", compiler_options=QUICK)
    generator = np.random.default_rng(0)

    def drawn(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        return jnp.asarray(generator.standard_normal(leaf.shape) / np.sqrt(fan_in), jnp.float32)

    stamps = {"stamps": jnp.zeros(2)} if changes.get("stamps") else {}
    return network._replace(apply=apply), jax.tree.map(drawn, shapes_of(network, **stamps))


@pytest.fixture(scope="module")
def fresh():
    """Initial weights of an ADM of one level that knows how many steps there are, at random and from zero."""
    found = {}
    for stamps in ("random", "zero"):
        network = adm.build({**ONE, "stamps": stamps}, (8, 8, 3), 5)
        init = jax.jit(network.init, compiler_options=QUICK)
        found[stamps] = init(jax.random.key(0), X, {"stamps": jnp.zeros(2)})
    return found


def test_the_official_network_has_its_published_size():
    params = shapes_of(adm.build({}, (64, 64, 3), 1000), (64, 64, 3))
    assert trees.parameters(params) == trees.count(params) == 295_899_267


def test_a_fresh_network_is_zero_and_hears_no_augmentation(fresh):
    network, params = adm.build({**ONE, "stamps": "random"}, (8, 8, 3), 5), fresh["random"]
    out = jax.jit(network.apply, compiler_options=QUICK)(params, X, C_NOISE, {})
    chex.assert_trees_all_equal(out, jnp.zeros_like(X))
    assert not params["map_augment"]["kernel"].any()
    chex.assert_shape(params["map_augment"]["kernel"], (9, 16))


def test_initial_weights_follow_their_laws(fresh):
    params = fresh["random"]
    block = params["enc"]["8x8_block0"]
    for layer, fan_in in (
        (params["map_layer1"], 64), (block["conv0"], 144), (block["affine"], 64),
        (params["dec"]["8x8_in0"]["qkv"], 16), (params["enc"]["8x8_conv"], 27),
    ):  # fmt: skip
        for leaf in layer.values():  # U(-1, 1) / sqrt(fan_in), biases too
            assert 0.8 < jnp.abs(leaf).max() * np.sqrt(fan_in) <= 1
    last = [block["conv1"], params["dec"]["8x8_in0"]["proj"], params["out_conv"]]
    assert not any(leaf.any() for layer in last for leaf in layer.values())
    label = params["map_label"]["kernel"]  # N(0, 1)
    chex.assert_shape(label, (5, 64))
    assert "bias" not in params["map_label"]
    assert abs(label.std() - 1) < 0.15


def test_the_label_acts_behind_the_mapping_and_missing_conditions_are_zeros():
    network, params = small()
    base = network.apply(params, X, C_NOISE, COND)
    for other in (COND | {"label": LABEL[::-1]}, COND | {"augment": jnp.zeros((2, 9))}):
        assert jnp.abs(network.apply(params, X, C_NOISE, other) - base).max() > 1e-3
    zeros = {"label": jnp.zeros((2, 5)), "augment": jnp.zeros((2, 9))}
    given = network.apply(params, X, C_NOISE, zeros)
    chex.assert_trees_all_close(network.apply(params, X, C_NOISE, {}), given, rtol=1e-4, atol=1e-5)
    # emb = silu(map_layer1(...) + label): a label is the same as a shift of map_layer1's bias.
    one = {"label": jnp.tile(LABEL[:1], (2, 1))}
    moved = dict(params["map_layer1"])
    moved["bias"] = moved["bias"] + params["map_label"]["kernel"][3]
    shifted = network.apply(params | {"map_layer1": moved}, X, C_NOISE, {})
    chex.assert_trees_all_close(network.apply(params, X, C_NOISE, one), shifted, rtol=1e-4, atol=1e-5)


def test_features_narrower_than_a_head_have_no_attention():
    attends = lambda params: sorted(
        {path.rsplit("/", 2)[0] for path, _ in trees.named(params) if "/qkv/" in path}
    )
    wide = dict(SMALL, attn_resolutions=(8, 4))
    everywhere = ["dec/4x4_block0", "dec/4x4_block1", "dec/4x4_in0", "dec/8x8_block0", "dec/8x8_block1",
                  "enc/4x4_block0", "enc/8x8_block0"]  # fmt: skip
    assert attends(shapes_of(adm.build(wide, (8, 8, 3)))) == everywhere
    narrow = [name for name in everywhere if "4x4" in name]
    assert attends(shapes_of(adm.build({**wide, "channels_per_head": 32}, (8, 8, 3)))) == narrow
    assert attends(shapes_of(adm.build({**wide, "channels_per_head": 64}, (8, 8, 3)))) == []


def test_heads_divide_the_channels():
    """More heads, same weights: another network."""
    one, two = (small(channels_per_head=width) for width in (32, 16))
    chex.assert_trees_all_equal(one[1], two[1])
    outputs = [network.apply(params, X, C_NOISE, {}) for network, params in (one, two)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_a_denoiser_takes_the_first_channels_of_a_learned_variance():
    network, params = small(out_channels=6)
    sigma = jnp.array([0.3, 1.0])
    scaling = precond.iddpm()
    c = scaling.coefficients(sigma)
    column = lambda values: values[:, None, None, None]
    raw = network.apply(params, column(c.inp) * X, c.noise, COND)
    chex.assert_shape(raw, (2, 8, 8, 6))
    expected = X - column(sigma) * raw[..., :3]
    found = precond.denoiser(Model(network, scaling), params, COND)(X, sigma)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_step_condition_starts_at_nothing_or_perturbs(fresh):
    network, params = small(stamps="random")
    cond = {"stamps": jnp.array([4.0, 7.0])}
    plain = network.apply(params, X, C_NOISE, {})
    told = network.apply(params, X, C_NOISE, cond)
    assert jnp.abs(told - plain).max() > 1e-3
    assert fresh["random"]["enc"]["8x8_block0"]["affine_step"]["kernel"].any()
    silent = [leaf for path, leaf in trees.named(fresh["zero"]) if "affine_step" in path]
    assert silent
    assert not any(leaf.any() for leaf in silent)
    muted = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "affine_step" in jax.tree_util.keystr(path) else leaf, params
    )
    chex.assert_trees_all_close(network.apply(muted, X, C_NOISE, cond), plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="'stamps'.*known: label, augment"):
        small()[0].apply(small()[1], X, C_NOISE, cond)


def test_dropout_acts_with_a_key_only():
    network, params = small(dropout=0.5)
    plain = [network.apply(params, X, C_NOISE, {}) for _ in range(2)]
    dropped = [network.apply(params, X, C_NOISE, {}, dropout=jax.random.key(k)) for k in (0, 0, 1)]
    chex.assert_trees_all_equal(*plain)
    chex.assert_trees_all_equal(dropped[0], dropped[1])
    assert jnp.abs(dropped[0] - plain[0]).max() > 1e-3 < jnp.abs(dropped[0] - dropped[2]).max()


def test_bfloat16_is_close_and_returns_float32():
    network, params = small()
    exact, rough = (n.apply(params, X, C_NOISE, COND) for n in (network, small(dtype="bfloat16")[0]))
    chex.assert_type(rough, jnp.float32)
    assert 1e-5 < jnp.abs(rough - exact).max() / jnp.abs(exact).max() < 0.05


def test_taps_return_named_features():
    network, params = small()
    taps = ("enc/8x8_conv", "enc/4x4_down", "enc/4x4_block0", "dec/8x8_block1")
    out, features = network.apply(params, X, C_NOISE, COND, taps=taps)
    shapes = [(2, 8, 8, 16), (2, 4, 4, 16), (2, 4, 4, 32), (2, 8, 8, 16)]
    chex.assert_shape([features[tap] for tap in taps], shapes)
    chex.assert_trees_all_close(out, network.apply(params, X, C_NOISE, COND), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'enc/9x9'.*known:.*dec/8x8_block1"):
        network.apply(params, X, C_NOISE, {}, taps=("enc/9x9",))


@pytest.mark.parametrize(
    "config, shape, words",
    [
        (dict(architecture="ddpmpp"), (8, 8, 3), "'architecture'.*known:.*channels_per_head"),
        (dict(channel_mult=(1, 1, 1)), (6, 6, 3), "adm takes square images.*divides by 4"),
        (dict(dtype="float16"), (8, 8, 3), "known: float32, bfloat16"),
        (dict(stamps="some"), (8, 8, 3), "stamps is 'some'"),
        (dict(channels_per_head=0), (8, 8, 3), "channels_per_head is positive; got 0"),
    ],
)
def test_adm_refuses_in_one_line(config, shape, words):
    with pytest.raises(ValueError, match=words) as caught:
        adm.build({**SMALL, **config}, shape, 0)
    assert "\n" not in str(caught.value)


class TestNames:
    """State dicts of ADM, and of what SFD and improved DDPM add."""

    def test_both_ways_are_exact(self):
        _, params = small(stamps="random")
        state = names.to_state(params, prefix="model.")
        assert state["model.dec.8x8_up.skip.resample_filter"].shape == (1, 1, 2, 2)
        assert "model.dec.8x8_up.skip.weight" not in state  # it resamples, and no more
        assert state["model.map_step_layer0.weight"].shape == (64, 16)
        back = names.from_state(state, params, prefix="model.")
        chex.assert_trees_all_equal(jax.tree.map(np.asarray, params), back)
        assert {name: value.shape for name, value in state.items()} == names.layout(params, prefix="model.")

    @pytest.mark.parametrize("name", ["model.out_conv.bias", "model.map_step_layer1.weight"])
    def test_a_missing_or_a_strange_name_is_refused(self, name):
        _, params = small(stamps="random")
        state = names.to_state(params, prefix="model.")
        with pytest.raises(ValueError, match="1 left over.*model.out.bias"):
            names.from_state(state | {"model.out.bias": np.zeros(3)}, params, prefix="model.")
        del state[name]
        with pytest.raises(ValueError, match=f"1 missing .{name}"):
            names.from_state(state, params, prefix="model.")

    def test_a_step_branch_fits_no_network_without(self):
        with pytest.raises(ValueError, match="left over.*affine_step"):
            names.from_state(names.to_state(small(stamps="random")[1]), small()[1])

    def test_the_table_of_improved_ddpm_is_compared(self):
        _, params = small()
        levels = precond.iddpm_table()
        state = names.to_state(params, prefix="model.", levels=levels)
        assert names.is_buffer("u")
        assert state["u"].shape == (1001,)
        off = state | {"u": state["u"] * (1 + 5e-4)}  # as far as the reference's float32 is
        back = names.from_state(off, params, prefix="model.", levels=levels)
        chex.assert_trees_all_equal(jax.tree.map(np.asarray, params), back)
        for wrong, words in ((state["u"] * 1.1, "another table"), (state["u"][:-1], "another table")):
            with pytest.raises(ValueError, match=words):
                names.from_state(state | {"u": wrong}, params, prefix="model.", levels=levels)
        with pytest.raises(ValueError, match="1 left over .u"):
            names.from_state(state, params, prefix="model.")
        del state["u"]
        with pytest.raises(ValueError, match="no table u of 1001"):
            names.from_state(state, params, prefix="model.", levels=levels)


def test_frequencies_are_no_parameters():
    network = song.build(dict(architecture="ncsnpp", model_channels=16, num_blocks=1), (8, 8, 3))
    params = shapes_of(network)
    assert trees.count(params) - trees.parameters(params) == 16


def test_the_forward_pass_is_timed_alone(capsys):
    command = "benchmark.py --config configs/edm_imagenet64.py:smoke --forward 2 --steps 1"
    assert command_line.benchmark(command.split()) == 0
    network, times, memory = capsys.readouterr().out.splitlines()
    assert "2 image(s) of 64x64x3" in network
    assert times.startswith("forward pass: compile ")
    assert 100 < int(memory.split()[2]) < 2**20  # MiB
    assert "training step" not in times
    assert command_line.benchmark([*command.split()[:-4], "--forward", "0"]) == 2
