"""launch/convert.py for networks of the EDM code: the folder it writes, teachers by file, and the way back."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import snapshots
from fastdiff_jax import trees
from fastdiff_jax.data import stored, unseen
from fastdiff_jax.interop import edm_networks, edm_pickle, torch_state
from fastdiff_jax.runtime import assemble, command_line, commands, convert, converted, experiment
from fastdiff_jax.runtime import mesh as meshes

GOLDENS = experiment.ROOT / "tests" / "goldens"
SNAPSHOT = GOLDENS / "edm_tiny_ddpmpp.pkl"


def run(**flags):
    return convert.main(["convert.py", *(f"--{name}={value}" for name, value in flags.items())])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder that a snapshot was converted to, its parity checked against recorded outputs."""
    folder = tmp_path_factory.mktemp("converted")
    with np.load(GOLDENS / "edm_nets.npz") as golden:
        recorded = {key.partition("/")[2]: golden[key] for key in golden.files if key.startswith("pkl_ddpmpp/")}
    np.savez(folder / "recorded.npz", **recorded)
    out = folder / "net.v1"
    assert run(kind="edm", file=SNAPSHOT, out=out, outputs=folder / "recorded.npz") == 0
    return out


def test_the_folder_says_what_the_network_is_and_makes(teacher):
    about = json.loads((teacher / "conversion.json").read_text())
    assert about["source"]["key"] == "ema" and len(about["source"]["sha256"]) == 64
    assert about["source"]["other_entries"] == ["loss_fn", "augment_pipe", "dataset_kwargs"]
    assert about["network"]["architecture"] == "ddpmpp"
    assert about["precond"] == {"name": "edm", "sigma_data": 0.5}
    sizes = [np.prod(shape, dtype=int) for shape in about["shapes"].values()]
    assert about["parameters"] == sum(sizes) and about["image_shape"] == [8, 8, 3] and about["classes"] == 4
    assert about["settings"]["sigma_max"] == "inf" and about["settings"]["use_fp16"] is False
    checked = about["parity"]
    assert 0 < checked["output_std"] < 1 and checked["output_shape"] == [2, 3, 8, 8]
    assert checked["recorded"]["max_abs_difference"] < 2e-5 * checked["recorded"]["max_abs_output"]
    text = (teacher / "README.md").read_text()
    assert "CC BY-NC-SA 4.0" in text and about["source"]["sha256"] in text
    assert {path.name for path in teacher.parent.iterdir()} == {"recorded.npz", "net.v1"}  # nothing left over
    assert "CC BY-NC-SA" in about["licence"]


def test_nothing_is_overwritten(teacher, capsys):
    before = (teacher / "product.json").read_bytes()
    assert run(kind="edm", file=SNAPSHOT, out=teacher) == 2
    assert "is there already" in capsys.readouterr().err
    assert (teacher / "product.json").read_bytes() == before


def test_export_and_back_is_exact(teacher, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    assert run(kind="export", workdir=teacher, out=out) == 0
    found = torch_state.read(out)
    _, saved = edm_pickle.chosen(edm_pickle.read(SNAPSHOT))
    state = edm_pickle.flatten(saved)
    assert found.keys() == state.keys()  # buffers included
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    again = edm_networks.weights(edm_networks.described(saved), found)
    original = converted.read(SNAPSHOT).params
    for (path, ours), (_, theirs) in zip(trees.named(again), trees.named(original), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)
    assert run(kind="export", workdir=teacher, out=out) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_folder_is_an_experiment_of_its_own(teacher, tmp_path):
    basis = experiment.prerequisite(str(teacher), tmp_path / "runs" / "sfd")
    assert (basis.name, basis.workdir) == ("net.v1", teacher)
    job = assemble.assemble(basis.config, outline=True)
    assert job.data.name == unseen.NAME and job.classes == 4
    assert list(job.data.reference["label"]) == [0, 1, 2, 3]
    assert experiment.folder("edm_digits") is None and experiment.folder("configs/edm_digits.py") is None
    assert experiment.workdir_of("edm_digits:smoke", tmp_path) == tmp_path / "edm_digits_smoke"
    values, asked = command_line.asked(["main.py", "--config", str(teacher), "--mode=sample"])
    assert asked.workdir == teacher and values.mode == "sample"
    for command in (commands.train, commands.measure):
        with pytest.raises(ValueError, match="net.v1 was converted without the data"):
            command(asked)


def sfd(teacher, **data):
    """A student of one call, trained for one step."""
    config = experiment.load("sfd_digits:smoke")
    config.teacher = str(teacher)
    config.data = ConfigDict(data or dict(name=unseen.NAME, shape=(8, 8, 3), classes=4))
    config.method.update(stamps=2, extra=1, afs=False)
    config.evaluation.teacher_samplers = {}
    config.train.update(batch_size=2, steps=1, log_every=1, save_every=1)
    return config


@pytest.mark.slow
def test_a_student_is_distilled_from_a_file(teacher, tmp_path, monkeypatch):
    outline = unseen.build

    def noise(options):
        """Images for the student's batches, which count them and look no further."""
        images = np.random.RandomState(0).randint(0, 256, (16, *options["shape"])).astype(np.uint8)
        return outline(options)._replace(train=stored.Rows(images, np.arange(16) % options["classes"]))

    monkeypatch.setattr(unseen, "build", noise)
    student = experiment.Experiment("sfd", sfd(teacher), tmp_path / "sfd")
    commands.check(student)
    assert commands.fit(student)
    job = assemble.assemble(student.config, outline=True)
    params = commands.product(job, student, meshes.make(student.config.mesh))
    start = converted.read(SNAPSHOT).params
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True)
    assert 0 < max(np.abs(a - b).max() for a, b in pairs) < 0.1  # it began as the teacher in the file
    assert [path.name for path in tmp_path.iterdir()] == ["sfd"]  # the teacher was not trained


