"""SFD and SFD-v: a few-step student, fine-tuned at the few noise levels that its sampler visits.

Source: Zhou et al., Simple and Fast Distillation of Diffusion Models, NeurIPS 2024 (arXiv:2409.19681).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import guidance, registry, trees
from fastdiff_jax.losses import perceptual, trajectory
from fastdiff_jax.precond import denoiser
from fastdiff_jax.rng import normal_per_image, stream
from fastdiff_jax.solvers import driver, nested, sampling, schedules
from fastdiff_jax.types import (
    Array,
    Cond,
    Denoiser,
    Method,
    Params,
    Parts,
    Recording,
    Sampler,
)

LEVELS = {"name": "polynomial", "sigma_min": 0.006, "sigma_max": 80.0, "rho": 7.0, "zero": False}
TEACHER = {"name": "dpmpp_3m", "threshold": True}


class Options(NamedTuple):
    """Settings of SFD; defaults are the reference's for CIFAR-10 (arXiv:2409.19681).

    Levels are counted as there: n of them, the last one included, make n - 1 steps.
    """

    stamps: int | Sequence[int] = 4  # levels of the student; of several, one is drawn an iteration
    extra: int = 3  # levels that the teacher visits between two of the student's
    schedule: Mapping = LEVELS
    teacher: Mapping = TEACHER  # a solver and its options; also afs, threshold, stamps (told to it)
    afs: bool = True  # the student's first step is analytical: it costs no call and trains nothing
    conditioned: bool = False  # the student is told its number of levels (SFD-v)
    start: str = "global"  # a step starts where the last one led; "local": at the teacher's state
    loss: str = "l1"  # or "l2"
    lpips: Mapping | None = None  # `perceptual.Request`, a second term of the last step; None: the first alone
    nfe: Sequence[int] = ()  # calls of the samplers, unguided; () for one sampler a number of levels
    guidance: Mapping = {}  # of the samplers, `sampling.Guidance`; of several scales, each has its own


class State(NamedTuple):
    """A student in training; it has no average."""

    step: Array  # () int32, iterations done
    params: Params
    opt: optax.OptState


START = ("global", "local")


def build(config, parts: Parts) -> Method:
    """SFD as a method: data-free, one optimizer update a student's level, on the student's own trajectory.

        x_0 = sigma_0 z,    x_{k+1} = x_k + (sigma_{k+1} - sigma_k) eps_theta(x_k; sigma_k), held fixed
        L_k = mean over the batch of sum |x_{k+1} - T_{k+1}|,    T the teacher's states from the same x_0

    With `lpips`, of images of H W C values, the last step has

        L_{n-2} = ... + H W C times the mean over the batch of LPIPS(x_{n-1}, T_{n-1})

    as the reference adds the batch's mean LPIPS to every element of the first term before it sums them.

    theta moves after every step k, and x_{k+1} is what the step made before it moved. Dropout is on where the
    network has any. There is no EMA. Batches with "states" (`data.pairs`) bring z, T and the labels along, and
    the teacher is not called. Teacher and student are the conditional models; guidance comes in when sampling,
    at two calls a step.

    Args:
      config: see `Options`.
      parts: models "student", "teacher" and, with `lpips`, "lpips"; optimizers["student"], shape, labels (class
        shares that labels are drawn from). Learning rates go by iterations, however many updates these make.
    Frozen: teacher; with `lpips` also lpips, {"trunk": weights of its network, "heads": {tap: (C,)}}; at `init`
      also "initial", weights to start from instead of the teacher's. They may lack the leaves of the student's
      step condition, which are then drawn.
    Metrics: loss_k, k = 1..n-1: L_{k-1}, the distance at the student's level k (of a first analytical step as
      well); lpips, the mean at the last level, where it is asked for. Variants: n.
    Raises: ValueError for unknown or impossible settings, levels that do not nest or lie outside a model's
      range, and in `init` for weights that do not fit.
    """
    config, counts, teacher, paths = _settled(config, parts)
    guides = _guides(config.guidance, parts)
    perceived = perceptual.bound(config.lpips, parts.models, parts.shape, "method sfd")
    student, tx = parts.models["student"], parts.optimizers["student"]
    tx = optax.with_extra_args_support(tx)

    def told(n):
        return n if config.conditioned else None

    def init(key, frozen):
        start = frozen["initial"] if "initial" in frozen else frozen["teacher"]
        x, labels = jnp.zeros((1, *parts.shape)), None
        if parts.labels is not None:
            labels = jnp.zeros((1, len(parts.labels)))
        fresh = student.network.init(key, x, condition(labels, 1, told(counts[0])))
        plain = jax.eval_shape(student.network.init, key, x, condition(labels, 1, None))
        given = {path for path, _ in trees.named(start)}
        own = {path for path, _ in trees.named(fresh)} - {path for path, _ in trees.named(plain)}
        trees.check_fits(start, fresh if own & given else plain, "student")
        params = trees.copy(trees.grafted(start, fresh))
        return State(jnp.zeros((), jnp.int32), params, tx.init(params))

    def draw(key, batch, variant):
        size = len(jax.tree.leaves(batch)[0])
        draws = {"dropout": stream(key, "dropout")}
        if "states" in batch:
            return draws
        draws["latents"] = jax.random.normal(stream(key, "latents"), (size, *parts.shape))
        if parts.labels is not None:
            shares = jnp.log(parts.labels)
            draws["label"] = jax.random.categorical(stream(key, "label"), shares, shape=(size,))
        return draws

    def update(state, frozen, batch, draws, variant):
        path, given = paths[variant], batch if "states" in batch else draws
        size, labels = len(given["latents"]), None
        if parts.labels is not None:
            labels = jax.nn.one_hot(given["label"], len(parts.labels))
        cond = condition(labels, size, told(variant))
        x = path.student[0] * given["latents"]
        if "states" in batch:
            passed = recorded(batch["states"], paths, variant)
        else:
            walker = _walker(parts, frozen, labels, size, teacher)
            passed = nested.targets(walker, teacher, x, path)
        params, opt, metrics = state.params, state.opt, {}
        images = trees.images_seen(state.step, size)
        # Unrolled: on CPUs, gradients of convolutions in a rolled loop are 20 to 40 times slower.
        for k, (sigma, below) in enumerate(zip(path.student[:-1], path.student[1:])):
            free = config.afs and k == 0
            known = guidance.gaussian_guess(x, sigma) if free else None
            dropout = jax.random.fold_in(draws["dropout"], k)

            def loss(params, x=x, k=k, sigma=sigma, below=below, known=known, dropout=dropout):
                denoise = denoiser(student, params, cond, dropout)
                y = trajectory.reached(denoise, x, sigma, below, known)
                total, seen = trajectory.elements(y, passed[k], config.loss).sum() / size, {}
                if perceived is not None and k == len(path.student) - 2:
                    seen["lpips"] = perceived(frozen["lpips"], y, passed[k]).mean()
                    total = total + np.prod(parts.shape) * seen["lpips"]
                return total, (y, seen)

            if free:
                metrics[f"loss_{k + 1}"], (y, seen) = loss(params)
            else:
                value, grads = jax.value_and_grad(loss, has_aux=True)(params)
                metrics[f"loss_{k + 1}"], (y, seen) = value
                moves, opt = tx.update(grads, opt, params, images_seen=images)
                params = optax.apply_updates(params, moves)
            metrics |= seen
            x = y if config.start == "global" else passed[k]
        return State(state.step + 1, params, opt), metrics

    def variant(step, seed):
        return counts[np.random.default_rng((seed, step)).integers(len(counts))]

    def cost(n, recorded):
        walk = driver.evaluations(teacher.solver, paths[n].teacher, teacher.afs)
        return 3 * calls(n, config.afs) + (0 if recorded else walk)

    def sampler(n, guide):
        bind = denoiser if guide is None else guide.denoiser

        def generate(params, frozen, keys, cond):
            denoise = bind(student, params, condition(cond.get("label"), len(keys), told(n)))
            return nested.walked(denoise, normal_per_image(keys, parts.shape), paths[n], config.afs)

        nfe = calls(n, config.afs) * (1 if guide is None else guide.calls())
        name = f"student {nfe}" if guide is None or guide.scale == 1 else f"student {nfe} w {guide.scale:g}"
        return name, Sampler(nfe, generate)

    made = {calls(n, config.afs): n for n in counts}
    for nfe in config.nfe:
        if nfe not in made:
            raise ValueError(
                f"method sfd: the student is trained for {', '.join(map(str, made))} network calls, not for "
                f"{nfe}; add {nfe + 1 + config.afs} to stamps."
            )
    samplers = dict(sampler(made[n], guide) for guide in guides for n in config.nfe or sorted(made))
    return Method(
        init, draw, update, lambda state: state.params, samplers, variant, cost=cost, remarks=_remarks(config)
    )


def check_teacher(config: Mapping, above: Mapping) -> None:
    """Raises ValueError if the teacher would not be told the number of levels that it walks, as SFD-v's is.

    Args:
      config: this method's section.
      above: the section of the method that trains the teacher.
    """
    config, told = registry.options(Options, config, "method sfd"), config.get("teacher", {}).get("stamps")
    conditioned = above.get("name") == "sfd" and above.get("conditioned", False)
    if not conditioned:
        if told is not None:
            raise ValueError(
                f"method sfd: teacher.stamps is {told}, and the teacher was not trained to be told a number of "
                "levels; leave it out."
            )
        return
    known = _counts(above["stamps"])
    walked = {(config.extra + 1) * (n - 1) + 1 for n in _counts(config.stamps)}
    if told not in known or walked != {told}:
        raise ValueError(
            f"method sfd: the teacher was trained to be told {', '.join(map(str, known))} levels; it walks "
            f"{', '.join(map(str, sorted(walked)))} here, and teacher.stamps is {told}; choose stamps, extra "
            "and teacher.stamps so that it walks and is told one of these."
        )


def recording(config, parts: Parts) -> Recording:
    """The states T_1..T_{n-1} of every number of levels n in turn, from the same latents.

    Of SFD-v, whose iterations need one n each, a recording makes all: its rows are to be used often.

    Args: as `build`'s.
    Frozen: teacher.
    Raises: ValueError as `build`.
    """
    config, counts, teacher, paths = _settled(config, parts)

    def states(frozen, latents, cond):
        walker = _walker(parts, frozen, cond.get("label"), len(latents), teacher)
        passed = [nested.targets(walker, teacher, p.student[0] * latents, p) for p in paths.values()]
        return jnp.moveaxis(jnp.concatenate(passed), 0, 1)

    total = sum(driver.evaluations(teacher.solver, p.teacher, teacher.afs) for p in paths.values())
    recipe = {
        "stamps": list(counts),
        "extra": config.extra,
        "schedule": dict(config.schedule),
        "teacher": dict(config.teacher),
    }
    return Recording(recipe, total, states)


def recorded(states: Array, paths: Mapping[int, nested.Path], stamps: int) -> Array:
    """(n-1,B,...) a recording's states (B,S,...) that belong to n = `stamps` levels.

    Raises: ValueError if S is not what all `paths` make together.
    """
    counts = list(paths)
    ends = np.cumsum([n - 1 for n in counts])
    if states.shape[1] != ends[-1]:
        raise ValueError(
            f"method sfd: batches have {states.shape[1]} recorded states an image, stamps {tuple(counts)} need "
            f"{ends[-1]}; record them with this config."
        )
    end = ends[counts.index(stamps)]
    return jnp.moveaxis(states[:, end - stamps + 1 : end], 1, 0)


def condition(labels: Array | None, size: int, stamps: int | None) -> Cond:
    """The condition of `size` images: one-hot labels (B,K) if there are any, and a number of levels."""
    cond = {} if labels is None else {"label": labels}
    return cond if stamps is None else cond | {"stamps": jnp.full(size, float(stamps))}


def calls(stamps: int, afs: bool) -> int:
    """Network calls of a student's sampler of n levels."""
    return stamps - 1 - afs


