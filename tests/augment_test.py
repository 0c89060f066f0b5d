"""The augmentation: transforms with exact answers, coins, labels, static shapes, and teachers that use it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdiff_jax import precond
from fastdiff_jax.data import augment, warp
from fastdiff_jax.runtime import commands, experiment
from fastdiff_jax.runtime.assemble import assemble

SIDE = 16
SIZE = 3
ALWAYS = dict.fromkeys(augment.LABELS, 1.0)


def images(channels=3):
    return jax.random.normal(jax.random.key(0), (SIZE, SIDE, SIDE, channels), jnp.float64)


def one(name, w, x=None, **more):
    """The transform `name` at w (...) for all images, at p = 1, and what it tells."""
    pipe = augment.pipe({"name": "chosen", "p": 1.0, name: 1.0})
    w = jnp.broadcast_to(jnp.asarray(w), (SIZE, *np.shape(w)))
    draws = {f"{name}_w": w, f"{name}_u": jnp.zeros(SIZE)}
    draws |= {f"{name}_{key}": jnp.full(SIZE, value) for key, value in more.items()}
    return pipe.apply(images() if x is None else x, draws)


# Single transforms.


def test_the_filter_is_orthogonal():
    """sum h = sqrt(2), and h is orthogonal to its even shifts."""
    np.testing.assert_allclose(warp.SYM6.sum(), np.sqrt(2), rtol=1e-10)
    products = np.correlate(warp.SYM6, warp.SYM6, "full")[1::2]
    np.testing.assert_allclose(products, np.eye(11)[5], atol=1e-9)


@pytest.mark.parametrize("name", sorted(augment.LABELS))
def test_zero_changes_nothing(x64, name):
    """A parameter of zero, in the units of the draw."""
    neutral = {"rotate_frac": 0.5, "hue": 0.5, "translate_int": (0.5, 0.5), "translate_frac": (0.0, 0.0)}
    more = {"r": 0.3, "ru": 0.1} if name == "aniso" else {}
    whole = name in augment.CHOICES
    changed, told = one(name, neutral.get(name, 0 if whole else 0.0), **more)
    np.testing.assert_allclose(changed, images(), atol=1e-10)
    np.testing.assert_array_equal(told, np.zeros((SIZE, augment.LABELS[name])))


def test_flips_and_quarter_turns(x64):
    x = np.asarray(images())
    for name, w, expected in [
        ("xflip", 1, x[:, :, ::-1]),
        ("yflip", 1, x[:, ::-1]),
        ("rotate_int", 1, np.rot90(x, axes=(1, 2))),
        ("rotate_int", 2, np.rot90(x, 2, axes=(1, 2))),
        ("rotate_int", 3, np.rot90(x, 3, axes=(1, 2))),
    ]:
        np.testing.assert_array_equal(one(name, w)[0], expected)
    np.testing.assert_array_equal(one("rotate_int", 1)[1], [[1, 0]] * SIZE)
    np.testing.assert_array_equal(one("rotate_int", 2)[1], [[1, 1]] * SIZE)
    np.testing.assert_array_equal(one("rotate_int", 3)[1], [[0, 1]] * SIZE)


def test_whole_pixels_move_and_reflect(x64):
    """A share of 0.75 of S/8 = 2 pixels is 1.5, rounded to 2; the draw is 2u - 1."""
    x = np.asarray(images())
    changed, told = one("translate_int", ((1 + 0.75) / 2, (1 - 0.75) / 2))  # right by 2, and y + 2
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(changed, padded[:, :SIDE, :SIDE])
    np.testing.assert_allclose(told, [[1, -1]] * SIZE)


def test_the_warp_meets_whole_pixels(x64):
    """Where output pixels fall onto input pixels nothing is lost."""
    x = np.asarray(images())
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved, told = one("translate_frac", (0.5, -0.5))  # of S/8 = 2 pixels: one right, one up
    np.testing.assert_allclose(moved, padded[:, 2:, :SIDE], atol=1e-9)
    np.testing.assert_allclose(told, [[0.5, -0.5]] * SIZE)


def test_a_quarter_turn_of_a_smooth_image(x64):
    """Not of noise: the filter is not symmetric, and one turned by a quarter is another."""
    place = np.arange(32) - 15.5
    x = np.broadcast_to((np.sin(0.2 * place) + np.cos(0.1 * place[:, None]))[..., None], (SIZE, 32, 32, 1))
    turned, told = one("rotate_frac", 0.75, jnp.asarray(x))
    middle = (slice(None), slice(8, 24), slice(8, 24))
    error = lambda turns: np.abs(turned - np.rot90(x, turns, axes=(1, 2)))[middle].max()
    assert error(1) < 0.05 and min(error(0), error(2), error(3)) > 0.5
    np.testing.assert_allclose(told, [[-1, 1]] * SIZE, atol=1e-12)


def test_scaling_is_of_smooth_images(x64):
    """x -> sin(k x) about the centre becomes sin(k x / s)."""
    place = np.arange(32) - 15.5
    wave = lambda k: np.broadcast_to(np.sin(k * place)[:, None], (SIZE, 32, 32, 1))
    changed, told = one("scale", 1.0, jnp.asarray(wave(0.2)))
    middle = (slice(None), slice(8, 24), slice(8, 24))
    np.testing.assert_allclose(changed[middle], wave(0.2 / 2**0.2)[middle], atol=0.01)
    np.testing.assert_allclose(told, np.ones((SIZE, 1)))


def test_stretching_along_an_axis(x64):
    """Along y (a quarter turn) by s, along x by 1/s; without its coin, the direction is x."""
    place = np.arange(32) - 15.5
    wave = lambda k: np.broadcast_to(np.sin(k * place)[:, None, None], (SIZE, 32, 32, 1))  # along y
    middle = (slice(None), slice(8, 24), slice(8, 24))
    for coin, factor, label in ((0.1, 2**0.2, [0, 1]), (0.9, 2**-0.2, [1, 0])):
        changed, told = one("aniso", 1.0, jnp.asarray(wave(0.2)), r=0.75, ru=coin)
        np.testing.assert_allclose(changed[middle], wave(0.2 / factor)[middle], atol=0.01)
        np.testing.assert_allclose(told, [label] * SIZE, atol=1e-12)


def test_colours(x64):
    x = np.asarray(images())
    grey = np.repeat(x.mean(-1, keepdims=True), 3, -1)
    for name, w, expected in [
        ("brightness", 2.0, x + 0.4),
        ("contrast", 2.0, 2 * x),
        ("lumaflip", 1, x - 2 * grey),
        ("saturation", 1.0, grey + 2 * (x - grey)),
        ("hue", (1 + 2 / 3) / 2, x[..., [2, 0, 1]]),  # a third of a turn permutes the channels
    ]:
        np.testing.assert_allclose(one(name, w)[0], expected, atol=1e-12, err_msg=name)


def test_colours_of_one_channel(x64):
    x = np.asarray(images(1))
    for name, w, expected in [
        ("brightness", 2.0, x + 0.4), ("contrast", 2.0, 2 * x), ("lumaflip", 1, -x), ("saturation", 1.0, x),
    ]:  # fmt: skip
        np.testing.assert_allclose(one(name, w, jnp.asarray(x))[0], expected, atol=1e-12, err_msg=name)


# The pipe.


def test_a_transform_fires_below_its_probability(x64):
    pipe = augment.pipe({"name": "chosen", "p": 0.5, "xflip": 0.5})
    draws = {"xflip_w": jnp.ones(SIZE, int), "xflip_u": jnp.array([0.24, 0.25, 0.9])}
    changed, told = pipe.apply(images(), draws)
    np.testing.assert_array_equal(told, [[1], [0], [0]])
    np.testing.assert_array_equal(changed[1:], images()[1:])
    np.testing.assert_array_equal(changed[0], images()[0, :, ::-1])


def test_edm_draws_as_often_as_it_says():
    pipe = augment.pipe({"name": "edm", "p": 0.12})
    x = jnp.zeros((4000, 2, 2, 1))
    _, told = jax.jit(pipe.apply)(x, pipe.draw(jax.random.key(0), 4000))
    assert pipe.labels == 9 and told.dtype == jnp.float32
    # Half of all flipped whatever p, a mirror's coin halves p; the others fire at p.
    expected = [0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12]
    np.testing.assert_allclose(np.mean(np.asarray(told) != 0, 0), expected, atol=0.03)
    for column in (2, 5, 7, 8):
        fired = np.asarray(told)[:, column]
        spread = np.std(fired[fired != 0])
        assert (0.6 if column == 5 else 0.9) < spread < 1.1


def test_one_program_serves_all_draws():
    pipe = augment.pipe({"name": "chosen", "p": 0.5} | ALWAYS)
    traces = []

    @jax.jit
    def step(key, x):
        traces.append(1)
        return pipe.apply(x, pipe.draw(key, len(x)))

    x = jnp.asarray(images(), jnp.float32)
    results = [step(jax.random.key(seed), x) for seed in range(5)]
    assert len(traces) == 1
    chex.assert_tree_all_finite(results)
    chex.assert_shape(results[0], [x.shape, (SIZE, 19)])
    chex.assert_type(results[0], jnp.float32)
    assert float(jnp.abs(results[0][0] - results[1][0]).max()) > 0.1


def test_float32_is_near_float64(x64):
    pipe = augment.pipe({"name": "edm", "p": 1.0})
    draws = pipe.draw(jax.random.key(3), SIZE)
    exact = pipe.apply(images(), draws)
    narrow = {k: v if v.dtype.kind == "i" else v.astype(jnp.float32) for k, v in draws.items()}
    single = pipe.apply(images().astype(jnp.float32), narrow)
    chex.assert_type(single, jnp.float32)
    chex.assert_trees_all_close(single, exact, atol=2e-4)


def test_a_full_margin_does_without_batch_mates(x64):
    """The other depends on them by filter tails; it agrees where all maps are moderate."""
    full, own = (augment.pipe({"name": "edm", "p": 1.0, "margin": margin}) for margin in ("full", "batch"))
    draws = full.draw(jax.random.key(1), SIZE)
    alone = full.apply(images()[:1], {key: value[:1] for key, value in draws.items()})
    chex.assert_trees_all_close(alone[0][0], full.apply(images(), draws)[0][0], atol=1e-12)
    assert 0 < jnp.abs(full.apply(images(), draws)[0] - own.apply(images(), draws)[0]).max() < 1e-3


@pytest.mark.parametrize(
    "config, message",
    [
        ({"name": "ada", "p": 0.1}, "no augmentation 'ada'; known: edm, chosen"),
        ({"name": "edm"}, "needs the setting p"),
        ({"name": "edm", "p": 0.1, "xfilp": 1}, "no setting xfilp"),
        ({"name": "edm", "p": -0.1}, "p is not negative"),
        ({"name": "edm", "p": 0.1, "margin": "no"}, "'batch' or 'full'"),
        ({"name": "chosen", "p": 0.1}, "no transform has a multiplier"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        augment.pipe(config)


def test_what_cannot_be_changed_is_said():
    pipe = augment.pipe({"name": "chosen", "p": 1.0, "hue": 1.0})
    draws = pipe.draw(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="1 or 3 channels; the images have 2"):
        pipe.apply(jnp.zeros((2, 4, 4, 2)), draws)
    with pytest.raises(ValueError, match="square images.* 4x6"):
        pipe.apply(jnp.zeros((2, 4, 6, 3)), draws)


# Teachers.


def digits(**changes):
    config = experiment.load("edm_digits:smoke")
    config.models.student.network.augment_dim = 9
    config.augment = dict(name="edm", p=0.5) | changes
    return config


def test_a_teacher_denoises_the_augmented_image():
    """Its loss is the objective's, of the changed image, with the label told."""
    job = assemble(digits())
    state = jax.jit(job.method.init)(jax.random.key(0), {})
    # The last layer of a fresh network is all but zero: without noise in it nothing tells labels apart.
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), state.params
    )
    batch = {"image": jnp.asarray(job.data.decode(job.data.train.images[:4])), "label": jnp.arange(4)}
    draws = job.method.draw(jax.random.key(1), batch, None)
    _, metrics = jax.jit(job.method.update, static_argnums=4)(
        state._replace(params=params), {}, batch, draws, None
    )
    changed, told = jax.jit(job.parts.augment.apply)(batch["image"], draws["augment"])
    assert float(jnp.abs(changed - batch["image"]).max()) > 0.1 and float(jnp.abs(told).max()) > 0.1

    @jax.jit
    def loss(image, cond):
        cond = {"label": jax.nn.one_hot(batch["label"], 10)} | cond
        bound = precond.denoiser(job.parts.models["student"], params, cond)
        return job.parts.objective.loss(bound, image, draws).sum() / 4

    np.testing.assert_allclose(metrics["loss"], loss(changed, {"augment": told}), rtol=2e-5)
    assert abs(loss(changed, {}) / metrics["loss"] - 1) > 1e-4
    few = next(iter(job.method.samplers.values()))
    shape = jax.eval_shape(few.generate, params, {}, jax.random.split(jax.random.key(0), 2),
                           {"label": jnp.zeros((2, 10))})  # fmt: skip
    assert shape.shape == (2, 8, 8, 1)


