"""Studies of teachers: trained once, measured at parts of their training, compared by seed."""

import json

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import common
from fastdiff_jax.runtime import (
    checkpoint,
    command_line,
    commands,
    curves,
    experiment,
    settings,
    study,
    teachers,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.curves import Point


def config(**rows):
    """A study of the lab's EDM teacher with FDM and without, two training seeds."""
    found = common.fdm_study("lab_fdm", {"smoke"}, seeds=(0, 3), parts=False)
    found.evaluation = common.evaluation(num=64, batch_size=32, seeds=(0,), panel=dict(name="mixture"))
    if rows:
        found.study.teachers = common.ConfigDict({row: dict(given) for row, given in rows.items()})
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The study, run to its end."""
    run = experiment.Experiment("pair", config(), tmp_path_factory.mktemp("runs") / "pair")
    assert teachers.run(run)
    return run


def card(run):
    return json.loads((run.workdir / "card.json").read_text())


def test_runs_are_ordinary_experiments(made):
    """The config's own seed is no change, so that run is the one that students build on."""
    names = ["lab_fdm_smoke_plain", "lab_fdm_smoke", "lab_fdm_smoke_plain_seed_3", "lab_fdm_smoke_seed_3"]
    assert [one.run.name for one in teachers.of(made)] == names
    for one in teachers.of(made):
        assert one.run.workdir == made.workdir.parent / one.run.name
        assert checkpoint.product(one.run.workdir).config["seed"] == one.seed
    assert teachers.of(made)[1].run == experiment.prerequisite("lab_fdm:smoke", made.workdir)


def test_parts_are_measured_by_one_sampler_and_ends_by_all(made):
    """Six steps of 16 images, of which the third is kept too."""
    found = {(p["row"], p["seed"], p["images"], p["solver"], p["nfe"]) for p in card(made)["results"]}
    rows = [(row, seed) for row in ("edm", "edm, FDM") for seed in (0, 3)]
    wanted = {(48, "ipndm 3", 10), (96, "ipndm 3", 10), (96, "heun", 7)}
    assert found == {(*row, *one) for row in rows for one in wanted}


def test_the_report_says_what_was_compared_and_at_which_cost(made):
    text, about = (made.workdir / "report.md").read_text(), card(made)
    for said in ("### By training images", "### Against the baseline", "### By network calls: heun",
                 "### Calls to the baseline's distance", "## Cost", "| edm, FDM | 3 | lab_fdm_smoke_seed_3 |"):
        assert said in text
    assert (made.workdir / "report.png").read_bytes().startswith(b"\x89PNG")
    assert about["seconds"]["training"] == pytest.approx(sum(one["seconds"] for one in about["runs"]))
    assert {one["weights"] for one in about["runs"]} == {
        checkpoint.product(one.run.workdir).fingerprint for one in teachers.of(made)
    }
    assert [one["precond"].get("input_scale") is None for one in about["runs"]] == [True, False, True, False]


def test_the_end_is_measured_as_the_run_s_own_report_measures_it(made):
    run = experiment.prerequisite("lab_fdm:smoke", made.workdir)
    run.config.method.samplers = common.samplers(("heun", 7))
    run.config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    moved = run._replace(workdir=made.workdir.with_name("own"))
    assert commands.train(moved)
    (own,) = [row for row in card(moved)["results"] if row["name"] == "heun 7"]
    (point,) = [
        p for p in card(made)["results"] if (p["row"], p["seed"], p["solver"]) == ("edm, FDM", 0, "heun")
    ]
    assert point["values"] == pytest.approx({key: value["mean"] for key, value in own["values"].items()})


def test_a_part_of_a_run_is_what_a_shorter_run_is(made):
    """Without a decay of the rate: the average after three of six steps, to the last bit."""
    mesh, weights = meshes.make(made.config.mesh), {}
    for steps in (3, 6):
        changes = dict(train=dict(steps=steps), optimizers=dict(student=dict(decay="constant")))
        run = experiment.changed("lab_fdm:smoke", changes, made.workdir)
        assert commands.fit(run)
        job = commands.teacher(run, outline=True)
        weights[steps] = jax.device_get(teachers.weights_at(run, job, 3, mesh))
        ends = jax.device_get(commands.product(job, run, mesh))
    chex.assert_trees_all_equal(weights[3], weights[6])
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(weights[6]), jax.tree.leaves(ends)))


def test_what_is_there_is_neither_trained_nor_measured_again(made, monkeypatch):
    monkeypatch.setattr(commands, "fit", lambda run: pytest.fail(f"{run.name} is trained again"))
    asked, real = [], teachers.measured
    monkeypatch.setattr(teachers, "measured", lambda *given: asked.append(given[:3]) or real(*given))
    before = card(made)
    assert teachers.run(made) and card(made)["results"] == before["results"] and asked == []
    study.row_file(made, "edm, FDM_seed_3_ipndm 3_10_at_48").unlink()
    assert teachers.run(made)
    ((one, step, solver),) = asked
    assert (one.row, one.seed, step, solver) == ("edm, FDM", 3, 3, "ipndm 3")
    again = [{**p, "ms_per_image": 0, "compile_seconds": 0} for p in card(made)["results"]]
    assert again == [{**p, "ms_per_image": 0, "compile_seconds": 0} for p in before["results"]]


