"""Every experiment config: it says what it is, has a smoke size, and names only what exists."""

import ast
from functools import partial
from types import SimpleNamespace

import pytest

from fastdiff_jax import precond, registry, trees
from fastdiff_jax.metrics import panels
from fastdiff_jax.runtime import (
    assemble,
    commands,
    evaluate,
    experiment,
    optimizers,
    settings,
    students,
    study,
    teachers,
)
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.solvers import named, schedules

KNOWN = experiment.known()
STUDIES = [stem for stem in KNOWN if "study" in experiment.load(stem)]
STEMS = [stem for stem in KNOWN if stem not in STUDIES]
SECTIONS = {"seed", "teacher", "init_from", "data", "models", "method", "optimizers", "schedule",
            "objective", "augment", "task", "train", "evaluation", "mesh"}  # fmt: skip


@pytest.fixture(params=[f"{stem}{argument}" for stem in STEMS for argument in ("", ":smoke")])
def config(request):
    return experiment.load(request.param)


def test_configs_are_found():
    assert "sid_digits" in STEMS
    assert "common" not in STEMS


@pytest.mark.parametrize("stem", KNOWN)
def test_config_documents_itself(stem):
    """One docstring for the file, one for get_config, whose argument may be left out."""
    tree = ast.parse((experiment.CONFIGS / f"{stem}.py").read_text())
    (function,) = [node for node in tree.body if getattr(node, "name", None) == "get_config"]
    assert ast.get_docstring(tree)
    assert ast.get_docstring(function)
    assert len(function.args.args) == len(function.args.defaults) == 1


@pytest.mark.parametrize("stem", KNOWN)
def test_an_unknown_argument_is_named(stem):
    with pytest.raises(ValueError, match="nonsense"):
        experiment.load(f"{stem}:nonsense")


@pytest.mark.parametrize("stem", STEMS)
def test_smoke_is_the_same_experiment_in_seconds(stem):
    full, smoke = experiment.load(stem), experiment.load(f"{stem}:smoke")
    assert smoke.train.steps <= 20 < full.train.steps
    assert smoke.train.steps * smoke.train.batch_size <= 1000
    assert smoke.method.name == full.method.name
    how_much = {"max_reference", "in_memory"}  # is read of it
    assert {k: v for k, v in smoke.data.items() if k not in how_much} == {
        k: v for k, v in full.data.items() if k not in how_much
    }
    assert smoke.keys() == full.keys()
    for reference in prerequisites(smoke):
        assert "smoke" in experiment.split(reference)[1], f"{reference} would train at full length"


def test_sections_are_known(config):
    assert set(config.keys()) <= SECTIONS


def test_names_exist(config):
    assert registry.load("data", config.data.name)
    assert registry.load("methods", config.method.name)
    for model in config.models.values():
        for section in parts(model, config):
            assert registry.load("networks", section.network.name)
            assert section.precond.name in precond.PRECONDS | precond.PHASES
    for optimizer in config.optimizers.values():
        assert optimizer.name in optimizers.OPTIMIZERS
    assert config.schedule.name in schedules.SCHEDULES
    if "objective" in config:
        assert config.objective.name in registry.entries("losses", "OBJECTIVES")
    if config.evaluation.panel:
        assert config.evaluation.panel.name in panels.PANELS


def test_samplers_exist(config):
    known = registry.entries("solvers", "SOLVERS") | registry.entries("solvers", "PHASE_SOLVERS")
    requests = [config.method.get("samplers", {}), config.evaluation.teacher_samplers]
    for name, request in [item for group in requests for item in group.items()]:
        assert request.name in known, f"{name}: no solver {request.name}"
        assert request.nfe >= 1


def test_prerequisites_exist_and_end(config):
    """Teachers and initial weights are other configs, and no config builds on itself."""
    depth, references = 0, prerequisites(config)
    while references:
        bases = [experiment.load(reference) for reference in references]
        references, depth = [name for base in bases for name in prerequisites(base)], depth + 1
        assert depth < 5, f"{references} never end"


def test_assembles_without_data(config):
    """What dry_run does: every name and setting is accepted, the measurement too, and nothing is read."""
    settings.check(config)
    job = assemble.assemble(config, outline=True)
    evaluate.check(job, meshes.make(config.mesh))
    assert trees.count(commands.weight_shapes(job)) > 0


@pytest.mark.parametrize("reference", ["edm_digits", "sid_digits", "sfd_digits"])
def test_levels_that_no_training_met_are_refused(reference):
    """The digits teacher's law is ln sigma ~ N(-0.8, 1.2^2): five deviations end at 181."""
    job = assemble.assemble(experiment.load(reference), outline=True)
    role = "student" if "student" in job.parts.models else "teacher"
    ask = partial(named.sampler, "euler", 5, precond=job.parts.models[role].precond)
    assert ask(schedule=dict(name="polynomial", sigma_max=180.0)).sigmas[0] == 180
    with pytest.raises(ValueError, match=r"trained for noise levels from 0.001\d* to 181.272"):
        ask(schedule=dict(name="polynomial", sigma_max=1000.0))


