"""Studies: rows measured once, resumed, refused when they cannot be, and reported."""

import json

import numpy as np
import pytest

from configs import common
from fastdiff_jax.runtime import command_line, experiment, settings, study


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of a teacher that is trained for it, run to its end."""
    folder = tmp_path_factory.mktemp("runs")
    run = experiment.Experiment("zoo", config(), folder / "zoo")
    assert study.run(run)
    return run


def config():
    found = common.study("lab_edm:smoke")
    noise = dict(history=4, target="noise")
    found.study = dict(
        solvers={
            "dpm++ 2M": dict(name="dpmpp_2m", history=4, nfe=(3, 4)),
            "euler": dict(noise, name="euler"),
            "heun": dict(name="heun", nfe=(5,)),
        },
        nfe=(3, 20),
        reference=dict(name="heun", nfe=63),
    )
    found.evaluation = common.evaluation(num=64, batch_size=32, seeds=(0,), panel=dict(name="mixture"))
    return found


def cells(run):
    return {(c["solver"], c["nfe"]): c for c in json.loads((run.workdir / "card.json").read_text())["results"]}


def test_every_row_is_measured_at_its_cost(made):
    assert set(cells(made)) == {("dpm++ 2M", 3), ("dpm++ 2M", 4), ("euler", 3), ("euler", 20), ("heun", 5)}
    text = (made.workdir / "report.md").read_text()
    assert "| dpm++ 2M |" in text and "| heun |  |  | **" in text
    assert (made.workdir / "report.png").read_bytes().startswith(b"\x89PNG")


def test_more_calls_come_nearer_to_the_converged_samples(made):
    found = cells(made)
    assert found["euler", 20]["distance"] < 0.5 * found["euler", 3]["distance"]


def test_a_finished_row_is_not_measured_again(made, monkeypatch):
    before, asked = cells(made), []
    real = study.one
    monkeypatch.setattr(study, "one", lambda solver, *rest: asked.append(solver) or real(solver, *rest))
    assert study.run(made) and asked == []
    assert cells(made) == before
    (made.workdir / "rows" / "euler_3.json").unlink()
    changed = made.config.copy_and_resolve_references()
    changed.study.solvers.heun.schedule = dict(name="polynomial", rho=5.0)
    assert study.run(made._replace(config=changed))
    assert asked == ["euler", "heun"]  # what was lost, and what is asked for otherwise
    assert cells(made)["euler", 3]["values"] == before["euler", 3]["values"]


def test_rows_are_means_over_sampling_seeds(made):
    """Of two seeds: the mean of what each gives alone, and the distance to the first one's reference."""
    alone = {}
    for seeds in ((0,), (1,), (0, 1)):
        one = config()
        one.study.solvers, one.evaluation.seeds = {"euler": dict(name="euler", nfe=(3,))}, seeds
        run = made._replace(config=one, workdir=made.workdir.with_name(f"seeds{len(alone)}"))
        assert study.run(run)
        alone[seeds] = cells(run)["euler", 3]
    first, second, both = alone.values()
    assert first["deviations"] == {} and both["distance"] == first["distance"] != second["distance"]
    for column, value in both["values"].items():
        given = [first["values"][column], second["values"][column]]
        np.testing.assert_allclose([value, both["deviations"][column]], [np.mean(given), np.std(given)])
    assert any(both["deviations"].values())
    assert " ± " in (made.workdir.with_name("seeds2") / "report.md").read_text()


def test_a_damaged_row_is_named(made):
    path = made.workdir / "rows" / "euler_20.json"
    content = path.read_bytes()
    path.write_bytes(content[:20])
    with pytest.raises(ValueError, match=r"euler_20.json is damaged"):
        study.run(made)
    path.write_bytes(content)


def test_the_table_marks_the_best_of_each_column():
    lines = study.grid({("a", 3): 2.0, ("b", 3): 1.0, ("b", 5): 4.0})
    assert lines[2:] == ["| a | 2.00 |  |", "| b | **1.00** | **4.00** |"]


@pytest.mark.parametrize(
    "solver, words",
    [
        (dict(name="eulr"), "no solver 'eulr'; known: .*euler"),
        (dict(name="heun", nfe=(4,)), "heun cannot make exactly 4"),
        (dict(name="euler", schedule=dict(name="levels", sigmas=(1.0, 2.0))), "decrease"),
    ],
)
def test_rows_that_cannot_be_are_refused_before_training(solver, words, tmp_path):
    wrong = config()
    wrong.study.solvers = {"row": solver}
    with pytest.raises(ValueError, match=words):
        study.run(experiment.Experiment("zoo", wrong, tmp_path / "zoo"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"study.reference": dict(name="heun", nfe=510)}, "heun cannot make exactly 510"),
        ({"teacher": "lab_cld:smoke"}, "velocity"),
        ({"teacher": "lab_sid:smoke"}, "trained by sid; name the config of a teacher"),
    ],
)
def test_studies_that_cannot_be_are_refused_before_training(change, words, tmp_path):
    wrong = config()
    wrong.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=words):
        study.run(experiment.Experiment("zoo", wrong, tmp_path / "zoo"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [("a b", "a_b"), ("a/b",)])
def test_rows_have_files_of_their_own(names):
    wrong = config()
    wrong.study.solvers = {name: dict(name="euler") for name in names}
    with pytest.raises(ValueError, match="config.study must be of rows"):
        settings.check_study(wrong)


def test_a_study_and_an_experiment_have_their_own_commands(capsys):
    assert command_line.main(["main.py", "--config", "solvers_digits:smoke"]) == 2
    assert "run it with launch/study.py" in capsys.readouterr().err
    assert command_line.study(["study.py", "--config", "edm_digits:smoke"]) == 2
    assert "run it with launch/main.py" in capsys.readouterr().err


def test_the_reference_depends_on_seed_and_index_only(made):
    with np.load(made.workdir / "reference.npz") as archive:
        kept = archive["values"]
    (made.workdir / "reference.npz").unlink()
    assert study.run(made)
    with np.load(made.workdir / "reference.npz") as archive:
        np.testing.assert_array_equal(archive["values"], kept)
