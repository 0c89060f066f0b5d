"""The command line as a user meets it: runs of smoke size, and one clear line for whatever cannot be done."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from fastdiff_jax.data import pipeline
from fastdiff_jax.runtime import checkpoint, command_line, commands, experiment

ROOT = Path(__file__).parents[1]
TEACHER, STUDENT = "configs/edm_digits.py:smoke", "configs/sid_digits.py:smoke"


def run(*arguments):
    return command_line.main(["main.py", *map(str, arguments)])


def refusal(capsys, *arguments):
    """The one line that a refused command prints, after checking that it is one and that the code is 2."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "img/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory with the smoke student in sid_digits_smoke, and its teacher beside it."""
    folder = tmp_path_factory.mktemp("runs")
    assert run("--config", STUDENT, "--workdir", folder / "sid_digits_smoke") == 0
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_command_leaves_report_card_logs_and_checkpoints(trained):
    student, teacher = trained / "sid_digits_smoke", trained / "edm_digits_smoke"
    left = ["report.md", "report.png", "card.json", "metrics.jsonl", "config.json", "product.json"]
    assert all((student / name).is_file() for name in left)
    assert list((student / "checkpoints").iterdir()) and (teacher / "product.json").is_file()
    card = json.loads((student / "card.json").read_text())
    assert card["data"]["name"] == "digits" and card["data"]["fingerprint"]
    assert card["features"]["ft"]["sha256"] and card["versions"]["jax"] and card["device"]["count"] >= 1
    rows = {row["name"]: row for row in card["results"]}
    assert rows["student"]["nfe"] == 1 and rows["heun 35"]["nfe"] == 35
    assert {"px", "ft", "precision", "recall", "agreement"} <= rows["student"]["values"].keys()
    assert Image.open(student / "report.png").size[0] > 500


def test_a_finished_run_is_not_trained_again(trained):
    before = json.loads((trained / "sid_digits_smoke/product.json").read_text())["fingerprint"]
    stamp = (trained / "sid_digits_smoke/metrics.jsonl").stat().st_mtime_ns
    assert run("--config", STUDENT, "--workdir", trained / "sid_digits_smoke", "--mode", "eval") == 0
    assert json.loads((trained / "sid_digits_smoke/product.json").read_text())["fingerprint"] == before
    assert (trained / "sid_digits_smoke/metrics.jsonl").stat().st_mtime_ns == stamp


def samples(trained, out, *arguments):
    folder = trained / "sid_digits_smoke"
    assert run("--config", STUDENT, "--workdir", folder, "--mode", "sample", "--out", out, *arguments) == 0
    return np.load(out)


def test_samples_have_the_data_s_class_shares_and_levels(trained, tmp_path):
    made = samples(trained, tmp_path / "s.npz", "--num", 1797)
    assert made["images"].shape == (1797, 8, 8, 1) and made["images"].dtype == np.uint8
    real = datasets.load_digits().target
    np.testing.assert_array_equal(np.bincount(made["labels"]), np.bincount(real))
    assert set(np.unique(made["images"])) <= set(np.rint(np.arange(17) * 255 / 16).astype(np.uint8))
    assert (tmp_path / "s.png").is_file()


def test_images_depend_on_seed_and_index_only(trained, tmp_path):
    many, few = (samples(trained, tmp_path / f"{n}.npz", "--num", n) for n in (70, 5))
    np.testing.assert_array_equal(many["images"][:5], few["images"])
    np.testing.assert_array_equal(many["labels"][:5], few["labels"])
    other = samples(trained, tmp_path / "other.npz", "--num", 5, "--seed", 1)
    assert not np.array_equal(other["images"], few["images"])
    batch = samples(trained, tmp_path / "b.npz", "--num", 70, "--config.evaluation.batch_size=48")
    differ = np.abs(batch["images"].astype(int) - many["images"])
    assert differ.max() <= 16 and (differ > 0).mean() < 0.01  # one of 17 levels, at a rounding edge


def test_labels_can_be_asked_for(trained, tmp_path):
    made = samples(trained, tmp_path / "s.npz", "--num", 5, "--labels", "3,1")
    assert made["labels"].tolist() == [3, 1, 3, 1, 3]


def test_dry_run_prints_the_official_size_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    workdir = tmp_path / "run"
    assert run("--config", "configs/sid_cifar10.py", "--workdir", workdir, "--mode", "dry_run") == 0
    text = capsys.readouterr().out
    assert "55,733,891" in text and "FLOPs per step" in text and "per device" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "no --config given; configs: .*sid_digits"),
        (["--config", "configs/nope.py"], "no config file.*known: .*sid_digits"),
        (["--config", "configs/sid_digits.py:fast"], "unknown fast; known"),
        (["--config", TEACHER, "--config.train.batch=3"], "'batch' is unknown; known there: batch_size"),
        (["--config", TEACHER, "--config.train.steps=many"], "train.steps.*int"),
        (["--config", TEACHER, "--config.train.steps=-1"], "train.steps.*-1"),
        (["--config", TEACHER, "--config.method.name=sidd"], "'sidd'; known: .*sid, teacher"),
        (["--config", TEACHER, "--config.models.student.network.name=unet"], "'unet'; known: .*song"),
        (["--config", TEACHER, "--config.data.name=mnist"], "'mnist'; known: digits"),
        (["--config", STUDENT, "--config.teacher=edm_nope"], "edm_nope.*known"),
        (["--config", TEACHER, "--mode", "trian"], "mode"),
        (["--config", TEACHER, "--num", "0"], "num"),
        (["--config", TEACHER, "--seed", "-1"], "seed.*range"),
        (["--config", TEACHER, "--config.seed=3000000000"], "config.seed .*from 0 to"),
        (["--config", TEACHER, "--config.train.log_every=0"], "config.train.log_every .*1"),
        (["--config", TEACHER, "--config.train=5"], "config.train takes a section of keys"),
        (["--config", TEACHER, "--config.evaluation.seeds=()"], "config.evaluation.seeds .*one seed"),
        (["--config", TEACHER, "--config.evaluation.panel.name=nope"], "'nope'; known: images, mixture"),
        (["--config", TEACHER, "--config.evaluation.kind=nope"], "'nope'; known: samples"),
        (["--config", TEACHER, "--config.optimizers.student.name=sgd"], "'sgd'; known: adam"),
        (["--config", TEACHER, "--config.models.student.precond.name=x"], "'x'; known: edm"),
        (["--config", STUDENT, "--config.evaluation.teacher_samplers['heun 35'].nfe=3"], "in a config file"),
        (["--config", STUDENT, "--config.evaluation.teacher_samplers['heun 9'].nfe=1"], "known .*heun 35"),
        (["--config", STUDENT, "--config.evaluation.seeds[1]=3"], "'1' is unknown; known there: 0"),
        (["--config", STUDENT, "--config.teacher=classifier_digits"], "trains classifier, no denoiser"),
        (["--config", TEACHER, "--unknown", "3"], "unknown"),
        (["--config", TEACHER, "--mode", "sample", "--out", "samples.npy"], "ends in .npz"),
        (["--config", TEACHER, "--mode", "sample", "--out", f"{__file__}/s.npz"], "with --out"),
        (["--config", TEACHER, "--mode", "sample", "--labels", ""], "class numbers"),
        (["--config", TEACHER, "stray"], "stray"),
        (["--config", TEACHER, "--mode", "sample"], "train it first"),
        (["--config", TEACHER, "--mode", "eval"], "train it first"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, words, capsys, tmp_path):
    line = refusal(capsys, *arguments, "--workdir", tmp_path / "run")
    assert re.search(words, line), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(arg=''):\n    return 1 / 0\n", "ZeroDivisionError"),
        ("def get_config(arg=''):\n    return {}\n", "returned dict, not a ConfigDict"),
        ("def get_config(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("X = 1", "has no attribute 'get_config'"),
    ],
)
def test_a_config_file_that_fails_is_one_line(text, words, capsys, tmp_path):
    (tmp_path / "bad.py").write_text(text)
    line = refusal(capsys, "--config", tmp_path / "bad.py", "--workdir", tmp_path / "run")
    assert words in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ("config.epochs = 3", "no setting epochs; known: data"),
        ("config.train.step = 3", "config.train has no setting step; known: batch_size"),
        ("del config.train.keep", "config.train needs the setting keep"),
        ("config.train = 3", "TypeError: .*ConfigDict"),
        ("config.train.update(dict(steps='6'))", "TypeError: .*int"),
    ],
)
def test_a_config_file_with_wrong_keys_is_one_line(change, words, capsys, tmp_path):
    text = "from configs import edm_digits\n\ndef get_config(arg='smoke'):\n"
    body = f"    config = edm_digits.get_config(arg)\n    {change}\n    return config\n"
    (tmp_path / "odd.py").write_text(text + body)
    assert re.search(words, refusal(capsys, "--config", tmp_path / "odd.py", "--workdir", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_no_error(flag, capsys):
    assert run(flag) == 0
    text = capsys.readouterr().out
    assert "--workdir" in text and "--config.KEY=VALUE" in text and "sid_digits" in text


def test_any_working_directory_and_the_bare_name_will_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("edm_digits:smoke", TEACHER):
        assert run("--config", name, "--mode", "dry_run") == 0
        assert "edm_digits_smoke: method teacher" in capsys.readouterr().out


def test_data_that_are_not_prepared(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    line = refusal(capsys, "--config", "configs/sid_cifar10.py:smoke", "--workdir", tmp_path / "run")
    assert "not prepared" in line and "TFDS_DATA_DIR" in line


def test_an_unwritable_workdir(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        for config in (TEACHER, STUDENT):  # a student's is tried before its teacher is trained
            line = refusal(capsys, "--config", config, "--workdir", folder)
            assert "cannot be written" in line and "--workdir" in line
        refusal(capsys, "--config", TEACHER, "--workdir", folder, "--mode", "sample")
    assert (tmp_path / "file").read_text() == ""


def test_a_run_of_another_config_is_kept(trained, capsys):
    before = contents(trained / "edm_digits_smoke")
    line = refusal(
        capsys, "--config", TEACHER, "--workdir", trained / "edm_digits_smoke", "--config.train.steps=8"
    )
    assert "train.steps" in line and contents(trained / "edm_digits_smoke") == before
    line = refusal(
        capsys, "--config", TEACHER, "--workdir", trained / "edm_digits_smoke", "--mode", "sample",
        "--config.models.student.network.model_channels=32",
    )  # fmt: skip
    assert "model_channels (16 there, 32 here)" in line


def test_a_teacher_of_another_config_is_refused_before_the_student_is_begun(trained, capsys, tmp_path):
    shutil.copytree(trained / "edm_digits_smoke", tmp_path / "edm_digits_smoke")
    marker = tmp_path / "edm_digits_smoke" / "product.json"
    marker.write_text(marker.read_text().replace('"seed": 0', '"seed": 7'))
    line = refusal(capsys, "--config", STUDENT, "--workdir", tmp_path / "sid_digits_smoke")
    assert "edm_digits_smoke was trained with another config" in line and "seed (7 there, 0 here)" in line
    assert not (tmp_path / "sid_digits_smoke").exists()
    marker.unlink()  # unfinished, and what it began with is another config
    config = tmp_path / "edm_digits_smoke" / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 7'))
    line = refusal(capsys, "--config", STUDENT, "--workdir", tmp_path / "sid_digits_smoke")
    assert "holds a run of another config" in line and not (tmp_path / "sid_digits_smoke").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_refused(damage, trained, capsys, tmp_path):
    workdir = tmp_path / "edm_digits_smoke"
    shutil.copytree(trained / "edm_digits_smoke", workdir)
    (workdir / "product.json").unlink()  # killed before it was written
    victim = workdir / "checkpoints" / "6" / "state" / "_METADATA"
    data = victim.read_bytes()
    victim.unlink() if damage == "missing" else victim.write_bytes(data[: len(data) // 2])
    before = contents(workdir)
    line = refusal(capsys, "--config", TEACHER, "--workdir", workdir)
    assert "checkpoints/6 is damaged: state/_METADATA" in line and "continue from step 3" in line
    assert contents(workdir) == before


class Terminating:
    """Batches of which the fourth comes with a SIGTERM."""

    def __init__(self, batches):
        self.batches, self.number = batches, 0
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        self.number += 1
        if self.number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.batches)


def test_sigterm_leaves_an_unfinished_teacher_that_goes_on(trained, capsys, tmp_path, monkeypatch):
    student = ("--config", STUDENT, "--workdir", tmp_path / "sid_digits_smoke")
    with monkeypatch.context() as patch:
        whole = pipeline.batches
        patch.setattr(pipeline, "batches", lambda *args, **named: Terminating(whole(*args, **named)))
        assert run(*student) == 75
    assert "saved is step 4" in capsys.readouterr().err
    assert "train it first" in refusal(capsys, *student, "--mode", "sample")
    assert not (tmp_path / "sid_digits_smoke").exists()
    teacher = experiment.Experiment(
        "edm_digits_smoke", experiment.load("edm_digits:smoke"), tmp_path / "edm_digits_smoke"
    )
    assert commands.fit(teacher)
    assert checkpoint.product(teacher.workdir) == checkpoint.product(trained / "edm_digits_smoke")


def test_unknown_samplers_and_labels(trained, capsys):
    base = ("--config", STUDENT, "--workdir", trained / "sid_digits_smoke", "--mode", "sample")
    assert "known: student" in refusal(capsys, *base, "--sampler", "heun")
    assert "0 to 9" in refusal(capsys, *base, "--labels", "3,12")
    assert "class numbers" in refusal(capsys, *base, "--labels", "three")
    assert not (trained / "sid_digits_smoke" / "samples.npz").exists()


def test_a_truncated_product_is_refused(trained, capsys, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    product = tmp_path / "runs" / "sid_digits_smoke" / "product"
    largest = max((p for p in product.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    workdir = tmp_path / "runs" / "sid_digits_smoke"
    assert "damaged" in refusal(capsys, "--config", STUDENT, "--workdir", workdir, "--mode", "sample")


def test_a_loss_that_stays_nan_stops_the_run(capsys, tmp_path):
    line = refusal(
        capsys, "--config", TEACHER, "--workdir", tmp_path / "run", "--config.train.steps=40",
        "--config.optimizers.student.learning_rate=1e30", "--config.optimizers.student.ramp_images=0.0",
    )  # fmt: skip
    assert "loss" in line and "learning rate" in line


def child(*arguments, **environment):
    command = [sys.executable, "launch/main.py", *map(str, arguments)]
    given = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)


EIGHT = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"


@pytest.mark.parametrize("key", ["train.batch_size", "evaluation.batch_size"])
def test_a_batch_that_does_not_divide_over_devices(key, tmp_path):
    arguments = ("--config", TEACHER, "--workdir", tmp_path / "run", f"--config.{key}=12")
    done = child(*arguments, XLA_FLAGS=EIGHT)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: {key} 12 does not divide over 8 devices; use a multiple of 8.\n"
    assert not (tmp_path / "run").exists()


def test_images_do_not_depend_on_the_number_of_devices(trained, tmp_path):
    one = samples(trained, tmp_path / "one.npz", "--num", 70)
    workdir, out = trained / "sid_digits_smoke", tmp_path / "eight.npz"
    arguments = ("--config", STUDENT, "--workdir", workdir, "--mode", "sample", "--num", 70, "--out", out)
    done = child(*arguments, XLA_FLAGS=EIGHT)
    assert done.returncode == 0, done.stderr
    eight = np.load(out)
    np.testing.assert_array_equal(eight["labels"], one["labels"])
    differ = np.abs(eight["images"].astype(int) - one["images"])
    assert differ.max() <= 16 and (differ > 0).mean() < 0.01  # one of 17 levels, at a rounding edge


def tfds_folder():
    folder = Path(os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared" / "tfds")
    assert folder.is_dir(), "this test reads prepared data; set TFDS_DATA_DIR"
    return str(folder)


@pytest.mark.slow
@pytest.mark.tfds
@pytest.mark.parametrize("name", ["sid_fashion_mnist", "sid_cifar10"])
def test_real_image_sets_train_without_tensorflow(name, tmp_path):
    code = (
        "import sys; sys.argv[0] = 'main.py'; sys.path.insert(0, '.');"
        "from fastdiff_jax.runtime import backend; backend.setup();"
        "from fastdiff_jax.runtime import command_line; code = command_line.main(sys.argv);"
        "assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    arguments = ["--config", f"configs/{name}.py:smoke", "--workdir", str(tmp_path / name)]
    environment = {**os.environ, "TFDS_DATA_DIR": tfds_folder()}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / name / "report.md").is_file()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(trained, tmp_path):
    """kill -9 in the middle of teacher and student; the same command goes on to the same bits."""
    workdir = tmp_path / "sid_digits_smoke"
    command = [sys.executable, "launch/main.py", "--config", STUDENT, "--workdir", str(workdir)]
    for folder in (tmp_path / "edm_digits_smoke", workdir):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None:  # at the first sign of a checkpoint, whole or not
            if folder.joinpath("checkpoints").is_dir() and any(folder.joinpath("checkpoints").iterdir()):
                process.kill()
                break
        process.wait()
        assert not (folder / "product.json").exists()
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    for name in ("edm_digits_smoke", "sid_digits_smoke"):
        ours, theirs = (json.loads((base / name / "product.json").read_text()) for base in (tmp_path, trained))
        assert ours["fingerprint"] == theirs["fingerprint"]
        assert (tmp_path / name / "metrics.jsonl").read_text() == (trained / name / "metrics.jsonl").read_text()