def test_an_interrupted_run_stops_the_study(made, monkeypatch):
    monkeypatch.setattr(commands, "fit", lambda run: False)
    more = config()
    more.study.teachers["edm"].seeds = (0, 3, 5)
    assert teachers.run(made._replace(config=more)) is False


def test_a_lost_checkpoint_is_named_before_anything_is_trained(made, monkeypatch):
    more = config()
    more.study.teachers["edm"].seeds = (0, 3, 5)
    kept = study.row_file(made, "edm_seed_0_ipndm 3_10_at_48")
    folder, content = made.workdir.parent / "lab_fdm_smoke_plain" / "checkpoints" / "3", kept.read_bytes()
    folder.rename(folder.with_name("away"))
    monkeypatch.setattr(commands, "fit", lambda run: pytest.fail(f"{run.name} is trained"))
    assert teachers.run(made)  # what it was needed for has been measured
    kept.unlink()
    try:
        with pytest.raises(ValueError, match="no checkpoint of step 3, which the curve of teacher edm needs"):
            teachers.run(made._replace(config=more))
    finally:
        folder.with_name("away").rename(folder)
        kept.write_bytes(content)


LAB = dict(config="lab_fdm:smoke", seeds=(0,))


@pytest.mark.parametrize("rows, words", [
    ({"a": LAB, "b": dict(config="lab_fdm:smoke,64d")}, "'dim': 64.*compare on the same"),
    ({"a": dict(config="lab_sid:smoke")}, "lab_sid_smoke is trained by sid"),
    ({"a": dict(config="lab_cld:smoke")}, "lab_cld_smoke has a velocity"),
    ({"a": dict(config="lab_edm:smoke")}, "train.milestones, a multiple of train.save_every; got 0 and 3"),
    ({"a": LAB, "b": dict(config="lab_fdm:smoke", baseline="a", changes=dict(train=dict(steps=9)))},
     "teacher b sees 144 images, its baseline a 96; compare at the same budget"),
    ({"a": dict(config="lab_fdm:smoke", changes=dict(metod=dict(extra=1)))}, "no setting metod"),
    ({"a": dict(config="lab_nothing")}, "no config file 'lab_nothing'"),
])  # fmt: skip
def test_rows_that_cannot_be_compared_are_refused_before_training(rows, words, tmp_path):
    run = experiment.Experiment("pair", config(**rows), tmp_path / "pair")
    with pytest.raises(ValueError, match=words) as caught:
        teachers.run(run)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_run_that_other_settings_made_is_refused(made):
    """Another learning rate, in the place of the config's own."""
    run = experiment.prerequisite("lab_fdm:smoke", made.workdir)
    run.config.optimizers.student.learning_rate = 1e-3
    job, mesh = commands.teacher(run, outline=True), meshes.make(made.config.mesh)
    with pytest.raises(ValueError, match="learning_rate"):
        teachers.weights_at(run, job, 3, mesh)


@pytest.mark.parametrize("change, words", [
    ({"study.teachers": {}}, "study.teachers must be a row or more"),
    ({"study.teachers": {"a/b": LAB}}, "without a slash"),
    ({"study.teachers": {"a b": LAB, "a_b": LAB}}, "of rows whose files differ"),
    ({"study.teachers": {"a": dict(seeds=(0,))}}, "needs the setting config"),
    ({"study.teachers": {"a": dict(config="")}}, "a config such as fdm_digits:vp"),
    ({"study.teachers": {"a": dict(config="x", seeds=(1, 1))}}, "different training seeds"),
    ({"study.teachers": {"a": dict(config="x", seeds=(-1,))}}, "a whole number from 0"),
    ({"study.teachers": {"a": dict(config="x", baseline="b")}}, "another row of study.teachers"),
    ({"study.teachers": {"a": dict(config="x", changes=3)}}, "must be sections of keys"),
    ({"study.solvers": {"heun": dict(name="heun")}}, "a list of network calls; got None"),
    ({"study.curve": dict(solver="ipndm 3", nfe=9)}, "of one of study.solvers"),
    ({"study.nfe": (3,)}, "config.study has no setting nfe"),
    ({"teacher": "lab_fdm"}, "the config has no setting teacher"),
])  # fmt: skip
def test_sections_are_checked(change, words):
    found = config()
    for path, value in change.items():
        *above, key = path.split(".")
        section = found[above[0]] if above else found
        section[key] = common.ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=words):
        settings.check_study(found)


