"""What a card records of a measurement, EDM's seeds by image, reference files, and refused comparisons."""

import copy
import io
import json
import zipfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fastdiff_jax import rng
from fastdiff_jax.data import digits, stored, tfds
from fastdiff_jax.metrics import features, frechet, panels, references
from fastdiff_jax.runtime import (
    assemble,
    compare,
    evaluate,
    experiment,
    files,
    protocols,
    reference_stats,
    report,
    results,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.types import Sampler

DIGITS = digits.build({})
CONFIG = experiment.load("edm_digits:smoke")
PIXELS = dict(name="images", features=dict(px=dict(name="pixels")), nearest=False)


def evaluation(**changes):
    config = CONFIG.evaluation.copy_and_resolve_references()
    config.update(num=16, batch_size=8, **changes)
    return config


# EDM's seeds.


def test_every_image_has_its_own_seed():
    edm = evaluation(protocol="edm", seeds=(0, 1, 2))
    assert [repeat.first for repeat in protocols.repeats(edm)] == [0, 16, 32]
    assert {repeat.seed for repeat in protocols.repeats(edm)} == {0}
    assert protocols.seeds(edm) == ["0-15", "16-31", "32-47"]
    usual = evaluation(seeds=(4, 5))
    assert protocols.repeats(usual) == [(4, 0), (5, 0)] and protocols.seeds(usual) == [4, 5]


def test_labels_follow_the_image_under_edm():
    one, whole = (evaluation(protocol="edm").copy_and_resolve_references() for _ in range(2))
    whole.num = 48
    labels = protocols.labels(whole, DIGITS, protocols.Repeat(0, 0))
    second = protocols.labels(one, DIGITS, protocols.Repeat(0, 16))
    np.testing.assert_array_equal(labels[16:32], second)
    whole.num = 4000
    counts = np.bincount(protocols.labels(whole, DIGITS, protocols.Repeat(0, 0)), minlength=10)
    assert abs(counts - 400).max() < 6 * np.sqrt(400)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(protocol="edn"), "one of seeds, edm; got 'edn'"),
        (dict(protocol="edm", seeds=(2**30,)), "at most 2147483647"),
    ],
)
def test_an_impossible_protocol_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        protocols.check(evaluation(**changes))


def test_the_minimum_of_the_repeats_is_the_result():
    """Rows of EDM's protocol: images numbered on through the repeats, the least distance beside the mean."""
    config = SimpleNamespace(evaluation=evaluation(protocol="edm", seeds=(0, 1)))
    job = SimpleNamespace(config=config, data=DIGITS, classes=10)
    seen = []

    def measure(images, labels):
        seen.append(images)
        return {"px": float(images.mean()), "share": 0.5}

    panel = panels.Panel(measure, None, {"px": {}}, ("px",), "floor")
    generate = lambda params, frozen, keys, cond: rng.normal_per_image(keys, DIGITS.shape)
    mesh = meshes.make({"data": -1})
    row = evaluate.row("noise", Sampler(1, generate), results.TRAINED, {}, {}, job, panel, mesh, lambda: None)
    keys = rng.image_keys(rng.root(0, "sample"), np.arange(32))
    expected = DIGITS.encode(np.asarray(rng.normal_per_image(keys, DIGITS.shape)))
    np.testing.assert_array_equal(np.concatenate(seen), expected)
    means = [float(images.mean()) for images in seen]
    assert row.least == {"px": min(means)} and row.values["px"][0] == pytest.approx(np.mean(means))
    assert report._cell(row, "px").startswith(f"{results.number(min(means))} (")
    assert report._cell(row, "share") == "0.500"


# Reference files.


