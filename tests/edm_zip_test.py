"""EDM's image sets: what is written is read back, what is hostile is refused, and orders of training images."""

import copy
import gzip
import io
import itertools
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import chex
import numpy as np
import pytest
from absl import flags
from PIL import Image

from fastdiff_jax.data import archive, edm_zip, order, pipeline, raw_images, tfds
from fastdiff_jax.runtime import dataset_zip, experiment, feed
from fastdiff_jax.runtime.assemble import assemble

TFDS = Path(__file__).parents[2] / "shared" / "tfds"
PIXELS = np.random.RandomState(0).randint(0, 256, (12, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def archived(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path)


def declared(path, **changes):
    return dict(path=str(path), size=8, channels=3, labels=3) | changes


def everything(images):
    return np.stack([images.image(index) for index in range(len(images))])


@pytest.fixture
def made(tmp_path):
    """A set of twelve images in three classes, that our writer made of EDM's own form."""
    files = {f"img{n:02d}.png": png(pixels) for n, pixels in enumerate(PIXELS)}
    labels = [[name, int(label)] for name, label in zip(files, LABELS, strict=True)]
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    path = tmp_path / "made-8x8.zip"
    dataset_zip.write(raw_images.source(folder(tmp_path / "source", files)), path)
    return path


# Reading.


def test_what_is_written_is_read_back(made):
    images = edm_zip.Images(made)
    np.testing.assert_array_equal(everything(images), PIXELS)
    np.testing.assert_array_equal(images.labels(), np.eye(3)[LABELS])
    assert images.names[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
    with zipfile.ZipFile(made) as file:
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_it_is_a_data_set(made):
    data = edm_zip.build(declared(made))
    assert (data.name, data.shape, data.classes, len(data.train)) == ("made-8x8", (8, 8, 3), 3, 12)
    np.testing.assert_array_equal(data.reference["image"], PIXELS)
    np.testing.assert_array_equal(data.reference["label"], LABELS)
    batch = data.train.rows(np.array([7, 2]))
    np.testing.assert_array_equal(batch["image"], PIXELS[[7, 2]])
    np.testing.assert_array_equal(batch["label"], LABELS[[7, 2]])
    np.testing.assert_array_equal(data.train[7]["image"], PIXELS[7])
    np.testing.assert_array_equal(data.encode(data.decode(PIXELS)), PIXELS)


@pytest.mark.parametrize("in_memory", [False, True])
def test_subsets_and_mirrored_copies(made, in_memory):
    """EDM's choice of four; metrics see them unmirrored."""
    data = edm_zip.build(declared(made, max_size=4, seed=5, xflip=True, in_memory=in_memory))
    chosen = np.arange(12)
    np.random.RandomState(5).shuffle(chosen)
    chosen = np.sort(chosen[:4])
    rows = data.train.rows(np.arange(8))
    expected = np.concatenate([PIXELS[chosen], PIXELS[chosen][:, :, ::-1]])
    np.testing.assert_array_equal(rows["image"], expected)
    np.testing.assert_array_equal(rows["label"], np.tile(LABELS[chosen], 2))
    np.testing.assert_array_equal(data.reference["image"], PIXELS[chosen])


def test_the_fingerprint_sees_images_labels_and_choices(made, tmp_path):
    prints = [
        edm_zip.build(declared(made, **changes)).fingerprint
        for changes in ({}, {"in_memory": True}, {"labels": 0}, {"max_size": 5}, {"xflip": True})
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 4
    other = tmp_path / "other.zip"
    content = {f"{n:02d}.png": png(pixels ^ (n == 3)) for n, pixels in enumerate(PIXELS)}
    assert edm_zip.build(declared(archived(other, content), labels=0)).fingerprint not in prints


def test_the_outline_needs_no_file(tmp_path):
    data = edm_zip.outline(declared(tmp_path / "there-is-none.zip", labels=5))
    assert (data.name, data.shape, data.classes) == ("there-is-none", (8, 8, 3), 5)
    assert edm_zip.outline(declared("x.zip", use_labels=False)).classes == 0
    with pytest.raises(ValueError, match="there is no data set .*launch/dataset.py --from"):
        edm_zip.build(declared(tmp_path / "there-is-none.zip"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 16}, "is 8x8 with 3 channels, the config declares 16x16 with 3 channels; set"),
        ({"channels": 1}, "declares 8x8 with 1 channel;"),
        ({"labels": 10}, "has 3 classes, the config declares 10; set config.data.labels=3"),
        ({"labels": 0, "use_labels": True}, "use_labels needs the number of classes"),
        ({"channels": 4}, "channels are 1 or 3; got 4"),
        ({"size": 0}, "size is the images' side"),
        ({"max_size": -1}, "max_size is not negative"),
        ({"flip": True}, "no setting flip; known: path, size"),
    ],
)
def test_a_mismatch_is_one_line(made, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        edm_zip.build(declared(made, **changes))
    assert "\n" not in str(caught.value)


def test_labels_can_be_left_unused(made):
    data = edm_zip.build(declared(made, use_labels=False))
    assert data.classes == 0 and not data.reference["label"].any()


def test_vectors_are_read_and_refused_for_training(tmp_path):
    vectors = np.random.RandomState(1).normal(size=(2, 4)).astype(np.float32)
    names = ["0.png", "1.png"]
    document = {"labels": [[n, v.tolist()] for n, v in zip(names, vectors, strict=True)]}
    entries = {n: png(p) for n, p in zip(names, PIXELS)} | {"dataset.json": json.dumps(document)}
    path = archived(tmp_path / "vectors.zip", entries)
    np.testing.assert_array_equal(edm_zip.Images(path).labels(), vectors)
    chex.assert_type(edm_zip.Images(path).labels(), np.float32)
    with pytest.raises(ValueError, match="vectors of 4 numbers .*set config.data.labels=0"):
        edm_zip.build(declared(path, labels=4))
    again = tmp_path / "again.zip"
    dataset_zip.write(raw_images.source(str(path)), again)
    np.testing.assert_array_equal(edm_zip.Images(again).labels(), vectors)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is not of the form"),
        (b"[" * 50_000, "is not of the form"),
        (b'{"labels": [' + b'["",' * 15_000, "is not of the form"),
        (b'{"labels": null, "note": "\\u001b[31m"}', "its note a printable line"),
        (b'{"labels": null, "note": "' + b"n" * 201 + b'"}', "its note a printable line"),
        (b'{"labels": [["0.png", "cat"]]}', "neither class numbers nor vectors"),
        (b'{"labels": [["0.png", -1]]}', "neither class numbers nor vectors"),
        (b'{"labels": [["0.png", 0.5]]}', "neither class numbers nor vectors"),
        (b'{"labels": [["0.png", [NaN]]]}', "neither class numbers nor vectors"),
        (b'{"labels": [["0.png", 1000000000]]}', "class number 1000000000"),
        (b'{"labels": [["1.png", 0]]}', "no label for 0.png"),
        (b" " * 10_000_000, "10,000,000 bytes"),
    ],
)
def test_damaged_labels_are_refused(tmp_path, content, message):
    path = archived(tmp_path / "x.zip", {"0.png": png(PIXELS[0]), "dataset.json": content})
    with pytest.raises(ValueError, match=message):
        edm_zip.build(declared(path))


# Hostile files.


def overlapping(path):
    """Two entries that are the same bytes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("0.png", png(PIXELS[0].repeat(4, 0).repeat(4, 1), compress_level=0))
        second = copy.copy(file.filelist[0])
        second.filename = second.orig_filename = "1.png"
        file.filelist.append(second)


def written(entries, compression=zipfile.ZIP_STORED):
    return lambda path: archived(path, entries, compression)


GOOD = {"0.png": png(PIXELS[0])}
HOSTILE = {
    "bomb": (written({"0.png": bytes(20_000_000)}, zipfile.ZIP_DEFLATED), "claims 20,000,000 bytes out of"),
    "parent": (written(GOOD | {"../up.png": b""}), "'../up.png' points out of it"),
    "others": (written(GOOD | {f"{n}.txt": b"" for n in range(3000)}), "3,000 of its entries are no images"),
    "overlap": (overlapping, "so they overlap"),
    "escape": (written(GOOD | {"\x1b[31m.png": GOOD["0.png"]}), r"'\\x1b\[31m.png' has control characters"),
    "empty image": (written(GOOD | {"1.png": b""}), "its image '1.png' is empty"),
    "no zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(1000)), "damaged or no zip"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or no zip"),
    "short": (lambda path: path.write_bytes(b"PK\6\7xxx" + b"PK\5\6" + bytes(18)), "has no images"),
    "no images": (written({"readme.txt": b"hello"}), "has no images"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_zip_is_refused_in_one_line(tmp_path, name):
    make, message = HOSTILE[name]
    path = tmp_path / "x.zip"
    make(path)
    with pytest.raises(ValueError, match=message) as caught:
        edm_zip.Images(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        raw_images.source(str(path))


def test_flat_images_are_no_bombs(tmp_path):
    """They compress better than anything else that is sound."""
    flat = Image.new("RGB", (160, 160), (10, 20, 30))
    buffer = io.BytesIO()
    flat.save(buffer, "BMP")
    path = archived(tmp_path / "x.zip", {"0.bmp": buffer.getvalue()}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as file:
        (entry,) = file.infolist()
    assert entry.file_size > max(archive.LIMITS.ratio * entry.compress_size, archive.SLACK)
    ((pixels, _),) = raw_images.source(str(path)).images()
    np.testing.assert_array_equal(pixels, np.asarray(flat))


def test_a_copy_of_a_zip_opens_it_again(made):
    first = archive.Zip(made)
    other = pickle.loads(pickle.dumps(first))
    first.file.close()
    assert other.names == first.names and other.read(other.names[0]).startswith(b"\x89PNG")


def test_a_list_of_too_many_entries_is_not_read(tmp_path, monkeypatch):
    path = archived(tmp_path / "x.zip", {f"{n}.png": b"" for n in range(40)})
    monkeypatch.setattr(archive, "LIMITS", archive.LIMITS._replace(entries=10))
    monkeypatch.setattr(archive.zips, "Archive", None)
    words = "x.zip is refused: its list of entries claims .*; get the data set from where you trust it"
    with pytest.raises(ValueError, match=words):
        archive.Zip(path)


def headed(width, height):
    """A small PNG whose header claims another size."""
    content = bytearray(png(PIXELS[0]))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "content, message",
    [
        (headed(60000, 60000), "claims more pixels than are read"),
        (headed(9000, 9000), "claims 9000x9000 pixels"),
        (headed(10000, 10000), "claims 10000x10000 pixels"),
        (headed(4000, 4000), "is 4000x4000 with 3 channels, the config declares 8x8"),
        (b"GIF89a" + bytes(100), "is no PNG image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "is no PNG image"),
        (png(PIXELS[0])[:150], "is damaged"),
        (png(PIXELS[0].repeat(4, -1)[..., :4]), "is RGBA, neither gray nor RGB"),
    ],
)
def test_a_hostile_image_is_refused_in_one_line(tmp_path, content, message):
    path = archived(tmp_path / "x.zip", {"0.png": content})
    with pytest.raises(ValueError, match=message) as caught:
        edm_zip.build(declared(path, labels=0))
    assert "\n" not in str(caught.value)


def test_an_entry_shorter_than_it_says_is_damage(tmp_path):
    path = archived(tmp_path / "x.zip", GOOD)
    content = path.read_bytes()
    path.write_bytes(content.replace(GOOD["0.png"][-40:-20], bytes(20), 1))
    with pytest.raises(ValueError, match=r"0.png is damaged \(Bad CRC-32.*\); make or fetch the zip again"):
        edm_zip.build(declared(path, labels=0))


# Batches.


@pytest.mark.parametrize("kind", order.ORDERS)
def test_batches_resume_and_split_over_processes(made, kind):
    data = edm_zip.build(declared(made))
    whole, resumed = (pipeline.batches(data, 6, 1, order=kind) for _ in range(2))
    expected = [next(whole) for _ in range(9)]
    for batch in expected[:4]:
        chex.assert_trees_all_equal(next(resumed), batch)
    state = json.loads(json.dumps(resumed.get_state()))
    again = pipeline.batches(data, 6, 1, order=kind)
    again.set_state(state)
    for batch in expected[4:]:
        chex.assert_trees_all_equal(next(again), batch)
    halves = [pipeline.batches(data, 3, 1, shard=(index, 2), order=kind) for index in (0, 1)]
    for batch in expected:
        for index, half in enumerate(halves):
            chex.assert_trees_all_equal(next(half), {k: v[index::2] for k, v in batch.items()})


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(made):
    flags.FLAGS.mark_as_parsed()
    data = edm_zip.build(declared(made, in_memory=True))
    threads, workers = pipeline.batches(data, 4, 0), pipeline.batches(data, 4, 0, workers=2)
    for _ in range(3):
        chex.assert_trees_all_equal(next(workers), next(threads))
    assert workers.get_state() == threads.get_state()
    workers.set_state({"next_index": 7})
    threads.set_state({"next_index": 7})
    chex.assert_trees_all_equal(next(workers), next(threads))
    workers.close()


def test_a_damaged_image_stops_training_by_name(made, tmp_path):
    entries = {f"{n:04d}.png": png(PIXELS[0]) for n in range(600)}
    entries["0001.png"] = b"nothing"  # none of those that the fingerprint reads
    data = edm_zip.build(declared(archived(tmp_path / "x.zip", entries), labels=0))
    with pytest.raises(ValueError, match="0001.png is no PNG image"):
        next(pipeline.batches(data, 600, 0))


def test_orders_and_workers_are_checked(made):
    data = edm_zip.build(declared(made))
    with pytest.raises(ValueError, match="no order 'sorted' .*known: epochs, windowed"):
        pipeline.batches(data, 4, 0, order="sorted")
    with pytest.raises(ValueError, match="workers is not negative"):
        pipeline.batches(data, 4, 0, workers=-1)


def test_a_windowed_order_is_read_from_anywhere(monkeypatch):
    monkeypatch.setattr(order, "BLOCK", 16)
    monkeypatch.setattr(order.Windowed, "KEPT", 2)
    expected = np.array(list(itertools.islice(order.windowed(10, 3), 400)))
    stream = order.Windowed(10, 3)
    for start in (0, 90, 380, 5, 64, 200):
        places = np.arange(start, start + 20)
        np.testing.assert_array_equal(stream(places), expected[places])
        stream = pickle.loads(pickle.dumps(stream)) if start == 64 else stream
    # Every image comes, though not once a round.
    assert set(expected[:100]) == set(range(10)) and len(set(expected[10:20])) < 10


def test_a_window_of_one_is_no_window():
    rounds = list(itertools.islice(order.windowed(6, 0, window=0.2), 12))
    assert rounds[:6] == rounds[6:] and sorted(rounds[:6]) == list(range(6))
    assert list(itertools.islice(order.windowed(3, 0, shuffle=False), 5)) == [0, 1, 2, 0, 1]


def test_seeds_split_evenly():
    sizes = lambda *given: [len(batch) for batch in order.split(np.arange(given[0]), *given[1:])]
    assert sizes(10, 4, 1) == [4, 3, 3] and sizes(3, 4, 4) == [1, 1, 1, 0]
    assert sizes(50000, 64, 8) == [64] * 608 + [63] * 176
    assert order.split(np.arange(0), 4, 2) == []


def test_the_input_is_measured(made, capsys):
    config = experiment.load("edm_digits:smoke")
    config.data = dict(name="edm_zip") | declared(made)
    config.models.student.network.augment_dim = 1
    config.augment = dict(name="chosen", p=0.5, xflip=1.0)
    config.train.order = "windowed"
    feed.measure(assemble(config), 2)
    assert "images/s (2 batches); augmented" in capsys.readouterr().out


# Writing.


@pytest.mark.tfds
@pytest.mark.parametrize("dataset, shape", [("cifar10", (32, 32, 3)), ("fashion_mnist", (32, 32, 1))])
def test_tfds_images_survive(tmp_path, monkeypatch, dataset, shape):
    if "TFDS_DATA_DIR" not in os.environ:
        monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    path = tmp_path / "some.zip"
    dataset_zip.write(raw_images.source(f"tfds:{dataset}"), path, most=300)
    data = edm_zip.build(dict(path=str(path), size=32, channels=shape[2], labels=10))
    expected = tfds.build({"dataset": dataset}).train.rows(np.arange(300))
    rows = data.train.rows(np.arange(300))
    assert data.shape == shape and len(data.train) == 300
    np.testing.assert_array_equal(rows["image"], expected["image"])
    np.testing.assert_array_equal(rows["label"], expected["label"])
    assert data.note == tfds.build({"dataset": dataset}).note
    assert ("JPEG" in data.note) == (dataset == "cifar10")
    assert raw_images.source(str(path)).note == data.note  # a copy of the copy says so too


@pytest.mark.tfds
@pytest.mark.slow
def test_all_of_cifar10_comes_back(tmp_path, monkeypatch):
    """50,000 images and labels, as TFDS has them."""
    if "TFDS_DATA_DIR" not in os.environ:
        monkeypatch.setenv("TFDS_DATA_DIR", str(TFDS))
    path = tmp_path / "all.zip"
    dataset_zip.write(raw_images.source("tfds:cifar10"), path)
    ours = edm_zip.build(dict(path=str(path), size=32, channels=3, labels=10)).train
    theirs = tfds.build({"dataset": "cifar10"}).train
    assert len(ours) == len(theirs) == 50_000
    for first in range(0, 50_000, 5000):
        made, expected = (source.rows(np.arange(first, first + 5000)) for source in (ours, theirs))
        chex.assert_trees_all_equal(made, expected)


def test_equal_images_make_equal_files_and_folders(made, tmp_path):
    source = raw_images.source(str(made))
    dataset_zip.write(source, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == made.read_bytes()
    dataset_zip.write(source, tmp_path / "folder")
    np.testing.assert_array_equal(everything(edm_zip.Images(tmp_path / "folder")), PIXELS)
    np.testing.assert_array_equal(edm_zip.Images(tmp_path / "folder").raw_labels, LABELS)
    with pytest.raises(ValueError, match="nothing is overwritten"):
        dataset_zip.write(source, made)


@pytest.mark.parametrize(
    "names, labels, expected",
    [
        (["b/0.png", "a/x/1.png", "b/2.png"], None, [0, 1, 1]),  # in the order of names: a/x/1, b/0, b/2
        (["0.png", "b/1.png"], None, [0, 1]),
        (["b/0.png", "b/1.png"], None, None),
        (["b/0.png", "a/1.png"], {"b/0.png": 4, "a/1.png": 2}, [2, 4]),
        (["b/0.png", "a/1.png"], {"b/0.png": 4}, None),
    ],
)
def test_labels_of_a_folder(tmp_path, names, labels, expected):
    files = {name: png(pixels) for name, pixels in zip(names, PIXELS)}
    if labels is not None:
        files["dataset.json"] = json.dumps({"labels": list(labels.items())}).encode()
    dataset_zip.write(raw_images.source(folder(tmp_path / "f", files)), tmp_path / "x.zip")
    found = edm_zip.Images(tmp_path / "x.zip").raw_labels
    assert (found if found is None else found.tolist()) == expected


def test_transforms():
    tall = np.random.RandomState(2).randint(0, 256, (20, 14, 3)).astype(np.uint8)
    np.testing.assert_array_equal(dataset_zip.fitted(tall, "center-crop", (14, 14)), tall[3:17])
    grey = dataset_zip.fitted(tall[..., 0], "center-crop", (14, 14))
    np.testing.assert_array_equal(grey, np.repeat(tall[3:17, :, :1], 3, 2))
    assert dataset_zip.fitted(tall, "", None) is tall
    np.testing.assert_array_equal(
        dataset_zip.fitted(np.full((20, 14), 9, np.uint8), "", (8, 8)), np.full((8, 8), 9)
    )
    wide = np.random.RandomState(3).randint(0, 256, (20, 32, 3)).astype(np.uint8)
    boxed = dataset_zip.fitted(wide, "center-crop-wide", (32, 16))
    np.testing.assert_array_equal(boxed[8:24], wide[2:18])
    assert boxed.shape == (32, 32, 3) and not boxed[:8].any() and not boxed[24:].any()


def test_binary_cifar(tmp_path):
    """Five files of rows: a class, then the planes."""
    rows = np.random.RandomState(4).randint(0, 10, (10, 3073)).astype(np.uint8)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for number in (3, 1, 2, 5, 4):
            content = rows[2 * number - 2 : 2 * number].tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{number}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source = raw_images.source(str(tmp_path / "cifar-10-binary.tar.gz"))
    images, labels = zip(*source.images(), strict=True)
    np.testing.assert_array_equal(np.stack(images).transpose(0, 3, 1, 2).reshape(10, -1), rows[:, 1:])
    assert list(labels) == rows[:, 0].tolist()


@pytest.mark.parametrize("sparse", ["GNU", "PAX", "size"])
def test_sparse_members_of_a_tar_are_refused(tmp_path, sparse):
    """A member of a few bytes in the file that claims 1.2 GB."""
    info = tarfile.TarInfo("data_batch_1.bin")
    claimed, form = 1_200_000_000, tarfile.GNU_FORMAT
    if sparse == "PAX":
        form = tarfile.PAX_FORMAT
        info.pax_headers = {"GNU.sparse.size": str(claimed), "GNU.sparse.map": f"0,0,{claimed},0"}
    header = bytearray(info.tobuf(form))
    if sparse == "GNU":
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[386:410] = b"%011o\0%011o\0" % (claimed, 0)
        header[483:495] = b"%011o\0" % claimed
    if sparse == "size":
        header[124:136] = b"%011o\0" % claimed
    if sparse != "PAX":
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    with pytest.raises(ValueError, match="data_batch_1.bin is no plain file, or too large; fetch it again"):
        raw_images.source(str(path))


def test_a_folder_gives_its_own_files_only(tmp_path):
    """A pipe would be waited for, a link leads out."""
    folder(tmp_path / "f", {"0.png": png(PIXELS[0])})
    folder(tmp_path / "secret", {"x.png": png(PIXELS[1])})
    os.mkfifo(tmp_path / "f" / "1.png")
    (tmp_path / "f" / "2.png").symlink_to(tmp_path / "secret" / "x.png")
    (tmp_path / "f" / "more").symlink_to(tmp_path / "secret")
    assert edm_zip.Images(tmp_path / "f").names == ["0.png"]
    assert raw_images.source(str(tmp_path / "f")).count == 1
    with pytest.raises(ValueError, match="1.png is neither a file nor a folder"):
        archive.opened(tmp_path / "f" / "1.png")
    (tmp_path / "f" / "0.png").unlink()
    with pytest.raises(ValueError, match="has no images; .* links are not read"):
        edm_zip.Images(tmp_path / "f")
    folder(tmp_path / "f", {"a\x1b[31m.png": png(PIXELS[0])})
    with pytest.raises(ValueError, match=r"the name a\\x1b\[31m.png has control characters"):
        edm_zip.Images(tmp_path / "f")


def test_names_are_shown_without_what_a_terminal_obeys(tmp_path):
    path = archived(tmp_path / "x.zip", {"\x9b31m.png": b"nothing"})
    with pytest.raises(ValueError, match=r"x.zip: \\x9b31m.png is no PNG image"):
        edm_zip.build(declared(path, labels=0))
    with pytest.raises(ValueError, match=r"x.zip: \\x9b31m.png is no PNG image"):
        list(raw_images.source(str(path)).images())


def test_a_source_without_images_leaves_nothing(tmp_path):
    source = raw_images.Source(0, lambda: iter(()))
    for name in ("x.zip", "x"):
        with pytest.raises(ValueError, match="has no images, so there is no set to write"):
            dataset_zip.write(source, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_mnist_files(tmp_path):
    pixels = np.random.RandomState(5).randint(0, 256, (3, 28, 28)).astype(np.uint8)
    head = bytes((0, 0, 8, 3)) + struct.pack(">3I", *pixels.shape)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    source = lambda: raw_images.source(str(tmp_path / "train-images-idx3-ubyte.gz"))
    with pytest.raises(ValueError, match="labels beside it in train-labels-idx1-ubyte.gz"):
        source()
    labels = bytes((0, 0, 8, 1)) + struct.pack(">I", 3) + bytes((7, 0, 9))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    images, classes = zip(*source().images(), strict=True)
    assert classes == (7, 0, 9)
    np.testing.assert_array_equal(np.stack(images)[:, 2:30, 2:30], pixels)
    assert np.stack(images).shape == (3, 32, 32)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels[:-1]))
    with pytest.raises(ValueError, match="no IDX file of 1 axes"):
        source()


@pytest.mark.parametrize(
    "files, transform, size, message",
    [
        ({"a.png": png(PIXELS[0][:6])}, "", None, "image 0 is 8x6; a set has squares"),
        ({"a.png": png(PIXELS[0][:6, :6])}, "", None, "image 0 is 6x6; .*power of two"),
        ({"a.png": png(PIXELS[0]), "b.png": png(PIXELS[0][..., 0])}, "", None, "image 1 has the shape"),
        ({"a.png": png(PIXELS[0].repeat(4, -1)[..., :4])}, "", None, "a.png is RGBA; convert it"),
        ({"a.png": b"nothing"}, "", None, "a.png is no PNG image"),
        ({"a.png": png(PIXELS[0])}, "center-crop", None, "center-crop needs --resolution"),
        ({"a.png": png(PIXELS[0])}, "center-crop", (8, 4), "makes squares"),
        ({"a.png": png(PIXELS[0])}, "center-crop-wide", (8, 8), "needs a wide --resolution"),
    ],
)
def test_what_cannot_be_a_set_leaves_nothing(tmp_path, files, transform, size, message):
    source = raw_images.source(folder(tmp_path / "f", files))
    out = tmp_path / "out"
    out.mkdir()
    for name in ("x.zip", "x"):
        with pytest.raises(ValueError, match=message):
            dataset_zip.write(source, out / name, transform, size)
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--from and --out must be given; usage"),
        (["--from", "cifar-10-python.tar.gz", "--out", "x.zip"], "holds pickles.*use --from tfds:cifar10"),
        (["--from", "bedroom_lmdb", "--out", "x.zip"], "LMDB database.*export"),
        (["--from", "nothing-there", "--out", "x.zip"], "there is no nothing-there; --from takes"),
        (["--from", "f", "--out", "x.zip", "--resolution", "64"], "WIDTHxHEIGHT"),
        (["--from", "f", "--out", "x.zip", "--transform", "squeeze"], "transform"),
        (["--from", "f", "--out", "x.zip", "extra"], "unknown argument 'extra'"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "f", {"a.png": png(PIXELS[0])})
    assert dataset_zip.main(["launch/dataset.py", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]


def test_the_command_says_what_a_config_needs(tmp_path, capsys):
    source = folder(tmp_path / "f", {"a/0.png": png(PIXELS[0]), "b/1.png": png(PIXELS[1])})
    out = tmp_path / "data" / "two-4x4.zip"
    arguments = ["--from", source, "--out", str(out), "--transform", "center-crop", "--resolution", "4x4"]
    assert dataset_zip.main(["launch/dataset.py", *arguments]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("data = ")]
    config = eval(line.removeprefix("data = "))
    assert edm_zip.build(config).shape == (4, 4, 3) and config["labels"] == 2
