"""Students in a study: trained once, measured beside the samplers of their teacher, and their cost counted."""

import json

import pytest

from configs import common
from fastdiff_jax.runtime import charts, commands, experiment, settings, students, study
from fastdiff_jax.runtime.assemble import assemble


def config(**rows):
    """A study of lab_edm with students; by default one of SFD."""
    found = common.study("lab_edm:smoke")
    found.study = dict(
        solvers={"euler": dict(name="euler", nfe=(2, 3))},
        students=rows or {"SFD": dict(config="lab_sfd:smoke")},
        nfe=(2,),
        reference=dict(name="heun", nfe=63),
    )
    found.evaluation = common.evaluation(num=64, batch_size=32, seeds=(0,), panel=dict(name="mixture"))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The study of one student, run to its end."""
    run = experiment.Experiment("few", config(), tmp_path_factory.mktemp("runs") / "few")
    assert study.run(run)
    return run


def card(run):
    return json.loads((run.workdir / "card.json").read_text())


def changed(**method):
    return dict(config="lab_sfd:smoke", changes=dict(method=method))


def test_a_student_is_a_row_of_the_same_tables(made):
    assert {(c["solver"], c["nfe"]) for c in card(made)["results"]} == {("euler", 2), ("euler", 3), ("SFD", 2)}
    text = (made.workdir / "report.md").read_text()
    assert "| SFD |" in text and "## What training cost" in text
    assert (made.workdir / "students.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_measured_like_its_own_report_measures_it(made):
    """The same weights, labels and noise: the same numbers."""
    run = experiment.prerequisite("lab_sfd:smoke", made.workdir)
    evaluation = run.config.evaluation
    evaluation.update(num=64, batch_size=32, seeds=(0,))
    commands.measure(run)
    (own,) = [row for row in card(run)["results"] if row["kind"] == "trained"]
    (cell,) = [cell for cell in card(made)["results"] if cell["solver"] == "SFD"]
    assert cell["values"] == pytest.approx({key: value["mean"] for key, value in own["values"].items()})


def test_the_cost_is_counted_from_the_path(made):
    """Six steps of 16: a teacher's gradient is 3; of SFD 12 teacher's calls, and two gradients at 2 NFE."""
    teacher, student = card(made)["costs"]
    assert (teacher["images"], teacher["evaluations"]) == (96, 3 * 96)
    assert (student["images"], student["evaluations"]) == (96, (12 + 2 * 3) * 96)
    assert student["calls"] == [2] and student["seconds"] > 0
    text = (made.workdir / "report.md").read_text()
    assert "| SFD | 2 | lab_sfd_smoke |" in text and "| 96 | 100.0% | 1,728 | 600.0% |" in text


@pytest.mark.parametrize("reference, expected", [
    ("sfd_digits:2", {4: 12 + 6}),  # 3 steps of 4 teacher's calls; the first step of the student is free
    ("sfdv_digits", {4: 12 + 6, 5: 16 + 9, 6: 20 + 12, 7: 24 + 15}),
    ("sfd2_digits", {3: 5 + 3}),  # its teacher's first step is free as well
    ("edm_digits", {None: 3}),
])  # fmt: skip
def test_methods_state_their_cost(reference, expected):
    method = assemble(experiment.load(reference), outline=True).method
    assert {variant: method.cost(variant, False) for variant in expected} == expected
    if None not in expected:
        assert all(method.cost(n, True) == 3 * (n - 2) for n in expected)


def test_the_cost_of_several_stages_is_a_sum_without_the_teacher(tmp_path):
    found = config(second=dict(config="sfd2_digits:smoke"))
    found.teacher = "edm_digits:smoke"
    run = experiment.Experiment("few", found, tmp_path / "few")
    basis = experiment.prerequisite(found.teacher, run.workdir)
    teacher, second = students.costs(students.of(run), basis)
    assert second.runs == ["sfdv_digits_smoke", "sfd2_digits_smoke"] and second.calls == [1]
    method = assemble(experiment.load("sfdv_digits:smoke"), outline=True).method
    stages = sum(method.cost(method.variant(step, 0), False) for step in range(6)) + 6 * 8
    assert (teacher.images, second.images, second.evaluations) == (96, 2 * 96, 16 * stages)
    assert students.shares(second, teacher) == (2.0, 16 * stages / (3 * 96))


def test_a_finished_student_is_neither_trained_nor_measured_again(made, monkeypatch):
    monkeypatch.setattr(commands, "fit", lambda run: pytest.fail(f"{run.name} is trained again"))
    monkeypatch.setattr(study, "one", lambda row, *rest: pytest.fail(f"{row} is measured again"))
    before = card(made)
    assert study.run(made)
    assert card(made) == before


def test_a_changed_setting_trains_in_a_place_of_its_own(made, monkeypatch):
    fitted, real = [], commands.fit
    monkeypatch.setattr(commands, "fit", lambda run: fitted.append(run.name) or real(run))
    rows = {"SFD": dict(config="lab_sfd:smoke"), "L2": changed(loss="l2")}
    assert study.run(made._replace(config=config(**rows)))
    assert fitted == ["lab_sfd_smoke_method.loss_l2"]
    cells = {cell["solver"]: cell["distance"] for cell in card(made)["results"] if cell["nfe"] == 2}
    assert cells["SFD"] != cells["L2"]
    assert study.run(made)  # and back: nothing is mixed up, nothing is trained
    assert len(fitted) == 1
    again = {cell["solver"]: cell["distance"] for cell in card(made)["results"] if cell["nfe"] == 2}
    assert again == {name: value for name, value in cells.items() if name != "L2"}


def test_a_student_that_other_settings_made_is_refused_before_anything_is_trained(made, monkeypatch):
    """Its config file has changed since."""
    real = experiment.load

    def edited(reference):
        found = real(reference)
        if reference == "lab_sfd:smoke":
            found.method.extra = 1
        return found

    monkeypatch.setattr(experiment, "load", edited)
    monkeypatch.setattr(commands, "fit", lambda run: pytest.fail(f"{run.name} is trained"))
    rows = {"L1": changed(loss="l1"), "SFD": dict(config="lab_sfd:smoke")}
    with pytest.raises(ValueError, match=r"trained with another config, .*method.extra \(3 there, 1 here\)"):
        study.run(made._replace(config=config(**rows)))


@pytest.fixture
def outlined(monkeypatch):
    """The jobs whose products' shapes are asked for from now on."""
    found, real = [], commands.weight_shapes
    monkeypatch.setattr(
        commands, "weight_shapes", lambda job, known=None: found.append(job) or real(job, known)
    )
    return found