def _counts(stamps: int | Sequence[int]) -> tuple[int, ...]:
    """Numbers of levels, of one or of several."""
    return (stamps,) if isinstance(stamps, int) else tuple(stamps)


def _settled(config, parts: Parts) -> tuple[Options, tuple[int, ...], nested.Teacher, dict[int, nested.Path]]:
    """Options, numbers of levels, and how teacher and student walk them. Raises: ValueError as `build`."""
    config = registry.options(Options, config, "method sfd")
    counts = _counts(config.stamps)
    _check(config, counts)
    teacher, schedule = nested.teacher_of(config.teacher), schedules.build(config.schedule)
    paths = {n: nested.path_of(schedule, n, config.extra) for n in counts}
    for path in paths.values():
        schedules.check_range(path.student, parts.models["student"].precond)
        schedules.check_range(path.teacher, parts.models["teacher"].precond)
        if teacher.solver.steps not in (None, len(path.teacher) - 1):
            raise ValueError(
                f"method sfd: solver {config.teacher['name']} is made for {teacher.solver.steps} steps, the "
                f"teacher takes {len(path.teacher) - 1}; choose another solver."
            )
    return config, counts, teacher, paths


def _walker(parts: Parts, frozen, labels: Array | None, size: int, teacher: nested.Teacher) -> Denoiser:
    """The teacher's denoiser for labels (B,K) or None."""
    above = condition(labels, size, teacher.stamps)
    return denoiser(parts.models["teacher"], frozen["teacher"], above)


