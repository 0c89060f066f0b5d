"""What every config says, whatever its method: sections, keys and ranges, checked first of all."""

from typing import NamedTuple

from ml_collections import ConfigDict

from fastdiff_jax import registry
from fastdiff_jax.data import order

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
    teacher: str = ""  # config reference or folder of finished weights, as init_from
    init_from: str = ""
    schedule: ConfigDict | None = None
    objective: ConfigDict | None = None
    augment: ConfigDict | None = None  # of training images, see `data.augment`
    task: ConfigDict | None = None  # conditions besides the label: a module of tasks/ and its options


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


class TeachersSections(NamedTuple):
    """The keys of a study that compares teachers."""

    study: ConfigDict
    evaluation: ConfigDict
    mesh: ConfigDict


class TeachersStudy(NamedTuple):
    """Which teachers a study compares, and by which samplers."""

    teachers: ConfigDict  # row name -> settings of a `Teacher`
    solvers: ConfigDict  # row name -> a sampler's request, whose `nfe` are counts
    curve: ConfigDict  # dict(solver, nfe): the sampler that measures parts of the runs


class Teacher(NamedTuple):
    """A row of such a study: one experiment with several training seeds."""

    config: str  # config reference
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""  # row that it is compared with
    changes: ConfigDict | None = None  # as a `Student`'s


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
    order: str = "epochs"  # of the images, see `data.order`
    workers: int = 0  # processes that read and decode images; 0 for threads
    posthoc: ConfigDict | None = None  # `posthoc.Options`: averages whose width is chosen afterwards


class Evaluation(NamedTuple):
    """How a finished run is measured."""

    kind: str
    panel: ConfigDict
    num: int
    batch_size: int
    seeds: tuple[int, ...]
    teacher_samplers: ConfigDict
    sigma_rel: tuple[float, ...] = ()  # widths of post-hoc averages that are measured as well
    protocol: str = ""  # an entry of `protocols.SAMPLINGS`, "seeds" if empty
    # of the data: what a feature net is tested on, and conditions of a task are made of; empty: the reference's
    # held-out images
    split: str = ""


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
            "a config such as edm_digits:smoke, or a folder of finished weights",
        )
    train = registry.options(Train, config.train, "config.train")
    for name in ("batch_size", "steps", "log_every", "save_every", "keep", "patience"):
        _natural(f"train.{name}", getattr(train, name), 1)
    _natural("train.milestones", train.milestones, 0)
    _natural("train.workers", train.workers, 0)
    _require("train.order", train.order, train.order in order.ORDERS, f"one of {', '.join(order.ORDERS)}")
    _check_evaluation(config)


def check_study(config: ConfigDict) -> None:
    """`check` for a study."""
    if "study" not in config:
        raise ValueError("this config is no study; run it with launch/main.py.")
    if compares_teachers(config):
        _check_teachers(config)
        return
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
    drawn = config.evaluation.get("protocol", "")
    _require("evaluation.protocol", drawn, drawn in ("", "seeds"), "seeds: studies draw by seed")
    _check_evaluation(config)


def compares_teachers(config: ConfigDict) -> bool:
    """Whether a study compares teachers, not the samplers of one."""
    return isinstance(config.study, ConfigDict) and "teachers" in config.study


def _check_teachers(config: ConfigDict) -> None:
    registry.options(TeachersSections, config, "the config")
    study = registry.options(TeachersStudy, config.study, "config.study")
    for key in ("teachers", "solvers"):
        section = getattr(study, key)
        _require(f"study.{key}", section, isinstance(section, ConfigDict) and len(section) > 0, "a row or more")
    files = {}
    for row in (*study.teachers, *study.solvers):
        _require("study", row, "/" not in row, "of rows without a slash in their names, which name files")
        other = files.setdefault(row.replace(" ", "_"), row)
        _require("study", row, other == row, f"of rows whose files differ; {other!r} has this one's")
    for row, given in study.teachers.items():
        key = f"study.teachers[{row!r}]"
        _require(key, given, isinstance(given, ConfigDict), "a section of keys")
        one = registry.options(Teacher, given, f"config.{key}")
        named = isinstance(one.config, str) and one.config
        _require(f"{key}.config", one.config, named, "a config such as fdm_digits:vp")
        different = isinstance(one.seeds, tuple | list) and len(set(one.seeds)) == len(one.seeds) > 0
        _require(f"{key}.seeds", one.seeds, different, "a list of different training seeds")
        for seed in one.seeds:
            _natural(f"{key}.seeds", seed, 0)
        known = one.baseline == "" or (one.baseline in study.teachers and one.baseline != row)
        _require(f"{key}.baseline", one.baseline, known, "another row of study.teachers, or empty")
        last = not one.baseline or not study.teachers[one.baseline].get("baseline")
        _require(f"{key}.baseline", one.baseline, last, "a row that has no baseline itself")
        whole = one.changes is None or isinstance(one.changes, ConfigDict)
        _require(f"{key}.changes", one.changes, whole, "sections of keys")
    for row, request in study.solvers.items():
        counts = request.get("nfe") if isinstance(request, ConfigDict) else None
        several = isinstance(counts, tuple | list) and len(counts) > 0
        _require(f"study.solvers[{row!r}].nfe", counts, several, "a list of network calls")
        for count in counts:
            _natural(f"study.solvers[{row!r}].nfe", count, 1)
    curve = study.curve
    there = isinstance(curve, ConfigDict) and set(curve) == {"solver", "nfe"} and curve.solver in study.solvers
    there = there and curve.nfe in study.solvers[curve.solver].nfe
    _require("study.curve", curve, there, "dict(solver=..., nfe=...) of one of study.solvers")
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
    for width in evaluation.sigma_rel:
        _require("evaluation.sigma_rel", width, isinstance(width, float), "a list of widths such as 0.08")
    for seed in evaluation.seeds:
        _natural("evaluation.seeds", seed, 0)


def _natural(key: str, value, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    within = whole and least <= value <= MOST
    _require(key, value, within, f"a whole number from {least} to {MOST}")


def _require(key: str, value, holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"config.{key} must be {what}; got {value!r}.")