def test_a_teacher_is_outlined_once_and_checked_in_every_folder(tmp_path, outlined):
    """Students share what is known of it; one in another folder has its teacher there."""
    known, settings = commands.Outlines.none(), experiment.load("sfd_digits:smoke")
    for name in ("one", "two"):
        commands.check(experiment.Experiment(name, settings, tmp_path / "a" / name), known)
    assert len(outlined) == 1
    assert {path.name for path in known.checked} == {"one", "two", "edm_digits_smoke"}
    faulty = settings.copy_and_resolve_references()
    faulty.mesh.data = 3
    with pytest.raises(ValueError, match="device"):
        commands.check(experiment.Experiment("three", faulty, tmp_path / "a" / "three"), known)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "edm_digits_smoke").write_text("a file")
    with pytest.raises(ValueError, match="edm_digits_smoke"):
        commands.check(experiment.Experiment("one", settings, tmp_path / "b" / "one"), known)
    assert len(outlined) == 1


def test_a_teacher_without_a_folder_is_refused_for_every_student(tmp_path):
    """What was refused once does not count as checked."""
    known, settings = commands.Outlines.none(), experiment.load("lab_sfd:smoke")
    (tmp_path / "lab_edm_smoke").write_text("a file")
    for name in ("one", "two"):
        with pytest.raises(ValueError, match="lab_edm_smoke"):
            commands.check(experiment.Experiment(name, settings, tmp_path / name), known)


def test_what_bases_build_on_is_outlined_once(tmp_path, outlined):
    settings = experiment.load("lab_sfd:smoke")
    settings.init_from = "lab_sfd:smoke"  # which itself starts as lab_edm:smoke
    known = commands.Outlines.none()
    commands.check(experiment.Experiment("one", settings, tmp_path / "one"), known)
    assert list(known.shapes) == ["lab_edm:smoke", "lab_sfd:smoke"] and len(outlined) == 2


def test_a_study_checks_and_outlines_its_teacher_once(tmp_path, monkeypatch, outlined):
    """Its own check of it and those of its students are one."""
    checked = []
    monkeypatch.setattr(experiment, "check_writable", lambda path: checked.append(path.name))
    rows = {name: changed(loss=name) for name in ("l1", "l2")}
    run = experiment.Experiment("few", config(**rows), tmp_path / "few")
    study.check(run, experiment.prerequisite(run.config.teacher, run.workdir))
    assert len(outlined) == 1 and checked.count("lab_edm_smoke") == 1
    assert len(checked) == 3 and not list(tmp_path.iterdir())


def test_rows_of_students_are_in_natural_order(made):
    rows = {name: changed(loss="l1") for name in ("8 steps", "128 steps", "64 steps")}
    found = students.of(made._replace(config=config(**rows)))
    assert [student.row for student in found] == ["8 steps", "64 steps", "128 steps"]


def test_an_interrupted_student_stops_the_study(made, monkeypatch):
    monkeypatch.setattr(commands, "fit", lambda run: False)
    rows = {"local": changed(start="local")}
    assert study.run(made._replace(config=config(**rows))) is False


