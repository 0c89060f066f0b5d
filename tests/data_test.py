"""Data sets and the input pipeline."""

import io
import os
import sys
from pathlib import Path

import chex
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from fastdiff_jax import registry
from fastdiff_jax.data import digits, pipeline, stored, tfds, toys
from fastdiff_jax.types import Data

DIGITS = digits.build({})
TFDS = Path(__file__).parents[2] / "shared" / "tfds"
FLOATS = arrays.arrays(np.float32, (3, 4), elements=st.floats(-2, 2, width=32))


def counting(num, source=stored.Rows) -> Data:
    """`num` images whose only pixel is their number."""
    images, labels = np.arange(num, dtype=np.int64)[:, None], np.arange(num) % 3
    keep = lambda x: np.asarray(x, np.float32)
    return Data("counting", source(images, labels), {}, 3, keep, keep, "", (1,))


def numbers(batch):
    return batch["image"][:, 0].astype(int).tolist()


@pytest.fixture
def prepared(monkeypatch):
    """TFDS_DATA_DIR, or the folder beside the repository."""
    if "TFDS_DATA_DIR" not in os.environ:
        monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))


# Stored values.


def test_eight_bit_rule():
    x = np.array([[-1.0, 0.0, 1.0, -7.0, 7.0, 0.5 / 127.5, np.inf]])
    np.testing.assert_array_equal(stored.encode(x), [[0, 128, 255, 0, 255, 128, 255]])
    every = np.arange(256, dtype=np.uint8)[:, None]
    np.testing.assert_array_equal(stored.encode(stored.decode(every)), every)
    chex.assert_type([stored.encode(x), stored.decode(every)], [np.uint8, np.float32])


@pytest.mark.parametrize("codec, step", [(stored, 1 / 127.5), (digits, 1 / 8)])
@hypothesis.settings(deadline=None)
@hypothesis.given(FLOATS)
def test_storing_moves_a_value_by_half_a_level_at_most(codec, step, x):
    once = codec.decode(codec.encode(x))
    assert np.abs(once - np.clip(x, -1, 1)).max() <= step / 2 + 1e-6
    np.testing.assert_array_equal(codec.encode(once), codec.encode(x))


@pytest.mark.parametrize("encode", [stored.encode, digits.encode, stored.without_nan])
def test_nan_is_refused_by_name(encode):
    with pytest.raises(ValueError, match="image 1 has NaN"):
        encode(np.array([[0.0, 0.0], [0.0, np.nan]]))


def test_fingerprint_sees_values_shapes_and_types():
    a = np.arange(6, dtype=np.uint8)
    prints = [stored.fingerprint(v) for v in (a, a + 1, a.reshape(2, 3), a.astype(np.int32))]
    assert len(set(prints)) == 4 and stored.fingerprint(a) == prints[0]


# Digits.


def test_digits_are_the_protocols():
    images, split = DIGITS.reference["image"], DIGITS.reference["split"]
    assert (len(DIGITS.train), len(images), split.sum(), DIGITS.shape) == (
        1437,
        1797,
        360,
        (8, 8, 1),
    )
    x = DIGITS.decode(images)
    assert (round(float(x.std()), 3), round(float(x.mean()), 3)) == (0.752, -0.389)
    assert np.sum(x.reshape(1797, -1).std(0) == 0) == 3
    np.testing.assert_array_equal(np.unique(8 * (x + 1)), np.arange(17))
    np.testing.assert_array_equal(DIGITS.encode(x), images)
    trained = {image.tobytes() for image in DIGITS.train.images}
    assert trained == {image.tobytes() for image in images[split == 0]}
    assert DIGITS.fingerprint == digits.build({}).fingerprint


def test_digits_rounds_to_seventeen_levels():
    x = np.array([[-1.2, -1.0, -0.95, -0.93, 0.0, 0.07, 1.0, 3.0]])
    np.testing.assert_array_equal(
        digits.decode(digits.encode(x)) * 8 + 8, [[0, 0, 0, 1, 8, 9, 16, 16]]
    )
    assert digits.encode(np.array([[1.0]])) == 255


@pytest.mark.parametrize(
    "name, config, message",
    [
        ("digits", {"held": 3}, "no setting held; known: held_out"),
        ("digits", {"held_out": 1797}, "from 0 to 1796; got 1797"),
        ("toys", {"mode": 3}, "known: modes, dim, radius, scale, seed, num"),
        ("toys", {"scale": 0.0}, "scale must be positive"),
        ("tfds", {}, "needs the setting dataset"),
    ],
)
def test_bad_settings_are_named(name, config, message):
    with pytest.raises(ValueError, match=message):
        registry.load("data", name)(config)


