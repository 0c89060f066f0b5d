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
    _require("study.solvers", study.solvers, len(study.solvers) > 0, "at least one sampler")
    for count in study.nfe:
        _natural("study.nfe", count, 1)
    _require("teacher", config.teacher, bool(config.teacher), "a config such as edm_digits")
    _check_evaluation(config)


def _check_evaluation(config: ConfigDict) -> None:
    evaluation = registry.options(Evaluation, config.evaluation, "config.evaluation")
    for name in ("num", "batch_size"):
        _natural(f"evaluation.{name}", getattr(evaluation, name), 1)
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
