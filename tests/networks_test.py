"""Networks: official sizes, shapes, conditions, precision, taps, and the analytic ones against autodiff."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import registry, trees
from fastdiff_jax.interop import names
from fastdiff_jax.networks import classifier, gmm, mlp, song

OFFICIAL = {  # (architecture, mult, side, classes) -> parameters, frequencies not counted
    "cifar10 cond VP": (("ddpmpp", (2, 2, 2), 32, 10), 55_735_299),
    "cifar10 uncond VP": (("ddpmpp", (2, 2, 2), 32, 0), 55_733_891),
    "cifar10 cond VE": (("ncsnpp", (2, 2, 2), 32, 10), 56_400_643),
    "cifar10 uncond VE": (("ncsnpp", (2, 2, 2), 32, 0), 56_397_827),
    "ffhq uncond VP": (("ddpmpp", (1, 2, 2, 2), 64, 0), 61_805_571),
    "ffhq uncond VE": (("ncsnpp", (1, 2, 2, 2), 64, 0), 62_761_091),
}
SMALL = dict(model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
C_NOISE = jnp.array([-1.0, 0.5])
QUICK = {"xla_backend_optimization_level": 0}
LABEL = jax.nn.one_hot(jnp.array([3, 1]), 5)


def shapes_of(network, shape, classes):
    cond = {"label": jnp.zeros((1, classes))} if classes else {}
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)), cond)


@functools.cache
def small(classes=5, **changes):
    """A small U-Net with every weight drawn, as the last layers' own init is next to nothing."""
    network = song.build({**SMALL, **changes}, (8, 8, 3), classes)
    # Each program runs a few times, so compiling is what costs.
    apply = jax.jit(network.apply, static_argnames="taps", compiler_options=QUICK)
    generator = np.random.default_rng(0)

    def drawn(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        return jnp.asarray(generator.standard_normal(leaf.shape) / np.sqrt(fan_in), jnp.float32)

    return network._replace(apply=apply), jax.tree.map(drawn, shapes_of(network, (8, 8, 3), classes))


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_networks_have_their_published_sizes(name):
    (architecture, mult, side, classes), expected = OFFICIAL[name]
    config = dict(architecture=architecture, channel_mult=mult, augment_dim=9)
    params = shapes_of(song.build(config, (side, side, 3), classes), (side, side, 3), classes)
    frequencies = sum(leaf.size for path, leaf in trees.named(params) if path.endswith("freqs"))
    assert trees.count(params) - frequencies == expected


def test_the_digits_network_has_309_697_parameters():
    config = dict(model_channels=32, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,))
    assert trees.count(shapes_of(song.build(config, (8, 8, 1), 10), (8, 8, 1), 10)) == 309_697


@pytest.mark.parametrize("architecture", song.ARCHITECTURES)
def test_song_keeps_shape_and_dtype(architecture):
    network, params = small(architecture=architecture)
    out = network.apply(params, X, C_NOISE, {"label": LABEL})
    chex.assert_shape(out, X.shape)
    chex.assert_type([out, *jax.tree.leaves(params)], jnp.float32)
    chex.assert_tree_all_finite(out)


def test_noise_level_label_and_augmentation_reach_the_output():
    network, params = small(augment_dim=9)
    cond = {"label": LABEL, "augment": jnp.ones((2, 9))}
    base = network.apply(params, X, C_NOISE, cond)
    others = [
        network.apply(params, X, C_NOISE + 0.5, cond),
        network.apply(params, X, C_NOISE, cond | {"label": LABEL[::-1]}),
        network.apply(params, X, C_NOISE, cond | {"augment": jnp.zeros((2, 9))}),
    ]
    for other in others:
        assert jnp.abs(other - base).max() > 1e-3


def test_missing_conditions_count_as_zeros():
    network, params = small(augment_dim=9)
    zeros = {"label": jnp.zeros((2, 5)), "augment": jnp.zeros((2, 9))}
    given = network.apply(params, X, C_NOISE, zeros)
    for missing in ({}, {"label": None, "augment": None}):
        out = network.apply(params, X, C_NOISE, missing)
        chex.assert_trees_all_close(out, given, rtol=1e-4, atol=1e-5)


def test_unknown_conditions_raise_with_the_known_ones():
    network, params = small()
    with pytest.raises(ValueError, match="'text'.*known: label"):
        network.apply(params, X, C_NOISE, {"text": LABEL})
    network, params = small(classes=0)
    with pytest.raises(ValueError, match="unconditional"):
        network.apply(params, X, C_NOISE, {"label": LABEL})


def test_dropout_acts_with_a_key_only():
    network, params = small(dropout=0.5)
    plain = [network.apply(params, X, C_NOISE, {}) for _ in range(2)]
    dropped = [network.apply(params, X, C_NOISE, {}, dropout=jax.random.key(k)) for k in (0, 0, 1)]
    chex.assert_trees_all_equal(*plain)
    chex.assert_trees_all_equal(dropped[0], dropped[1])
    assert jnp.abs(dropped[0] - plain[0]).max() > 1e-3 < jnp.abs(dropped[0] - dropped[2]).max()


def test_bfloat16_is_close_and_returns_float32():
    network, params = small()
    narrow, _ = small(dtype="bfloat16")
    exact, rough = (n.apply(params, X, C_NOISE, {"label": LABEL}) for n in (network, narrow))
    chex.assert_type(rough, jnp.float32)
    error = jnp.abs(rough - exact).max() / jnp.abs(exact).max()
    assert 1e-5 < error < 0.05