# Toys.


@pytest.mark.parametrize("dim", [2, 5])
def test_toys_follow_their_mixture(dim):
    data = toys.build({"dim": dim, "modes": 4, "radius": 2.0, "scale": 0.3, "num": 40000})
    mixture, points = data.exact, data.reference["image"]
    np.testing.assert_allclose(np.linalg.norm(mixture["means"], axis=1), 2, rtol=1e-6)
    for mode in range(4):
        own = points[data.reference["label"] == mode]
        np.testing.assert_allclose(own.mean(0), mixture["means"][mode], atol=0.02)
        np.testing.assert_allclose(np.cov(own.T), 0.09 * np.eye(dim), atol=0.01)
        assert abs(len(own) / 40000 - 0.25) < 0.01


def test_toys_are_reproducible_and_stored_as_they_are():
    first, again, other = (toys.build({"seed": seed, "num": 64}) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    points = first.train.rows(np.arange(5))["image"]
    np.testing.assert_array_equal(first.decode(first.encode(points)), points)


# Pipeline.


def test_an_epoch_shows_every_image_once():
    batches = pipeline.batches(counting(12), 4, 0)
    epochs = [sum((numbers(next(batches)) for _ in range(3)), []) for _ in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(12))] * 2 and epochs[0] != epochs[1]


def test_batches_are_decoded_and_typed():
    batch = next(pipeline.batches(DIGITS, 16, 0))
    chex.assert_shape([batch["image"], batch["label"]], [(16, 8, 8, 1), (16,)])
    chex.assert_type([batch["image"], batch["label"]], [np.float32, np.int32])
    known = {
        image.tobytes(): label for image, label in zip(DIGITS.train.images, DIGITS.train.labels)
    }
    for image, label in zip(DIGITS.encode(batch["image"]), batch["label"]):
        assert known[image.tobytes()] == label


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_shards_complement_each_other(num, size, count, number):
    """Together the processes see what one process with the global batch sees."""
    data = counting(num)
    whole = pipeline.Batches(data, size * count, 3, (0, 1))[number]
    parts = [pipeline.Batches(data, size, 3, (index, count))[number] for index in range(count)]
    chex.assert_equal([len(p["image"]) for p in parts], [size] * count)
    assert sum((numbers(p) for p in parts), []) == sum(
        (numbers(whole)[i::count] for i in range(count)), []
    )


def test_resumes_bit_for_bit():
    reference, batches = pipeline.batches(DIGITS, 100, 7), pipeline.batches(DIGITS, 100, 7)
    expected = [next(reference) for _ in range(40)]
    for _ in range(13):
        next(batches)
    state = batches.get_state()
    resumed = pipeline.batches(DIGITS, 100, 7)
    resumed.set_state(state)
    for batch in expected[13:]:
        chex.assert_trees_all_equal(batch, next(resumed), next(batches))


def test_seeds_differ_and_plain_sequences_serve():
    elements = [{"image": np.array([i]), "label": i % 3} for i in range(50)]
    plain = counting(50, lambda *_: elements)
    one, same, other = (
        pipeline.batches(d, 20, s) for d, s in ((plain, 0), (counting(50), 0), (plain, 1))
    )
    first = next(one)
    chex.assert_trees_all_equal(first, next(same))
    assert numbers(first) != numbers(next(other))


@pytest.mark.parametrize(
    "num, size, seed, shard, message",
    [
        (5, 0, 0, (0, 1), "batch_size must be positive; got 0"),
        (5, 1, -1, (0, 1), "must not be negative; got -1"),
        (5, 1, 0, (2, 2), "no shard 2 of 2"),
        (0, 1, 0, (0, 1), "no training images"),
    ],
)
def test_pipeline_refuses(num, size, seed, shard, message):
    with pytest.raises(ValueError, match=message):
        pipeline.batches(counting(num), size, seed, shard=shard)


# TFDS.


def test_fit_pads_with_zeros_and_averages_blocks():
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1) + 1
    padded = tfds.fit(image, 4)
    np.testing.assert_array_equal(padded[:3, :3], image)
    assert padded[3].sum() == padded[:, 3].sum() == 0
    # blocks (1+2+4+5)/4 = 3, (3+6)/4 = 2.25, (7+8)/4 = 3.75, 9/4 = 2.25
    np.testing.assert_array_equal(tfds.fit(image, 2)[..., 0], [[3, 2], [4, 2]])
    assert tfds.fit(image, 3) is image
    wide = tfds.fit(np.full((28, 28, 1), 7, np.uint8), 32)
    assert wide[2:30, 2:30].min() == 7 and wide.sum() == 7 * 28**2