OFFICIAL = {
    "edm_cifar10:cond": 55_735_299,
    "edm_cifar10": 55_733_891,
    "edm_cifar10:cond,ve": 56_400_643,
    "edm_cifar10:ve": 56_397_827,
    "edm_ffhq64": 61_805_571,
    "edm_ffhq64:ve": 62_761_091,
    "edm_afhqv2": 61_805_571,
    "edm_afhqv2:ve": 62_761_091,
    "edm_imagenet64": 295_899_267,
    "sfd_cifar10": 55_733_891,
    "sid_cifar10": 55_733_891,
    "sid_cifar10:cond": 55_735_299,
    "sfd_imagenet64": 295_899_267,
    "sid_imagenet64": 295_899_267,
    "sid_ffhq64": 61_805_571,
    "sid_afhqv2": 61_805_571,
}


@pytest.mark.parametrize("reference", OFFICIAL)
def test_dry_run_prints_the_official_size(reference, tmp_path, capsys, monkeypatch):
    """Published sizes (edm_layouts has all names); no data are at hand, and the step is not lowered."""
    step = SimpleNamespace(lower=lambda *_: SimpleNamespace(cost_analysis=lambda: {"flops": 0.0}))
    monkeypatch.setattr(commands.compile, "train_step", lambda *_: step)
    config = experiment.load(reference)
    settings.check(config)
    commands.dry_run(experiment.Experiment("run", config, tmp_path / "run"))
    assert f"parameters of the product: {OFFICIAL[reference]:,}\n" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reference", ["edm_cifar10:cond,fid", "edm_imagenet64:fid", "sfd_cifar10:fid,3",
                                       "sfd_imagenet64:fid", "sid_cifar10:fid", "sid_ffhq64:fid",
                                       "sid_afhqv2:fid", "edm_ffhq64:fid,ve", "edm_afhqv2:fid",
                                       "sid_imagenet64:fid"])  # fmt: skip
def test_official_configs_measure_as_published(reference, tmp_path, monkeypatch):
    """EDM's protocol with Inception by file; without that file nothing is trained."""
    config = experiment.load(reference)
    fid, measured = config.evaluation.panel.features.fid, config.evaluation
    assert (fid.name, fid.protocol, measured.protocol, measured.num) == ("inception", "tf1", "edm", 50000)
    assert tuple(measured.seeds) == (0, 1, 2)
    assert config.data.get("max_reference", 0) == 0  # published statistics are of the whole training set
    assert measured.panel.measures.pr.most == 200_000
    assert ":fid" not in config.teacher and ",fid" not in config.teacher
    monkeypatch.chdir(tmp_path)
    job = assemble.assemble(config, outline=True)
    with pytest.raises(ValueError, match="there are no Inception weights 'data/pt_inception-2015-12-05-"):
        evaluate.check(job, meshes.make(config.mesh))


@pytest.mark.parametrize("stem", ["edm_cifar10", "sfd_cifar10", "sid_cifar10"])
@pytest.mark.parametrize("words", ["16", "16,smoke"])
def test_the_small_cifar_runs_assemble(stem, words):
    config = experiment.load(f"{stem}:{words}")
    test_assembles_without_data(config)
    assert config.evaluation.panel.features.ft.weights == "cifar10_16"


@pytest.mark.parametrize("reference", ["edm_cifar10:16,ve", "sfd_cifar10:16,cond", "sid_cifar10:16,fid"])
def test_words_that_have_no_meaning_together_are_refused(reference):
    with pytest.raises(ValueError, match="16 stands without (ve|cond|fid); leave out one of them"):
        experiment.load(reference)


@pytest.mark.parametrize("reference", [f"{stem}{end}" for stem in STUDIES for end in ("", ":smoke")])
def test_studies_can_be_measured(reference, tmp_path):
    """Every row's sampler can be made at its cost, and the teacher and the students can be trained."""
    config = experiment.load(reference)
    settings.check_study(config)
    if settings.compares_teachers(config):
        run = experiment.Experiment("study", config, tmp_path / "study")
        teachers.check(run, teachers.of(run))
        assert all(("smoke" in reference) == ("smoke" in one.run.name) for one in teachers.of(run))
        return
    teacher = experiment.load(config.teacher)
    assert ("smoke" in reference) == ("smoke" in config.teacher)
    rows = study.requests(config, assemble.assemble(teacher, outline=True))
    assert all(sampler.nfe == nfe for (_, nfe), sampler in rows.items())
    run = experiment.Experiment("study", config, tmp_path / "study")
    study.check(run, experiment.prerequisite(config.teacher, run.workdir))
    for _, student in students.of(run):
        assert ("smoke" in reference) == ("smoke" in student.name)


def prerequisites(config):
    return [name for name in (config.teacher, config.init_from) if name]


def parts(model, config):
    """The model sections that a role is made of: its own, or its teacher's."""
    if "like" not in model:
        return [model]
    assert config.teacher, "a model is like the teacher's, but there is no teacher"
    above = experiment.load(config.teacher)
    return [section for model in above.models.values() for section in parts(model, above)]
