"""Adversarial losses in closed form, groups that share a mean, and heads by their published sizes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond, trees
from fastdiff_jax.losses import accumulation, adversarial
from fastdiff_jax.networks import discriminator, mlp
from fastdiff_jax.types import Model

LOGITS = jnp.array([-2.0, -0.3, 0.0, 0.7, 3.0])


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


F = np.asarray(LOGITS, np.float64)
CLOSED = {  # name -> generator, real, fake by the published table
    "hinge": (-F, np.maximum(1 - F, 0), np.maximum(1 + F, 0)),
    "lsgan": ((sigmoid(F) - 1) ** 2, (sigmoid(F) - 1) ** 2 / 2, sigmoid(F) ** 2 / 2),
    "wgan": (-F, -F, F),
    "non_saturating": (-np.log(sigmoid(F) + 1e-8), -np.log(sigmoid(F) + 1e-8), -np.log(1 - sigmoid(F) + 1e-8)),
    "vanilla": (-np.log(sigmoid(F)), -np.log(sigmoid(F)), -np.log(1 - sigmoid(F))),
}


def test_every_loss_has_its_closed_form():
    assert CLOSED.keys() == adversarial.ADVERSARIES.keys()


@pytest.mark.parametrize("name", CLOSED)
def test_losses_are_those_of_the_table(name):
    adversary = adversarial.build({"name": name})
    found = [adversary.generator(LOGITS), adversary.real(LOGITS), adversary.fake(LOGITS)]
    np.testing.assert_allclose(found, CLOSED[name], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", CLOSED)
def test_the_generator_raises_the_logit_and_the_discriminator_tells_them_apart(name):
    adversary = adversarial.build({"name": name})
    slope = lambda f: jax.vmap(jax.grad(f))(jnp.array([-0.5, 0.1, 0.5]))
    assert np.all(slope(adversary.generator) < 0)
    assert np.all(slope(adversary.real) < 0) and np.all(slope(adversary.fake) > 0)


def test_least_squares_without_the_sigmoid_are_the_published_ones():
    adversary = adversarial.build({"name": "lsgan", "sigmoid": False})
    np.testing.assert_allclose(adversary.generator(LOGITS), (F - 1) ** 2, rtol=1e-6)
    np.testing.assert_allclose(adversary.fake(LOGITS), F**2 / 2, rtol=1e-6)


def test_wasserstein_weights_are_bounded_and_others_left_alone():
    params = {"kernel": jnp.array([-1.0, 0.004, 0.5])}
    clipped = adversarial.bounded(params, adversarial.build({"name": "wgan", "bound": 0.01}))
    np.testing.assert_allclose(clipped["kernel"], [-0.01, 0.004, 0.01])
    assert adversarial.bounded(params, adversarial.build({"name": "hinge"})) is params


def test_an_unknown_loss_names_the_known():
    with pytest.raises(ValueError, match="no adversarial loss 'gan'; known: hinge, lsgan"):
        adversarial.build({"name": "gan"})


def test_groups_share_their_mean():
    values = jnp.arange(8.0)
    np.testing.assert_allclose(adversarial.shared(values, 1), np.full(8, 3.5))
    np.testing.assert_allclose(adversarial.shared(values, 8), values)
    np.testing.assert_allclose(adversarial.shared(values, 2), [3, 4] * 4)
    with pytest.raises(ValueError, match="batch of 8 does not divide into 3 groups"):
        adversarial.shared(values, 3)


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_with_as_many_groups_as_rounds_the_rounds_do_not_matter(rounds):
    """Weighted group means are no sum over images; groups that lie within rounds keep them exact."""
    keys = jax.random.split(jax.random.key(0))
    samples = {"value": jax.random.normal(keys[0], (8, 3)), "weight": jax.random.uniform(keys[1], (8,))}

    def loss(scale, part, dropout):
        groups = 4 // rounds
        total = adversarial.average((scale * part["value"]) ** 2, 8, part["weight"], groups)
        return total, total

    value, grad = accumulation.value_and_grad(loss, jnp.float32(2.0), samples, None, rounds)
    square, weight = np.asarray(samples["value"] ** 2).mean(1), np.asarray(samples["weight"])
    means = square.reshape(2, 4).mean(0)
    expected = float((np.tile(means, 2) * weight).sum()) / 8
    np.testing.assert_allclose([value, grad], [4 * expected, 4 * expected], rtol=1e-5)


def test_features_are_outlined_and_an_unknown_tap_names_the_known():
    model = Model(mlp.build({"hidden": (5, 7)}, (3,), 2), precond.edm())
    shares = np.array([0.5, 0.5])
    assert adversarial.features(model, "hidden2", (3,), shares).shape == (1, 7)
    with pytest.raises(ValueError, match="no tap 'middle'; known: hidden1, hidden2"):
        adversarial.features(model, "middle", (3,), shares)


SIZES = [
    (dict(head="flash_sd15"), (8, 8, 1280), 870_720, (1, 1)),  # the published counts
    (dict(head="flash"), (32, 32, 1280), 15_748_096, (1, 1)),
    (dict(head="flash", widths=(64, 128, 256, 512, 1024)), (128, 128, 4), 11_165_440, (1, 1)),
    (dict(head="flash", widths=(64, 128, 256, 512)), (128, 128, 16), 2_778_880, (5, 5)),
    (dict(), (8, 8, 768), 2 * (768 * 768 * 16 + 3 * 768) + 769, (1, 1)),
    (dict(layers=((None, 4, 2, 1), (None, 2, 2, 0))), (4, 4, 32), 20_705, (1, 1)),
    (dict(layers=((6, 1, 1, 0),)), (12,), 12 * 6 + 3 * 6 + 7, (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("config, shape, count, logits", SIZES)
def test_heads_have_their_published_sizes(config, shape, count, logits):
    net = discriminator.build(config, ())
    x, levels = jnp.zeros((2, *shape)), jnp.zeros(2)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    assert trees.count(params) == count
    assert jax.eval_shape(net.apply, params, x, levels).shape == (2, *logits)


def test_a_head_is_a_convolution_norm_and_activation():
    """One layer of 1x1 by hand: kernel, group norm, SiLU, kernel."""
    net, x = discriminator.build({"layers": ((8, 1, 1, 0),)}, ()), jax.random.normal(jax.random.key(0), (3, 5))
    params = net.init(jax.random.key(1), x)
    h = x @ params["kernel0"][0, 0] + params["bias0"]
    groups = h.reshape(3, 2, 4)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    expected = jax.nn.silu(normal.reshape(3, 8)) @ params["kernel1"][0, 0] + params["bias1"]
    logits = net.apply(params, x, jnp.zeros(3))
    chex.assert_trees_all_close(logits[:, 0, 0], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_flash_s_norms_have_four_groups_in_the_published_order():
    layers = discriminator.flash_sd15()
    assert [layer.then for layer in layers] == [("silu",), ("silu", "norm"), ()]
    assert [layer.groups for layer in layers] == [None, 4, None]
    assert [layer.then for layer in discriminator.flash((8, 16))] == [("silu",), ("norm", "silu"), ()]


@pytest.mark.parametrize("config, shape, words", [
    (dict(), (4, 4, 32), "layer 1 of the discriminator is 4x4 with padding 0 and sees 2x2; set smaller"),
    (dict(head="patch"), (4, 4, 32), "no head 'patch'; known: dmd2, flash_sd15, flash"),
    (dict(head="flash", layers=()), (4, 4, 32), "no option 'layers'; known: widths"),
])  # fmt: skip
def test_heads_that_cannot_be_say_why(config, shape, words):
    with pytest.raises(ValueError, match=words):
        discriminator.build(config, ()).init(jax.random.key(0), jnp.zeros((1, *shape)))
