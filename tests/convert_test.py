"""launch/convert.py for networks of the EDM code: the folder it writes, teachers by file, and the way back."""

import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import snapshots
from fastdiff_jax import precond, trees
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
    names = ["model.map_step_layer0.weight", "model.enc.8x8_block0.affine_step.bias", "model.map_layer0.bias"]
    kept, dropped = edm_networks.relevant(dict.fromkeys(names, np.ones(1)))
    assert list(kept) == names[2:] and dropped == names[:2]


def recorded(case):
    """A network of the EDM code: (arguments, state dict, {key: array}) with what it answers."""
    name = "edm_nets_adm" if "adm" in case else "edm_nets"
    with np.load(GOLDENS / f"{name}.npz") as golden:
        keys = [key for key in golden.files if key.startswith(f"{case}/")]
        found = {key.removeprefix(f"{case}/"): golden[key] for key in keys}
    state = {key.removeprefix("params/"): one for key, one in found.items() if key.startswith("params/")}
    return json.loads(str(found["cfg"])), state, found


def snapshot(folder, key, net):
    path = folder / "network-snapshot-000200.pkl"
    path.write_bytes(snapshots.dumped({key: net}, 4))
    return path


KINDS = {  # preconditioner: (case, attributes as the EDM code saves them, our section)
    "VPPrecond": (
        "ddpmpp_uncond", dict(beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5),
        dict(name="vp", beta_d=19.9, beta_min=0.1, steps=1000, eps=1e-5),
    ),
    "VEPrecond": (
        "ncsnpp_uncond", dict(sigma_min=0.02, sigma_max=100), dict(name="ve", sigma_min=0.02, sigma_max=100),
    ),
    "iDDPMPrecond": (
        "iddpm_adm", dict(C_1=0.001, C_2=0.008, M=1000, sigma_min=0.0064, sigma_max=20291.0),
        dict(name="iddpm", steps=1000),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_other_preconditioners_are_converted(tmp_path, kind):
    """Baselines of EDM's paper: each answers what the original does."""
    case, attributes, section = KINDS[kind]
    arguments, state, found = recorded(case)
    arguments.pop("model_type")
    head = arguments.pop("channels_per_head", 64)
    name = "DhariwalUNet" if "adm" in case else "SongUNet"
    inside = snapshots.network(name, state, head=head, _init_kwargs=arguments)
    net = snapshots.module(kind, (), {"model": inside}, **attributes)
    if section["name"] == "iddpm":  # its levels are saved, in single precision
        table = precond.iddpm_table().astype(np.float32)
        net.parts[1][0]["state"]["_buffers"] = {"u": snapshots.stored(table)}
    path, out = snapshot(tmp_path, "ema", net), tmp_path / "net"
    outputs = {"x": found["x"], "sigma": found["sigma"], "D": found[f"D_{section['name']}"]}
    np.savez(tmp_path / "outputs.npz", **outputs)
    assert run(kind="edm", file=path, out=out, outputs=tmp_path / "outputs.npz") == 0
    about = json.loads((out / "conversion.json").read_text())
    assert about["precond"] == section and about["left_out"] == []
    checked = about["parity"]["recorded"]
    assert checked["max_abs_difference"] < 2e-5 * checked["max_abs_output"]
    made = experiment.load(str(out))
    assert made.objective.name == {"iddpm": "edm"}.get(section["name"], section["name"])
    job = assemble.assemble(made, outline=True)
    assert all(one.nfe for one in job.method.samplers.values())
    assert run(kind="export", workdir=out, out=tmp_path / "net.safetensors") == 0
    exported = torch_state.read(tmp_path / "net.safetensors")
    wanted = {f"model.{name}" for name in state} | ({"u"} if section["name"] == "iddpm" else set())
    assert exported.keys() == wanted


def test_a_table_of_levels_that_is_not_iddpm_s_is_refused(tmp_path):
    arguments, state, _ = recorded("iddpm_adm")
    kind, head = arguments.pop("model_type"), arguments.pop("channels_per_head")
    inside = snapshots.network(kind, state, head=head, _init_kwargs=arguments)
    net = snapshots.module("iDDPMPrecond", (), {"model": inside}, M=1000)
    with pytest.raises(ValueError, match="the state has no table u of 1001 noise levels"):
        converted.read(snapshot(tmp_path, "ema", net))
    net.parts[1][0]["state"]["_buffers"] = {"u": snapshots.stored(np.float32(1.1 * precond.iddpm_table()))}
    with pytest.raises(ValueError, match="the state has another table u"):
        converted.read(snapshot(tmp_path, "ema", net))


def student(case, **settings):
    """A student of SFD as its code saves it: classes by name, no arguments, layers for a number of steps."""
    arguments, state, found = recorded(case)
    generator = np.random.RandomState(0)
    wide, noise = state["map_layer0.weight"].shape
    for name, shape in (("layer0", (wide, noise)), ("layer1", (wide, wide))):
        state[f"map_step_{name}.weight"] = generator.standard_normal(shape).astype(np.float32)
        state[f"map_step_{name}.bias"] = np.zeros(wide, np.float32)
    for name in [name for name in state if name.endswith("affine.weight")]:
        state[name.replace("affine.", "affine_step.")] = np.ones_like(state[name])
    if "map_noise.freqs" in state:
        state["map_step.freqs"] = state["map_noise.freqs"]
    head = arguments.get("channels_per_head", 64)
    inside = snapshots.network(arguments["model_type"], state, sfd=True, head=head)
    net = snapshots.SFD["EDMPrecond"]()
    told = snapshots.EasyDict(
        class_name="training.loss.loss", num_steps=4, sampler_tea="dpmpp", M=3, schedule_type="polynomial",
        schedule_rho=7.0, afs=True, max_order=3, sigma_min=0.006, sigma_max=80.0, use_step_condition=False,
    ) | settings  # fmt: skip
    net.__dict__.update(
        training=False, _parameters={}, _buffers={}, _modules={"model": inside}, sigma_min=0.006,
        sigma_max=80.0, sigma_data=0.5, use_fp16=True, training_kwargs=snapshots.EasyDict(told),
    )  # fmt: skip
    return net, found


@pytest.mark.parametrize("case", ["ddpmpp_cond", "adm_cond", *(
    pytest.param(case, marks=pytest.mark.slow) for case in ("ddpmpp_uncond", "ncsnpp_cond", "song_skip")
)])  # fmt: skip
def test_a_student_of_sfd_is_converted(tmp_path, case):
    """How it was built is read off its parts; its sampler is the one that it was trained for."""
    net, found = student(case)
    path, out = snapshot(tmp_path, "model", net), tmp_path / "sfd"
    outputs = {key: found[key] for key in ("x", "sigma", "class_labels") if key in found}
    np.savez(tmp_path / "outputs.npz", D=found.get("D_edm_noaug", found["D_edm"]), **outputs)
    assert run(kind="edm", file=path, out=out, outputs=tmp_path / "outputs.npz") == 0
    about = json.loads((out / "conversion.json").read_text())
    checked = about["parity"]["recorded"]
    assert checked["max_abs_difference"] < 2e-5 * checked["max_abs_output"]
    assert all("_step" in name for name in about["left_out"]) and about["left_out"]
    assert about["settings"]["num_steps"] == 4
    (name,) = experiment.load(str(out)).method.samplers
    sampler = assemble.assemble(experiment.load(str(out)), outline=True).method.samplers[name]
    assert (name, sampler.nfe) == ("student 2", 2)
    levels = experiment.load(str(out)).method.samplers[name].schedule
    assert (levels.sigma_min, levels.sigma_max, levels.zero) == (0.006, 80.0, False)


@pytest.mark.parametrize("settings, words", [
    (dict(use_step_condition=True), r"told its number of steps \(SFD-v\), which has no converter"),
    (dict(num_steps=2), "settings say no sampler .num_steps, sigmas and rho are 2, 0.006"),
    (dict(sigma_min=float("nan")), "settings say no sampler"),
])  # fmt: skip
def test_students_that_cannot_be_sampled_are_refused(tmp_path, settings, words, capsys):
    net, _ = student("ddpmpp_uncond", **settings)
    assert run(kind="edm", file=snapshot(tmp_path, "model", net), out=tmp_path / "sfd") == 2
    assert re.search(words, capsys.readouterr().err) and not (tmp_path / "sfd").exists()


@pytest.mark.parametrize("left", ["map_layer0", "enc", "8x8_conv", "dec", "8x8_block0"])
def test_a_student_of_other_parts_is_refused(tmp_path, left):
    net, _ = student("ddpmpp_uncond")
    modules = net.__dict__["_modules"]["model"].__dict__["_modules"]
    holder = modules if left in modules else modules["enc"].__dict__["_modules"]
    del holder[left]
    with pytest.raises(ValueError, match="other parts than this network|the names do not fit|cannot be built"):
        converted.read(snapshot(tmp_path, "model", net))


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


@pytest.mark.parametrize("damage, words", [
    ("cut", "is no npz of recorded outputs: "),
    ("npy", "is no npz of recorded outputs: it is damaged or no zip"),
    ("nan", "D is not finite, so it compares with nothing"), ("complex", "D is of the type complex64"),
])  # fmt: skip
def test_damaged_outputs_are_refused_in_one_line(tmp_path, capsys, damage, words):
    path = tmp_path / "outputs.npz"
    with np.load(GOLDENS / "edm_nets.npz") as golden:
        found = {key.partition("/")[2]: golden[key] for key in golden.files if key.startswith("pkl_ddpmpp/")}
    if damage == "nan":
        found["D"] = np.full_like(found["D"], np.nan)
    if damage == "complex":
        found["D"] = found["D"].astype(np.complex64)
    np.savez(path, **found)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    if damage == "npy":
        with open(path, "wb") as file:
            np.save(file, found["D"])
    assert run(kind="edm", file=SNAPSHOT, out=tmp_path / "out", outputs=path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and [*tmp_path.iterdir()] == [path]


def test_a_hostile_snapshot_writes_nothing(tmp_path, capsys):
    path = tmp_path / "a.pkl"
    path.write_bytes(snapshots.bombs(tmp_path / "was_here")["inner"][1])
    assert run(kind="edm", file=path, out=tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing of it was run: the name posix.system" in line and {*tmp_path.iterdir()} == {path}