def test_statistics_come_back_from_the_npz_that_others_read(tmp_path):
    values = np.random.default_rng(0).standard_normal((40, 5))
    made = frechet.statistics(frechet.moments(values))
    (tmp_path / "r.npz").write_bytes(references.serialise(made, {"count": 40}))
    with np.load(tmp_path / "r.npz") as archive:
        np.testing.assert_array_equal(archive["mu"], made.mean)
        np.testing.assert_array_equal(archive["sigma"], made.covariance)
        np.savez(tmp_path / "theirs.npz", mu=archive["mu"], sigma=archive["sigma"])
    assert references.read(tmp_path / "r.npz").about == {"count": 40}
    theirs = references.read(tmp_path / "theirs.npz")
    assert theirs.about == {} and frechet.distance(*theirs.statistics, *made) < 1e-12
    references.check(theirs, "theirs.npz", 5, {})
    with pytest.raises(ValueError, match="of 5 dimensions, the features of 6"):
        references.check(theirs, "theirs.npz", 6, {})


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no reference statistics"),
        (dict(mu=np.zeros(2)), "no npz with mu and sigma"),
        (dict(mu=np.zeros(2), sigma=np.zeros((3, 3))), r"mu \(2,\) and sigma \(3, 3\)"),
        (dict(mu=np.zeros(2), sigma=np.full((2, 2), np.nan)), "not finite"),
        (dict(mu=np.zeros(2), sigma=np.array([[1.0, 2.0], [0.0, 1.0]])), "not symmetric"),
        (dict(mu=np.zeros(2) + 1j, sigma=np.eye(2)), "mu is of the type complex128"),
        (dict(mu=np.zeros(2), sigma=-np.eye(2)), "negative variances"),
        (dict(mu=np.zeros(2), sigma=np.eye(2), about=np.array('{"features": 3}')), "of another form"),
        (dict(mu=np.zeros(2), sigma=np.eye(2), about=np.array("[" * 60_000)), "no npz with mu and sigma"),
        (dict(mu=np.zeros(2), sigma=np.eye(2), about=np.array("1" * 70_000)), "about claims 280,000 bytes"),
        (dict(mu=np.array([object()]), sigma=np.zeros((1, 1))), "no npz with mu and sigma"),
    ],
)
def test_other_statistics_are_refused(content, words, tmp_path):
    if content is not None:
        np.savez(tmp_path / "r.npz", **content)
    with pytest.raises(ValueError, match=words):
        references.read(tmp_path / "r.npz")