@pytest.mark.parametrize("data, words", [
    (dict(name="digits"), r"is for images \(8, 8, 3\), and the data of sfd have \(8, 8, 1\)"),
    (dict(name="unseen", shape=(8, 8, 3), classes=5), "is for classes 4, and the data of sfd have 5"),
])  # fmt: skip
def test_weights_for_other_images_are_refused(teacher, tmp_path, data, words):
    student = experiment.Experiment("sfd", sfd(teacher, **data), tmp_path / "sfd")
    with pytest.raises(ValueError, match=words):
        commands.check(student)


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished weights"):
        experiment.load(str(tmp_path))
    with pytest.raises(ValueError, match="no config file or folder of weights '.*absent'"):
        experiment.load(str(tmp_path / "absent"))


@pytest.mark.parametrize("change, words", [
    (dict(model=dict(depth=3)), "built with unknown arguments depth"),
    (dict(model=dict(num_blocks=10**6)), "num_blocks 1000000, which is not a whole number from 1 to 32"),
    (dict(model=dict(model_channels=True)), "model_channels True, which is not a whole number"),
    (dict(model=dict(channel_mult="ab")), "channel_mult ab, which is no short list"),
    (dict(model=dict(model_channels=17)), "cannot be built|the names do not fit|has shape"),
    (dict(net=dict(sigma_data=float("nan"))), "sigma_data nan, which is not a finite number"),
    (dict(net=dict(use_step_condition=True)), r"told its number of steps \(SFD-v\)"),
    (dict(name="VPrecond"), "network is a VPrecond with a SongUNet; known: EDMPrecond"),
])  # fmt: skip
def test_networks_that_are_unknown_are_refused(change, words):
    _, saved = edm_pickle.chosen(edm_pickle.read(SNAPSHOT))
    saved.name = change.get("name", saved.name)
    saved.state |= change.get("net", {})
    saved.state["_modules"]["model"].state["_init_kwargs"] |= change.get("model", {})
    with pytest.raises(ValueError, match=words):
        edm_networks.weights(edm_networks.described(saved), edm_pickle.flatten(saved))


def test_layers_for_a_number_of_steps_are_left_out():
    names = ["model.map_step0.weight", "model.enc.8x8_block0.affine_step.bias", "u", "model.map_layer0.bias"]
    kept, dropped = edm_networks.relevant(dict.fromkeys(names, np.ones(1)))
    assert list(kept) == names[3:] and dropped == names[:3]


@pytest.mark.parametrize("flags, words", [
    (dict(kind="edm", out="x"), "no --file given; usage: python launch/convert.py --kind edm"),
    (dict(kind="edm", file="absent.pkl", out="x"), "there is no file 'absent.pkl' to convert"),
    (dict(kind="edm", file=SNAPSHOT, out="x", key="net"), "no network 'net'; networks there: ema"),
    (dict(kind="edm", file=SNAPSHOT, out="x", vgg="y"), "--vgg is no flag of --kind edm"),
    (dict(kind="edm", file=SNAPSHOT, out="x", data="edm_digits"), "images (8, 8, 1) of 10 classes, the"),
    (dict(kind="edm", file=SNAPSHOT, out="x", outputs=SNAPSHOT), "is no npz of recorded outputs"),
    (dict(kind="export", workdir="absent", out="x.safetensors"), "is no folder of finished weights"),
    (dict(kind="export", workdir="absent", out="x.pth"), "ends in .safetensors"),
    (dict(out="x"), "no --kind given; known: lpips, edm, export"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert run(**flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not any(tmp_path.iterdir())


def test_a_hostile_snapshot_writes_nothing(tmp_path, capsys):
    path = tmp_path / "a.pkl"
    path.write_bytes(snapshots.bombs(tmp_path / "was_here")["inner"][1])
    assert run(kind="edm", file=path, out=tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing of it was run: the name posix.system" in line and {*tmp_path.iterdir()} == {path}