@pytest.mark.parametrize("channels", [1, 3])
def test_decodes_png_without_loss(channels):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 5, channels)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, "PNG")
    np.testing.assert_array_equal(tfds.decoded(buffer.getvalue(), channels), pixels)
    other = tfds.decoded(buffer.getvalue(), 4 - channels)
    assert other.shape == (5, 5, 4 - channels)
    if channels == 1:
        np.testing.assert_array_equal(other, np.repeat(pixels, 3, -1))


def test_what_is_not_prepared_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        ValueError, match="cifar10 is not prepared in .*TFDS_DATA_DIR.*tfds build cifar10"
    ):
        tfds.build({"dataset": "cifar10"})
    with pytest.raises(ValueError, match="TFDS has no data set 'nonsense'"):
        tfds.build({"dataset": "nonsense"})


@pytest.mark.tfds
@pytest.mark.parametrize(
    "config, shape",
    [({"dataset": "cifar10"}, (32, 32, 3)), ({"dataset": "fashion_mnist"}, (32, 32, 1))],
)
def test_tfds_images_reach_the_pipeline(prepared, config, shape):
    data = tfds.build(config)
    assert (data.shape, data.classes) == (shape, 10)
    batch = next(pipeline.batches(data, 8, 0))
    chex.assert_shape(batch["image"], (8, *shape))
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    one = data.train[3]
    np.testing.assert_array_equal(one["image"], data.train.rows(np.array([5, 3]))["image"][1])
    np.testing.assert_array_equal(data.encode(data.decode(one["image"][None]))[0], one["image"])
    assert "tensorflow" not in sys.modules


@pytest.mark.tfds
def test_tfds_sizes_channels_and_reference(prepared):
    build = lambda **options: tfds.build({"dataset": "fashion_mnist", **options})
    native, small = build(size=28), build(size=16, channels=3, max_reference=40)
    padded = np.pad(native.train[0]["image"], ((2, 2), (2, 2), (0, 0))).astype(float)
    expected = np.rint(padded.reshape(16, 2, 16, 2).mean((1, 3)))
    np.testing.assert_array_equal(small.train[0]["image"], np.repeat(expected[..., None], 3, -1))
    chex.assert_shape(
        [small.reference[k] for k in ("image", "label", "split")], [(40, 16, 16, 3), (40,), (40,)]
    )
    chosen = tfds.chosen(60000, 40)
    np.testing.assert_array_equal(small.reference["image"], small.train.rows(chosen)["image"])
    np.testing.assert_array_equal(small.reference["label"], small.train.rows(chosen)["label"])
    assert small.reference["image"] is small.reference["image"]
    assert len({native.fingerprint, small.fingerprint, build().fingerprint}) == 3


@pytest.mark.tfds
def test_tfds_missing_files_are_said(prepared, monkeypatch, tmp_path):
    source = Path(os.environ["TFDS_DATA_DIR"]) / "fashion_mnist"
    copy = tmp_path / "fashion_mnist" / next(source.iterdir()).name
    copy.mkdir(parents=True)
    for path in source.glob("*/*.json"):
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="fashion_mnist in .* is damaged or incomplete"):
        tfds.build({"dataset": "fashion_mnist"})


@pytest.mark.tfds
def test_tfds_in_memory_is_the_same(prepared):
    lazy, eager = (
        tfds.build({"dataset": "cifar10", "split": "test", "in_memory": m}) for m in (False, True)
    )
    chex.assert_trees_all_equal(*(next(pipeline.batches(d, 32, 0)) for d in (lazy, eager)))
    assert len(eager.train) == 10000 and lazy.fingerprint == eager.fingerprint


@pytest.mark.tfds
@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 20}, "32 pixels wide; size must be that or a power of two up to 32; got 20"),
        ({"size": 64}, "got 64"),
        ({"channels": 2}, "channels must be 1 or 3; got 2"),
        ({"split": "validation"}, "known: train, test"),
    ],
)
def test_tfds_refuses(prepared, options, message):
    with pytest.raises(ValueError, match=message):
        tfds.build({"dataset": "cifar10", **options})