def test_float32_is_close_to_float64(x64):
    network, narrow = small()
    wide, x = jax.tree.map(lambda p: p.astype(jnp.float64), narrow), np.asarray(X, np.float64)
    exact = network.apply(wide, x, np.asarray(C_NOISE, np.float64), {})
    rough = network.apply(narrow, X, C_NOISE, {})
    assert (exact.dtype, rough.dtype) == (jnp.float64, jnp.float32)
    error = jnp.abs(rough - exact).max() / jnp.abs(exact).max()
    assert 0 < error < 2e-5


def test_taps_return_named_features():
    network, params = small()
    tap = "enc/4x4_block0"
    out, features = network.apply(params, X, C_NOISE, {"label": LABEL}, taps=(tap,))
    chex.assert_shape(features[tap], (2, 4, 4, 32))
    plain = network.apply(params, X, C_NOISE, {"label": LABEL})
    chex.assert_trees_all_close(out, plain, rtol=1e-5)
    with pytest.raises(ValueError, match="'enc/9x9'.*known:.*enc/4x4_block0"):
        network.apply(params, X, C_NOISE, {}, taps=("enc/9x9",))


def test_all_weights_but_the_frequencies_get_a_gradient():
    _, params = small(architecture="ncsnpp")
    network = song.build({**SMALL, "architecture": "ncsnpp"}, (8, 8, 3), 5)
    total = lambda p: jnp.square(network.apply(p, X, C_NOISE, {"label": LABEL})).sum()
    for path, leaf in trees.named(jax.jit(jax.grad(total), compiler_options=QUICK)(params)):
        assert bool(jnp.any(leaf != 0)) != path.endswith("freqs"), path


@pytest.mark.parametrize(
    "config, shape, words",
    [
        (dict(chanels=3), (8, 8, 3), "'chanels'.*known:.*model_channels"),
        (dict(architecture="adm"), (8, 8, 3), "'adm'; known: ddpmpp, ncsnpp"),
        (dict(channel_mult=(1, 1, 1)), (6, 6, 3), "divides by 4"),
        (dict(dtype="float16"), (8, 8, 3), "known: float32, bfloat16"),
    ],
)
def test_song_refuses_in_one_line(config, shape, words):
    with pytest.raises(ValueError, match=words) as caught:
        song.build(config, shape, 0)
    assert "\n" not in str(caught.value)


def test_state_dicts_convert_strictly_both_ways():
    network, params = small()
    state = names.to_state(params)
    back = names.from_state(state, params)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, params), back)
    short = dict(state)
    short.pop(next(iter(short)))
    for wrong in (short, state | {"extra.weight": np.zeros(3)}):
        with pytest.raises(ValueError):
            names.from_state(wrong, params)


def test_mlp_is_its_formula():
    network = mlp.build({"hidden": (7,)}, (3,), 0)
    x, c = jax.random.normal(jax.random.key(0), (4, 3)), jnp.linspace(-1, 1, 4)
    p = network.init(jax.random.key(1), x)
    expected = jnp.tanh(x @ p["W1"] + p["b1"] + c[:, None] * p["u"]) @ p["W2"] + p["b2"]
    chex.assert_trees_all_close(network.apply(p, x, c, {}), expected, rtol=1e-6)


def test_mlp_with_labels_and_two_layers_is_its_formula():
    network = mlp.build({"hidden": [7, 6]}, (2, 2), 5)
    x, c = jax.random.normal(jax.random.key(0), (2, 2, 2)), jnp.array([-1.0, 1.0])
    p = network.init(jax.random.key(1), x)
    first = jnp.tanh(x.reshape(2, 4) @ p["W1"] + p["b1"] + c[:, None] * p["u"] + LABEL @ p["V"])
    second = jnp.tanh(first @ p["W2"] + p["b2"])
    out, features = network.apply(p, x, c, {"label": LABEL}, taps=("hidden1", "hidden2"))
    chex.assert_trees_all_close(features, {"hidden1": first, "hidden2": second}, rtol=1e-5)
    chex.assert_trees_all_close(out, (second @ p["W3"] + p["b3"]).reshape(x.shape), rtol=1e-5, atol=1e-6)


def test_gmm_is_the_score_of_its_density(x64):
    network = gmm.build(dict(modes=5, radius=2.0, scale=0.3), (3,))
    params = network.init(jax.random.key(0), jnp.zeros((1, 3)))
    x, sigma = jax.random.normal(jax.random.key(1), (6, 3)), jnp.geomspace(1e-3, 50, 6)
    score = jax.grad(lambda x: gmm.log_density(params, x, sigma).sum())(x)
    chex.assert_trees_all_close(
        network.apply(params, x, sigma, {}), x + sigma[:, None] ** 2 * score, rtol=1e-9
    )


def test_gmm_samples_have_its_moments():
    network = gmm.build({}, (2,))
    params = network.init(jax.random.key(0), jnp.zeros((1, 2)))
    points, _ = gmm.sample(params, jax.random.key(1), 20000)
    mean, covariance = gmm.moments(params)
    chex.assert_trees_all_close(points.mean(0), mean, atol=0.03)
    chex.assert_trees_all_close(jnp.cov(points.T), covariance, atol=0.03)


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 3), (28, 28, 1), (2, 30, 1)])
def test_classifier_makes_logits_and_features(shape):
    network = classifier.build({}, shape, 10)
    x = jnp.ones((2, *shape))
    params = network.init(jax.random.key(0), x)
    logits, features = network.apply(params, x, jnp.zeros(2), {}, taps=("features",))
    chex.assert_shape([logits, features["features"]], [(2, 10), (2, 64)])


def test_every_network_module_builds_by_name():
    for name in ("song", "mlp", "gmm", "classifier"):
        assert callable(registry.load("networks", name))
    with pytest.raises(ValueError, match="'unet'; known:.*song"):
        registry.load("networks", "unet")