def archived(entries, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def npy(shape, numbers=b"", dtype="<f8"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + numbers


@pytest.mark.parametrize("entries, words", [
    ({"mu.npy": npy((1 << 40,))}, "mu claims 8,796,093,022,208 bytes, where 0 are there"),
    ({"mu.npy": npy((2,), bytes(16)), "sigma.npy": npy((1 << 20, 1 << 20))}, "sigma claims"),
    ({"mu.npy": npy((1 << 21,), bytes(1 << 24))}, "claims 16,777,344 bytes out of"),
    ({"mu.npy": b"\x93NUMPY\x01\x00\xff\x0f" + b"(" * 4095}, "no npz with mu and sigma"),
    ({"mu.npy": b"\x93NUMPY\x09\x00"}, "no npz with mu and sigma"),
])  # fmt: skip
def test_what_statistics_claim_is_refused_before_room_is_made(tmp_path, entries, words):
    (tmp_path / "r.npz").write_bytes(archived(entries))
    with pytest.raises(ValueError, match=words) as caught:
        references.read(tmp_path / "r.npz")
    assert "\n" not in str(caught.value)


def test_damaged_statistics_are_refused_in_one_line(tmp_path):
    """Of every stretch that is overwritten, and of every length; deflate's own errors among them."""
    numbers = np.random.default_rng(0).standard_normal((9, 9))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=numbers[0], sigma=numbers @ numbers.T)
    content = buffer.getvalue()
    for start in range(0, len(content), 8):
        for damaged in (content[:start], content[:start] + b"\xff" * 8 + content[start + 8 :]):
            (tmp_path / "r.npz").write_bytes(damaged)
            try:
                references.read(tmp_path / "r.npz")
            except ValueError as error:
                assert str(error).startswith("reference statistics r.npz") and "\n" not in str(error)


def test_a_panel_measures_to_a_file(tmp_path):
    out = tmp_path / "px.npz"
    reference_stats.write(CONFIG, "px", out)
    about = references.read(out).about
    assert about["count"] == 1797 and about["data"]["name"] == "digits"
    column = dict(name="pixels", reference=str(out))
    mesh = meshes.make({"data": -1})
    shardings = meshes.whole(mesh), meshes.rows(mesh)
    panel = panels.build(PIXELS | {"features": {"px": column}}, DIGITS, shardings)
    sample = DIGITS.reference["image"][:500]
    direct = panels.build(PIXELS, DIGITS)
    labels = DIGITS.reference["label"][:500]
    expected = direct.measure(sample, labels)["px"]
    assert panel.measure(sample, labels)["px"] == pytest.approx(expected, abs=1e-9)
    assert panel.references["px"]["file"] == "px.npz" and panel.floor(500, 0) == {}
    with pytest.raises(ValueError, match="px.npz are of 64 dimensions, the features of 16"):
        panels.check(PIXELS | {"features": {"px": column | {"pool": 2}}}, DIGITS)
    other = dict(about, features=dict(about["features"], net="others"))
    out.write_bytes(references.serialise(references.read(out).statistics, other))
    with pytest.raises(ValueError, match="their net is 'others', the panel's 'pixels'"):
        panels.check(PIXELS | {"features": {"px": column}}, DIGITS)


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    given = ["reference_stats.py", "--config", "edm_digits:smoke", "--out"]
    assert reference_stats.main([*given, str(tmp_path / "r.npy")]) == 2
    assert reference_stats.main([*given, str(tmp_path / "r.npz"), "--column", "fid"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "ends in .npz" in first and "no feature column 'fid'; known: ft, px" in second
    assert not list(tmp_path.iterdir())


# Cards.


def card(**changes):
    """A card of a run whose FID may stand beside the published one of CIFAR-10."""
    made = copy.deepcopy(compare.PUBLISHED["edm-cifar10-uncond"])
    made["title"] = "ours"
    made["results"][0]["values"]["fid"]["min"] = 2.04
    known = dict(net="x (tf1)", weights=features.INCEPTION, resize="tf1", sha256="67")
    made["protocol"]["features"]["fid"] = known
    for path, value in changes.items():
        node, *_, last = made["protocol"], *path.split("__")
        for part in path.split("__")[:-1]:
            node = node[part]
        node[last] = value
    return made


PUBLISHED = compare.PUBLISHED["edm-cifar10-uncond"]


def test_equal_protocols_share_a_table():
    lines = compare.table([card(), PUBLISHED])
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["ours", "published:edm-cifar10-uncond"]
    assert lines[2].endswith("| 35 | 2.04 |") and lines[3].endswith("| 35 | 1.97 |")
    assert compare.table([card(data__name="cifar10-32x32"), PUBLISHED])  # the name of EDM's own file


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(samples=10000), r"samples \(10000 against 50000\)"),
        (dict(sampling="seeds"), r"sampling \(seeds against edm\)"),
        (dict(seeds=["0-49999"]), r"seeds \(0-49999 against 0-49999, 50000"),
        (dict(quantiser=stored.rounded.__doc__.splitlines()[0]), r"quantiser \("),
        (dict(features__fid__resize="fid"), r"fid: resize \(fid against tf1\)"),
        (dict(features__fid__weights=""), r"fid: weights \(x \(tf1\) against inception-2015-12-05\)"),
        (dict(data__note=tfds.RECOMPRESSED), r"data \(cifar10 \(JPEG-recompressed local copy\) against"),
        (dict(data__shape=[16, 16, 3]), r"data shape \(\[16, 16, 3\] against \[32"),
        (dict(data__name="cifar100"), r"data \(cifar100 against cifar10\)"),
        (dict(reference__fid={"data": {"name": "cifar10", "note": "cut"}}), r"reference \(cifar10 \(cut\)"),
    ],
)
def test_mixed_protocols_are_refused_in_one_line(change, words):
    with pytest.raises(ValueError, match=f"ours and published:.* do not compare, they differ in .*{words}"):
        compare.table([card(**change), PUBLISHED])