def test_without_augmentation_nothing_is_drawn():
    job = assemble(experiment.load("edm_digits:smoke"))
    assert job.parts.augment is None
    assert "augment" not in job.method.draw(jax.random.key(0), {"image": jnp.zeros((2, 8, 8, 1))}, None)


def test_a_network_must_be_told():
    with pytest.raises(ValueError, match="9 numbers an image.* takes 0; set its augment_dim=9"):
        config = digits()
        config.models.student.network.augment_dim = 0
        assemble(config, outline=True)
    with pytest.raises(ValueError, match="tells the network 10 numbers"):
        assemble(digits(brightness=1.0), outline=True)


def test_students_are_not_augmented():
    config = experiment.load("sfd_digits:smoke")
    config.augment = dict(name="edm", p=0.1)
    with pytest.raises(ValueError, match="method sfd does without"):
        assemble(config, outline=True)


@pytest.mark.parametrize("reference, p", [("sid_cifar10", 0.12), ("sid_ffhq64", 0.15), ("sid_afhqv2", 0.15)])
def test_sid_s_fake_score_is_told_of_augmentation(reference, p):
    """Official students have networks that can be told, and the pipe of their teacher (arXiv:2404.04057)."""
    config = experiment.load(reference)
    assert config.augment.to_dict() == dict(name="edm", p=p)
    job = assemble(config, outline=True)
    batch = {"image": jax.ShapeDtypeStruct((4, *job.data.shape), jnp.float32)}
    draws = jax.eval_shape(lambda key, b: job.method.draw(key, b, None), jax.random.key(0), batch)
    assert draws["fake"][0]["augment"]["scale_w"].shape == (4,) and "augment" not in draws["generator"]


def test_sid_s_networks_take_what_they_are_told():
    job = assemble(experiment.load("sid_cifar10:smoke"), outline=True)
    frozen, initial = commands.basis_shapes(job)
    state = jax.eval_shape(job.method.init, jax.random.key(0), frozen | initial)
    batch = {"image": jax.ShapeDtypeStruct((4, *job.data.shape), jnp.float32)}
    draws = jax.eval_shape(lambda key, b: job.method.draw(key, b, None), jax.random.key(0), batch)
    after, metrics = jax.eval_shape(lambda *a: job.method.update(*a, None), state, frozen, batch, draws)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss_fake"].shape == ()


def test_a_fake_score_must_be_told():
    config = experiment.load("sid_digits:smoke")
    config.augment = dict(name="edm", p=0.1)
    with pytest.raises(ValueError, match="9 numbers an image, and the fake's network takes 0"):
        assemble(config, outline=True)