@pytest.mark.parametrize("row, words", [
    (dict(config="lab_sfd:64d,smoke"), "student row is trained for the data .*'dim': 64.*compare on the same"),
    (dict(config="lab_edm:smoke"), "student row builds on nothing, not on the study's teacher lab_edm_smoke"),
    (changed(stmaps=3), "method sfd has no setting stmaps"),
    (changed(stamps="many"), "cannot take the changes .* another type"),
    (changed(stamps=dict(a=1)), "cannot take the changes .* another type"),
    (dict(config="lab_sfd:smoke", changes=dict(metod=dict(extra=1))), "the config has no setting metod"),
    (dict(config=("lab_sfd:smoke", "lab_sfd:smoke")), "two samplers of 2 network calls"),
    (dict(config="lab_nothing"), "no config file 'lab_nothing'"),
])  # fmt: skip
def test_students_that_cannot_be_compared_are_refused_before_training(row, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        study.run(experiment.Experiment("few", config(row=row), tmp_path / "few"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change, words", [
    (dict(students={"euler": dict(config="lab_sfd")}), "named otherwise than the solvers"),
    (dict(students={"SFD": dict(changes={})}), "needs the setting config"),
    (dict(students={"SFD": dict(config="")}), "must be a config such as sfd_digits:2"),
    (dict(students={"SFD": dict(config="lab_sfd", change={})}), "no setting change"),
    (dict(students={"SFD": dict(config="lab_sfd", changes=3)}), "must be sections of keys"),
    (dict(students={"SFD": "lab_sfd"}), "must be a section of keys"),
    (dict(students={}, solvers={}), "at least one sampler"),
])  # fmt: skip
def test_sections_of_students_are_checked(change, words):
    found = config()
    for key, value in change.items():
        found.study[key] = common.ConfigDict(value)
    with pytest.raises(ValueError, match=words):
        settings.check_study(found)


def test_a_study_may_have_students_only(made):
    alone = config()
    alone.study.solvers = common.ConfigDict()
    settings.check_study(alone)
    assert study.run(made._replace(config=alone, workdir=made.workdir.with_name("alone")))
    text = (made.workdir.with_name("alone") / "report.md").read_text()
    assert "| SFD | 2 |" in text and "| none |" in text


def cell(row, nfe, value):
    return study.Cell(row, nfe, {"fd": value}, value, 1.0, 0.0)


def test_gains_are_multiples_of_the_best_training_free_sampler():
    cells = [cell("a", 2, 8.0), cell("b", 2, 4.0), cell("b", 35, 0.5), cell("S", 2, 1.0), cell("S", 3, 0.25)]
    lines = students.against(cells, ["S"], "fd")
    assert "x b at 35 NFE" in lines[0]
    assert lines[2:] == ["| S | 2 | 1.00 | b 4.00 | 0.25 | 2.00 |", "| S | 3 | 0.250 | none |  | 0.50 |"]


def test_pictures_take_students_whose_cost_is_not_stated():
    cells = [cell("a", 2, 8.0), cell("S", 2, 1.0), cell("T", 2, 2.0)]
    known = students.Cost("S", ["s"], 1.0, 10, 30, [2])
    costs = [students.Cost("teacher", ["t"], 9.0, 100, 300), known, known._replace(row="T", evaluations=None)]
    assert charts.students("few", cells, costs, {"fd": 0.1}).startswith(b"\x89PNG")
    assert charts.frontier("few", cells, {"fd": 0.1}, ["S", "T"]).startswith(b"\x89PNG")
    many = [cell(f"S{i}", 2, 1.0 + i) for i in range(4)] + [cell("S0", 3, 0.5)]
    assert list(charts._star_colors(many, ["S1", "S0", "S2", "S3"])) == ["S0"]
    assert list(charts._star_colors(many, ["S1", "S0", "S2"])) == ["S1", "S0", "S2"]
    assert [line.count("not stated") for line in students.table(costs)] == [0, 0, 0, 0, 1]


def test_levels_of_a_row_are_searched_once(made, monkeypatch):
    found = config()
    searching = dict(name="gits", num=32, fine=12)
    found.study.solvers = {"gits": dict(name="ipndm_4", schedule=searching, nfe=(2, 3))}
    run, searches, real = made._replace(config=found), [], study.levels.search.levels
    monkeypatch.setattr(study.levels.search, "levels", lambda *given: searches.append(1) or real(*given))
    assert study.run(run) and study.run(run) and len(searches) == 1
    kept = json.loads((made.workdir / "levels" / "gits.json").read_text())["levels"]
    assert {nfe: len(sigmas) for nfe, sigmas in kept.items()} == {"2": 3, "3": 4}
    assert {cell["nfe"] for cell in card(run)["results"] if cell["solver"] == "gits"} == {2, 3}
    found.study.solvers.gits.schedule.fine = 3
    with pytest.raises(ValueError, match="a path through 2 fine steps takes 1 to 2; got 3"):
        study.run(run)
    found.study.solvers.gits.schedule = common.ConfigDict(searching | {"finer": 3})
    with pytest.raises(ValueError, match="schedule gits has no setting finer"):
        study.run(run)