def test_cards_without_a_common_column_are_refused():
    """What differs besides is said first: an FD of other images is no FID of theirs."""
    ours = card(features={"ft": {"net": "a"}}, reference={"ft": {}})
    with pytest.raises(ValueError, match="ours, published:edm-cifar10-uncond share no column"):
        compare.table([ours, PUBLISHED])
    ours["protocol"]["data"]["note"] = tfds.RECOMPRESSED
    with pytest.raises(ValueError, match=r"differ in data \(cifar10 \(JPEG-recompressed local copy\) against"):
        compare.table([ours, PUBLISHED])


def test_reference_files_of_others_are_known_by_their_content():
    """Nothing in them says what they are of."""
    file = lambda sha, **more: {"file": "stats.npz", "sha256": sha * 64, **more}
    one, other = card(reference__fid=file("a")), card(reference__fid=file("b"))
    with pytest.raises(ValueError, match=r"differ in fid: reference file \(aaaaaaaa.* against bbbb"):
        compare.table([one, other])
    assert "reference by the user's word, column fid is against the file stats.npz (sha256 aaaaaaaaaaaa)" in (
        compare.table([one, PUBLISHED])[-1]
    )
    origin = PUBLISHED["protocol"]["data"]
    ours, again = (card(reference__fid=file(sha, data=origin)) for sha in "ab")  # of the same data
    assert compare.table([ours, again])[-1].startswith("| ours")


def test_a_part_of_the_training_set_is_no_published_reference():
    capped = card(reference__fid={"data": PUBLISHED["protocol"]["data"], "count": 10_000})
    with pytest.raises(ValueError, match=r"fid: reference count \(10000 against 50000\)"):
        compare.table([capped, PUBLISHED])


def test_further_measures_compare_by_their_settings():
    def measured(subsets):
        made = card(measures={"kid": {"name": "kid", "features": "fid", "subsets": subsets}})
        made["results"][0]["values"]["kid"] = {"mean": 0.25, "std": 0.0}
        return made

    lines = compare.table([measured(100), measured(100)])
    assert lines[0].endswith("| kid |") and lines[2].endswith("| 0.250 |")
    lines = compare.table([measured(100), measured(50)])
    assert "kid |" not in lines[0] and lines[-1] == "kid is left out: the cards have it by different settings."
    assert "kid" not in " ".join(compare.table([measured(100), PUBLISHED]))


PARTS = (  # that no card is without, and that are no numbers
    "title", "results.0.name", "results.0.values", "results.0.values.fid", "protocol.sampling",
    "protocol.seeds", "protocol.data", "protocol.features", "protocol.features.fid", "protocol.reference",
    "protocol.reference.fid",
)  # fmt: skip