def _guides(settings: Mapping, parts: Parts) -> list[sampling.Guidance | None]:
    """Guidance of each scale; None for samplers without. Raises: ValueError if there is nothing to guide."""
    if not settings:
        return [None]
    if parts.labels is None:
        raise ValueError("method sfd: guidance needs a model with labels; set guidance={}.")
    scales = settings.get("scale")
    if not isinstance(scales, (tuple, list)):
        return [sampling.guided(settings)]
    return [sampling.guided({**settings, "scale": scale}) for scale in scales]


def _remarks(config: Options) -> tuple[str, ...]:
    """What a report says of the loss: a student with LPIPS compares with none without."""
    if config.lpips is None:
        return (f"Loss: {config.loss} alone, without LPIPS (lpips=None).",)
    settings = registry.options(perceptual.Request, config.lpips, "method sfd: lpips")
    return (
        f"Loss: {config.loss}, in the last step with LPIPS (variant {settings.variant}, weights with sha256 "
        f"{settings.sha256[:12]}).",
    )


def _check(config: Options, counts: tuple[int, ...]) -> None:
    """Raises ValueError for settings that no trajectory can have."""
    trajectory.check_norm(config.loss)
    if config.start not in START:
        raise ValueError(f"method sfd: start is {config.start!r}; known: {', '.join(START)}.")
    if config.lpips is not None and not isinstance(config.lpips, Mapping):
        raise ValueError(
            f"method sfd: lpips is {config.lpips!r}; give weights, sha256 and variant, or set lpips=None."
        )
    if not counts or min(calls(n, config.afs) for n in counts) < 1:
        raise ValueError(
            f"method sfd: stamps {counts} leave a student no network call; use {2 + config.afs} or more."
        )