def test_there_is_one_command_for_studies(monkeypatch):
    asked = []
    monkeypatch.setattr(teachers, "run", lambda run: asked.append(run.name) or True)
    monkeypatch.setattr(study, "run", lambda run: pytest.fail("a study of samplers"))
    assert command_line.study(["study.py", "--config", "fdm_study_digits:smoke"]) == 0
    assert asked == ["fdm_study_digits_smoke"]


# What is read off the points.


def points(**rows):
    """Points of rows, by row the distances of each seed at 1, 2 and 4 images."""
    return [
        Point(row, seed, images, "heun", 7, {"fd": value}, 1.0, 0.0)
        for row, curves in rows.items()
        for seed, values in curves.items()
        for images, value in zip((1, 2, 4), values)
    ]


def found_in(**rows):
    baselines = {row: "" if row == "base" else "base" for row in rows}
    return curves.Study(points(**rows), baselines, ("fd",), ("heun", 7))


def test_images_to_a_distance_are_interpolated():
    images = np.array([1.0, 2.0, 4.0])
    for level, expected in ((5.0, 1.5), (3.0, 3.0), (2.0, 4.0), (6.0, 1.0), (9.0, 1.0), (1.9, None)):
        assert curves.reached(images, np.array([6.0, 4.0, 2.0]), level) == expected
    assert curves.reached(images, np.array([6.0, 2.0, 5.0]), 4.0) == 1.5  # the first crossing counts


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6), st.floats(0.1, 10))
def test_the_curve_has_the_distance_where_it_is_said_to(values, level):
    images = np.arange(1.0, len(values) + 1)
    there = curves.reached(images, np.array(values), level)
    if there is None:
        assert min(values) > level
    elif there > 1:
        np.testing.assert_allclose(np.interp(there, images, values), level)
    else:
        assert values[0] <= level


def test_pairs_are_by_seed():
    """Seed 0 gains 1, seed 1 gains 3; the mean curves are (6, 5, 3) and (6, 3, 1)."""
    found = found_in(base={0: (5, 4, 2), 1: (7, 6, 4)}, ours={0: (6, 3, 1), 1: (6, 3, 1)})
    one = curves.pair(found, "ours", "base", "fd")
    assert one.differences.tolist() == [-1, -3] and curves.spread(one.differences) == (-2, np.sqrt(2))
    assert one.ratio == 2 / 4 and one.ratios == [3 / 4, (1 + 2 / 3) / 4] and one.converse is None
    assert one.verdict == "better (lower with 2 of 2 seeds)"


def test_losses_are_reported():
    found = found_in(base={0: (5, 3, 1), 1: (5, 3, 1)}, ours={0: (6, 5, 3), 1: (6, 5, 2.5)})
    one = curves.pair(found, "ours", "base", "fd")
    assert one.verdict == "worse (lower with 0 of 2 seeds)" and one.ratio is None
    assert one.converse == (2 + 2 * 0.25 / 2) / 4
    (line,) = curves.summary(found)
    assert "worse" in line and "does not reach the baseline's last distance" in line
    assert "| not reached | not reached, not reached | 0.56 |" in curves.against(found, "fd")[-1]
    mixed = found_in(base={0: (5, 3, 1), 1: (5, 3, 1)}, ours={0: (6, 5, 3), 1: (6, 5, 0.5)})
    verdict = curves.pair(mixed, "ours", "base", "fd").verdict
    assert verdict == "no clear difference (lower with 1 of 2 seeds)"


def test_rows_without_a_common_seed_are_refused():
    found = found_in(base={0: (5, 3, 1)}, ours={1: (6, 5, 3)})
    with pytest.raises(ValueError, match="no training seed in common"):
        curves.pair(found, "ours", "base", "fd")


def test_calls_to_a_distance_are_the_fewest():
    def ends(row, values):
        return [Point(row, 0, 4, "heun", nfe, {"fd": value}, 1.0, 0.0) for nfe, value in values.items()]

    found = curves.Study(
        ends("base", {7: 5.0, 11: 4.0, 35: 3.0}) + ends("ours", {7: 3.5, 11: 2.9, 35: 2.8}),
        {"base": "", "ours": "base"}, ("fd",), ("heun", 7),
    )  # fmt: skip
    assert curves.fewest(found, "ours", "base", "fd", "heun") == (35, 11)
    assert curves.fewest(found, "base", "ours", "fd", "heun") == (35, None)
    # A seed that only the baseline has does not count, and the row says how many it has.
    more = [Point("base", 1, 4, "heun", nfe, {"fd": 0.1}, 1.0, 0.0) for nfe in (7, 11, 35)]
    uneven = found._replace(points=[*found.points, *more])
    assert curves.fewest(uneven, "ours", "base", "fd", "heun") == (35, 11)
    assert [curves.titled(uneven, row) for row in ("base", "ours")] == ["base", "ours (1 seed)"]
    assert curves.titled(found, "ours") == "ours"