@pytest.mark.parametrize("cut, instead", [
    *((part, None) for part in PARTS if not part.endswith(("values.fid", "features.fid"))),
    *((part, 3) for part in PARTS),
    *((part, None) for part in ("results.0.nfe", "results.0.values.fid.mean", "protocol.samples")),
    ("protocol.data.name", 3), ("protocol.reference.fid.data", 3), ("protocol.measures", [1]), ("results", 3),
])  # fmt: skip
def test_half_a_card_is_refused_in_one_line(tmp_path, capsys, cut, instead):
    made = json.loads(json.dumps(card()))
    node, (*path, last) = made, cut.split(".")
    for part in path:
        node = node[int(part) if part.isdigit() else part]
    if instead is None:
        del node[last]
    else:
        node[last] = instead
    files.write_json(tmp_path / "card.json", made)
    assert compare.main(["compare.py", "--cards", f"{tmp_path},published:edm-cifar10-uncond"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged or of an older version; measure it again with --mode eval." in line


def test_a_panel_says_how_it_measured(tmp_path):
    asked = {"kid": dict(name="kid", size=50), "pr": dict(name="precision_recall")}
    asked = {name: dict(one, features="px") for name, one in asked.items()}
    panel = panels.build(PIXELS | {"measures": asked, "manifold": "px"}, DIGITS)
    found = json.loads(json.dumps(protocols.described(evaluation(seeds=(0,)), DIGITS, panel)))["measures"]
    assert found["kid"] == {"name": "kid", "features": "px", "subsets": 100, "size": 50, "seed": 2020}
    expected = {"name": "precision_recall", "features": "px", "k": 3, "strict": False, "most": 0}
    assert found["pr_recall"] == found["coverage"] == expected
    row = panel.measure(DIGITS.reference["image"][:60], DIGITS.reference["label"][:60])
    assert set(found) <= set(row)


def test_the_command_reads_cards_workdirs_and_published_names(tmp_path, capsys):
    files.write_json(tmp_path / "run" / "card.json", card())
    assert compare.main(["compare.py", "--cards", f"{tmp_path / 'run'},published:edm-cifar10-uncond"]) == 0
    assert "| ours | edm-cifar10-uncond 35 | 35 | 2.04 |" in capsys.readouterr().out
    files.write_json(tmp_path / "old.json", {"results": [], "title": "old"})
    for names, words in (
        (["published:x", "published:x"], "nothing is published as"),
        ([str(tmp_path / "none.json"), "published:edm-ffhq64"], "there is no card"),
        ([str(tmp_path / "old.json"), "published:edm-ffhq64"], "records no protocol"),
        (["published:edm-ffhq64"], "two cards or more; got 1"),
        (["published:edm-ffhq64", "published:edm-afhqv2"], "do not compare, they differ in data (ffhq against"),
    ):
        assert compare.main(["compare.py", "--cards", *names]) == 2
        assert words in capsys.readouterr().err


def test_a_card_records_the_protocol():
    panel = panels.build(PIXELS, DIGITS)
    found = json.loads(json.dumps(protocols.described(evaluation(seeds=(0, 1)), DIGITS, panel)))
    assert found["seeds"] == [0, 1] and found["samples"] == 16 and found["sampling"] == "seeds"
    assert found["features"]["px"] == {"net": "pixels", "sha256": ""}
    assert found["reference"]["px"] == {"data": found["data"], "count": 1797}
    assert found["data"]["fingerprint"] == DIGITS.fingerprint and found["data"]["shape"] == [8, 8, 1]


def test_a_jpeg_copy_of_plain_pixels_says_so():
    source = lambda start: SimpleNamespace(elements=lambda indices: [{"image": start + bytes(4)}])
    assert tfds.note(source(tfds.JPEG), "cifar10") == "JPEG-recompressed local copy"
    assert tfds.note(source(b"\x89PNG"), "cifar10") == tfds.note(source(tfds.JPEG), "imagenet2012") == ""


# Feature nets of their own data sets.


@pytest.mark.parametrize("reference, side", [("classifier_cifar10", 32), ("classifier_fashion_mnist:16", 16)])
def test_feature_nets_have_64_dimensions_and_a_split_of_their_own(reference, side):
    config = experiment.load(reference)
    job = assemble.assemble(config, outline=True)
    assert job.data.shape[:2] == (side, side) and config.evaluation.split == "test"
    network = job.parts.models["classifier"].network
    shapes = jax.eval_shape(job.method.init, jax.random.key(0), {}).params
    images = jax.ShapeDtypeStruct((2, *job.data.shape), np.float32)
    levels = jax.ShapeDtypeStruct((2,), np.float32)
    apply = lambda params, x, c_noise: network.apply(params, x, c_noise, {}, taps=("features",))
    _, taps = jax.eval_shape(apply, shapes, images, levels)
    assert taps["features"].shape == (2, 64)


def test_a_feature_net_without_held_out_images_names_the_setting():
    data = DIGITS._replace(reference=dict(DIGITS.reference, split=np.zeros(1797, int)))
    with pytest.raises(ValueError, match="digits holds no images back; name another split"):
        evaluate.held_out(SimpleNamespace(config=CONFIG), SimpleNamespace(data=data))
