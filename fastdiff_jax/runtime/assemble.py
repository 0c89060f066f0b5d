"""From a config to the parts of a run: data, models, method, and the weights that it starts from."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fastdiff_jax import averages, precond, registry
from fastdiff_jax.data import augment
from fastdiff_jax.losses import matching
from fastdiff_jax.networks import lora
from fastdiff_jax.runtime import experiment, optimizers, perceptual, posthoc
from fastdiff_jax.solvers import schedules
from fastdiff_jax.types import (
    Adapter,
    Augment,
    Data,
    Method,
    Model,
    Parts,
    PhasePrecond,
    Precond,
    Task,
)


class Job(NamedTuple):
    """A method with all it needs but weights."""

    config: ConfigDict
    data: Data
    classes: int  # 0 if the model is unconditional, whatever labels the data have
    parts: Parts
    method: Method
    prerequisites: dict[str, str]  # frozen name -> config reference whose finished weights it takes


def assemble(config: ConfigDict, outline: bool = False) -> Job:
    """Loads the named modules and builds the method; touches neither devices nor files, but for the data.

    Args:
      outline: know only the data's shape and classes (taken as equally frequent), and read nothing.
    Raises: ValueError for unknown names and settings.
    """
    check_processes(config)
    check_tasks(config)
    data = data_set(config, outline)
    classes = data.classes if config.data.get("conditional", True) else 0
    labels = shares(data) if classes else None
    models = {  # a net with weights of its own knows the data's classes, whatever is trained
        role: model(request, config, data.shape, data.classes if "weights" in request else classes)
        for role, request in perceptual.roles(config).items()
    }
    train, method = config.train, config.method
    phases = [role for role, one in models.items() if isinstance(one.precond, PhasePrecond)]
    if phases and method.name != "teacher":
        raise ValueError(
            f"model {phases[0]} is of CLD, which is no denoiser, so method {method.name} cannot use it; name "
            "another teacher."
        )
    images = float(train.steps * train.batch_size)
    parts = Parts(
        models=models,
        optimizers={
            role: optimizers.build(
                request, train.batch_size, images, method.get("start_images", 0.0)
            )
            for role, request in config.optimizers.items()
        },
        shape=data.shape,
        labels=labels,
        schedule=schedules.build(config.schedule) if "schedule" in config else None,
        objective=matching.build(config.objective) if "objective" in config else None,
        augment=augmentation(config),
        task=task(config, models, data.shape),
        adapter=adapter(config),
    )
    build = registry.load("methods", method.name)
    trained, kept = build(method.to_dict(), parts), posthoc.options(config)
    prerequisites = {"teacher": config.get("teacher"), "initial": config.get("init_from")}
    return Job(
        config,
        data,
        classes,
        parts,
        averages.tracked(trained, kept.gammas) if kept else trained,
        {k: v for k, v in prerequisites.items() if v},
    )


def task(config: ConfigDict, models: Mapping[str, Model], shape: tuple[int, ...]) -> Task | None:
    """The conditions that `config.task` makes of images; None if it is not given.

    Raises: ValueError for an unknown one, its unknown settings, and a method that trains without.
    """
    if not config.get("task"):
        return None
    if not registry.optional("methods", config.method.name, "TASKS"):
        raise ValueError(
            f"method {config.method.name} knows no conditions but labels, so it cannot take config.task "
            f"{config.task.get('name')!r}; delete that, or use another method."
        )
    options = config.task.to_dict()
    return registry.load("tasks", options.pop("name", None))(options, models, shape)


def adapter(config: ConfigDict) -> Adapter | None:
    """What of the student is trained, as `models.student.lora` says; None if it does not: all of it.

    Raises: ValueError for impossible rules, another role, no teacher, and a method that trains whole networks.
    """
    asked = {role: request.lora for role, request in config.models.items() if request.get("lora")}
    if not asked:
        return None
    name, others = config.method.name, sorted(set(asked) - {"student"})
    if others:
        raise ValueError(f"lora is for models.student; models.{others[0]} has it: delete it there.")
    if not registry.optional("methods", name, "ADAPTERS"):
        raise ValueError(
            f"method {name} trains whole networks, so it cannot take models.student.lora; delete that, or use "
            "another method."
        )
    if not config.get("teacher"):
        raise ValueError("models.student.lora changes a teacher's weights; set config.teacher.")
    return lora.build(asked["student"].to_dict())


def check_tasks(config: ConfigDict) -> None:
    """Raises ValueError if a run builds on weights that were trained for another task, or for none.

    What is trained apart, an adapter, may start from weights of none.
    """
    for key in ("teacher", "init_from"):
        if key == "init_from" and config.method.get("trains"):
            continue
        if reference := config.get(key):
            found = [one.get("task") for one in (experiment.load(reference), config)]
            theirs, own = (one.to_dict() if one else "none" for one in found)
            if own != theirs:
                raise ValueError(
                    f"config.{key} {reference!r} was trained for the task {theirs}, this run has {own}; give "
                    "both the same config.task."
                )


def augmentation(config: ConfigDict) -> Augment | None:
    """What `config.augment` does to training images, a teacher's or a fake score's; None if it is not given.

    Raises: ValueError for unknown settings, a method without, and a network that is not told of it.
    """
    if not config.get("augment"):
        return None
    role = registry.optional("methods", config.method.name, "AUGMENTED")
    if role is None:
        raise ValueError(
            f"config.augment changes training images, and method {config.method.name} does without; delete it "
            "here, and set it in the teacher's config."
        )
    pipe = augment.pipe(config.augment.to_dict())
    told = resolved(config.models[role].to_dict(), config)["network"].get("augment_dim", 0)
    if told != pipe.labels:
        raise ValueError(
            f"config.augment tells the network {pipe.labels} numbers an image, and the {role}'s network takes "
            f"{told}; set its augment_dim={pipe.labels}."
        )
    return pipe


def data_set(config: ConfigDict, outline: bool = False) -> Data:
    """The data set that `config.data` names, or only its outline."""
    options = config.data.to_dict()
    options.pop("conditional", None)
    return registry.load("data", options.pop("name"), "outline" if outline else "build")(options)


def shares(data: Data) -> np.ndarray:
    """(K,) class shares of the reference set; equal ones if there is only an outline."""
    if not len(data.reference):
        return np.full(data.classes, 1 / data.classes)
    counts = np.bincount(data.reference["label"], minlength=data.classes)
    return counts / counts.sum()


def model(request, config: ConfigDict, shape: tuple[int, ...], classes: int) -> Model:
    """The model of one role: a network and its preconditioner, or `like` the teacher's with changes.

    Its range of noise levels is the preconditioner's, cut to what its training met.

    Raises: ValueError if it is like a teacher that the config does not name.
    """
    request = resolved(request.to_dict(), config)
    options = request["network"]
    network = registry.load("networks", options.pop("name"))(options, shape, classes)
    scaling, (low, high) = precond.build(request["precond"]), trained_range(config)
    if isinstance(scaling, Precond):
        ends = dict(sigma_min=max(low, scaling.sigma_min), sigma_max=min(high, scaling.sigma_max))
        scaling = scaling._replace(**ends)
    return Model(network, scaling)


def trained_range(config: ConfigDict) -> tuple[float, float]:
    """The noise levels that the objective of a config meets, or of the teacher that it builds on."""
    while "objective" not in config and config.get("teacher"):
        config = experiment.load(config.teacher)
    return matching.build(config.objective).ends if "objective" in config else (0.0, float("inf"))


def check_processes(config: ConfigDict) -> None:
    """Raises ValueError if a model takes weights of another process: they are tied to their preconditioner.

    Nothing would fail; a network that sees its input at another scale only answers worse.
    """
    for role, request in config.models.items():
        if role == "discriminator" or not {"like", "precond"} & set(request):
            continue  # it reads features and has weights of its own
        for key in ("teacher", "init_from"):
            ours = role != "teacher" if key == "init_from" else role == "teacher" or "like" in request
            reference = config.get(key) if ours else None
            above = reference and experiment.load(reference)
            trained = {"student", "generator"} & set(above.models) if above else ()
            if not trained:
                continue  # no denoiser, which is refused elsewhere
            own = resolved(request.to_dict(), config)["precond"]
            theirs = resolved(above.models[min(trained)].to_dict(), above)["precond"]
            if own != theirs:
                raise ValueError(
                    f"config.{key} {reference!r} was trained with precond {theirs}, model {role} has {own}; "
                    "weights are tied to their process: give both the same."
                )


def resolved(request: dict, config: ConfigDict) -> dict:
    """A model's own sections: what is `like` the teacher's has those, through all generations, with changes."""
    if "like" not in request:
        return request
    if not config.get("teacher"):
        raise ValueError(
            "a model is like the teacher's, but the config names no teacher; set config.teacher."
        )
    above = experiment.load(config.teacher)
    if "student" not in above.models:
        raise ValueError(
            f"config.teacher {config.teacher!r} trains {', '.join(above.models)}, no denoiser; "
            "name a teacher's config."
        )
    if above.models.student.get("lora"):
        raise ValueError(
            f"config.teacher {config.teacher!r} trains a change of {above.teacher!r}, no network of its own; "
            "name the latter."
        )
    original = resolved(above.models.student.to_dict(), above)
    return {key: {**original[key], **request.get(key, {})} for key in ("network", "precond")}
