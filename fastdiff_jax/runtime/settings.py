"""What every config says, whatever its method: sections, keys and ranges, checked first of all."""

from typing import NamedTuple

from ml_collections import ConfigDict

from fastdiff_jax import registry

MOST = 2**31 - 1  # seeds and counts are int32 on devices


class Sections(NamedTuple):
    """A config's own keys."""

    data: ConfigDict
    models: ConfigDict
    method: ConfigDict
    optimizers: ConfigDict
    train: ConfigDict
    evaluation: ConfigDict
    mesh: ConfigDict
    seed: int
    teacher: str = ""  # config reference, as init_from
    init_from: str = ""
    schedule: ConfigDict | None = None
    objective: ConfigDict | None = None


class StudySections(NamedTuple):
    """A study's own keys."""

    study: ConfigDict
    teacher: str  # config reference
    evaluation: ConfigDict
    mesh: ConfigDict


class Study(NamedTuple):
    """Which samplers a study compares."""

    solvers: ConfigDict  # row name -> a sampler's request; its `nfe` are counts of its own
    nfe: tuple[int, ...]  # counts of the others
    reference: ConfigDict  # request of the samples that distances are taken from
    students: ConfigDict | None = None  # row name -> settings of a `Student`


class Student(NamedTuple):
    """A row of a study that is trained; with several configs each is measured at its own calls."""

    config: str | tuple[str, ...]  # config reference, as teacher
    changes: ConfigDict | None = None  # sections of keys that differ: dict(method=dict(loss="l2"))

    def references(self) -> tuple[str, ...]:
        """The config references."""
        return (self.config,) if isinstance(self.config, str) else tuple(self.config)


class Train(NamedTuple):
    """How long to train, and what to write meanwhile; steps and images are positive whole numbers."""

    batch_size: int
    steps: int
    log_every: int
    save_every: int
    keep: int
    patience: int
    writers: tuple[str, ...]
    milestones: int = 0  # checkpoints at multiples of this many steps stay for good; 0 for none


class Evaluation(NamedTuple):
    """How a finished run is measured."""

    kind: str
    panel: ConfigDict
    num: int
    batch_size: int
    seeds: tuple[int, ...]
    teacher_samplers: ConfigDict


def check(config: ConfigDict) -> None:
    """Raises ValueError naming the key for one that is unknown, missing, of another type or out of range."""
    if "study" in config:
        raise ValueError("this config is a study; run it with launch/study.py.")
    registry.options(Sections, config, "the config")
    for name in ("data", "models", "method", "optimizers", "train", "evaluation", "mesh"):
        _require(name, config[name], isinstance(config[name], ConfigDict), "a section of keys")
    for section in ("data", "method"):
        _require(f"{section}.name", config[section].get("name"), "name" in config[section], "given")
    _natural("seed", config.seed, 0)
    for name in ("teacher", "init_from"):
        value = config.get(name, "")
        _require(
            name,
            value,
            value is None or isinstance(value, str),
            "a config such as edm_digits:smoke",
        )
    train = registry.options(Train, config.train, "config.train")
    for name in ("batch_size", "steps", "log_every", "save_every", "keep", "patience"):
        _natural(f"train.{name}", getattr(train, name), 1)
    _natural("train.milestones", train.milestones, 0)
    _check_evaluation(config)


def check_study(config: ConfigDict) -> None:
    """`check` for a study."""
    if "study" not in config:
        raise ValueError("this config is no study; run it with launch/main.py.")
    registry.options(StudySections, config, "the config")
    study = registry.options(Study, config.study, "config.study")
    students = study.students or {}
    found = len(study.solvers) + len(students) > 0
    _require("study.solvers", study.solvers, found, "at least one sampler, if there are no students")
    for count in study.nfe:
        _natural("study.nfe", count, 1)
    files = {}
    for row in (*study.solvers, *students):
        _require("study", row, "/" not in row, "of rows without a slash in their names, which name files")
        other = files.setdefault(row.replace(" ", "_"), row)
        _require("study", row, other == row, f"of rows whose files differ; {other!r} has this one's")
    for row, given in students.items():
        key = f"study.students[{row!r}]"
        _require(key, given, isinstance(given, ConfigDict), "a section of keys")
        _require(key, row, row not in study.solvers, "named otherwise than the solvers")
        student = registry.options(Student, given, f"config.{key}")
        named = isinstance(student.config, str | tuple | list) and student.references()
        _require(
            f"{key}.config", student.config, named and all(isinstance(one, str) and one for one in named),
            "a config such as sfd_digits:2, or several",
        )  # fmt: skip
        whole = student.changes is None or isinstance(student.changes, ConfigDict)
        _require(f"{key}.changes", student.changes, whole, "sections of keys")
    _require("teacher", config.teacher, bool(config.teacher), "a config such as edm_digits")
    _check_evaluation(config)


def _check_evaluation(config: ConfigDict) -> None:
    evaluation = registry.options(Evaluation, config.evaluation, "config.evaluation")
    _natural("evaluation.num", evaluation.num, 2)  # one image has no covariance
    _natural("evaluation.batch_size", evaluation.batch_size, 1)
    _require(
        "evaluation.seeds",
        evaluation.seeds,
        len(evaluation.seeds) > 0,
        "a list of at least one seed",
    )
    for seed in evaluation.seeds:
        _natural("evaluation.seeds", seed, 0)


def _natural(key: str, value, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    within = whole and least <= value <= MOST
    _require(key, value, within, f"a whole number from {least} to {MOST}")


def _require(key: str, value, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"config.{key} must be {what}; got {value!r}.")
