"""Flash Diffusion: a few-step student, or an adapter of its teacher, from the teacher's own guided solves.

Each step draws one level of a grid of K, from which the teacher solves its flow, guided, down to an image; the
student learns to jump there in one call. Distribution matching, with the student as its own fake score, and a
discriminator on the teacher's features join by stages.

Source: Chadebec et al. 2024 (arXiv:2406.02347), and the authors' code where paper and code part.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import conditioning, guidance, precond, registry, trees
from fastdiff_jax.losses import adversarial, curriculum, distances, identity, perceptual
from fastdiff_jax.losses.grid import RULES, Grid, grid
from fastdiff_jax.precond import denoiser
from fastdiff_jax.processes import discrete
from fastdiff_jax.rng import stream
from fastdiff_jax.solvers import driver, heun, multistep, sampling, schedules, strided
from fastdiff_jax.types import (
    Array,
    Denoiser,
    Frozen,
    Method,
    Model,
    Params,
    Parts,
    Sampler,
    Solver,
    expand,
)

TASKS = True  # it takes conditions besides the label
ADAPTERS = True  # it trains what `Parts.adapter` makes of the student
OFFSET = 1e-5  # in the denominator of distribution matching's weight
# Solvers that may begin inside their table; "ddim_strided" needs the levels.
SOLVERS = {"dpmpp_2m": partial(multistep.dpmpp, 2), "ddim": multistep.euler, "heun": heun.heun}
CHOICES = dict(
    law=tuple(curriculum.LAWS), stage_rule=("steps", "reference"), renoise=RULES, fake=("student", "separate"),
)  # fmt: skip
REAL = ("data", "teacher")


class Options(NamedTuple):
    """Settings of the method; defaults are those of Stable Diffusion 1.5's run but for its LPIPS."""

    grid: int = 32  # K: levels of the teacher's solve, in all stages; PixArt: 16
    spacing: str = "trailing"  # of their labels, see `processes.discrete.labels`
    betas: Mapping | None = None  # levels by label, see `alphas_cumprod`; None: those of the teacher's training
    law: str = "mixture"  # of the level drawn, out of `losses.curriculum`
    width: float = 0.5  # of a mode: exp(-(i - mode)^2 / width)
    stages: Mapping = {}  # see `losses.curriculum.Stages`
    stage_rule: str = "steps"  # or "reference": counts two a step, and falls back to the first stage once
    guidance: tuple[float, float] = (3.0, 13.0)  # ends of the teacher's scale, drawn uniformly each step
    solver: Mapping = {"name": "dpmpp_2m"}  # the teacher's; "ddim_strided" is diffusers' DDIM
    pure: bool = True  # level 0 starts from noise alone, as samples do, though it has some signal
    boundary: Mapping | None = {"scaling": 10.0, "sigma_data": 0.5}  # see `precond.with_boundary`; None: none
    distance: Mapping = {"name": "l2"}  # of student and target, out of `losses.distances`
    lpips: Mapping | None = None  # `perceptual.Request`: LPIPS instead; published runs have variant "standard"
    renoise: str = "exact"  # or "grid", as the code: see `losses.grid.Grid.renoised`
    fake: str = "student"  # the fake score of distribution matching: the student itself, or "separate"
    adversarial: Mapping | None = {"tap": "noise"}  # see `Rival`; None: no discriminator
    shared: bool = False  # all updates of a step have the same draws and images; else each its own
    nfe: tuple[int, ...] = (1, 2, 4)  # calls of the samplers named "student N"
    # what they have in common; "spacing" is of the labels, or "lcm": the default of latent consistency's
    sampler: Mapping = {"name": "lcm"}
    samplers: Mapping = {}  # others, {report name: {"name", "nfe", ...}}


class Rival(NamedTuple):
    """Settings of the discriminator, a model on what the frozen teacher makes of noised images."""

    tap: str = adversarial.NOISE  # features by the network's name for them, or the noise that it predicts
    loss: Mapping = {"name": "lsgan"}  # out of losses.adversarial
    labels: tuple[int, ...] = (10, 250, 500, 750)  # levels of the images, one of them each
    real: str = "data"  # or "teacher": what its solve ends in


class State(NamedTuple):
    """What Flash trains; there is no average."""

    step: Array  # () int32
    params: Params  # trainable tree of the student's adapter, or all its weights
    opt: optax.OptState
    head: Params  # the discriminator's; {} without one, and so on
    head_opt: optax.OptState
    fake: Params  # trainable tree of a separate fake score
    fake_opt: optax.OptState


class Turn(NamedTuple):
    """The stages that the updates of a step belong to."""

    student: int
    rival: int


def build(config, parts: Parts) -> Method:
    """Flash Diffusion as a method.

        x_S = f(x_i; sigma_i),    x_i = x0 + sigma_i n,    x_T: the end of the teacher's guided solve from x_i
        student: distill d(x_S, x_T) + matching L_M(x_S) + adversarial L_G(x_S)
        L_M = mean (x_S - sg(x_S - w (D_fake - D_real)))^2 at a uniform label,  1/w = mean |x_S - D_real| + 1e-5

    f is the student's denoiser with the scalings of `precond.with_boundary`; D_real is guided. A step draws one
    level i and one guidance scale for the batch. Then the discriminator learns from draws of its own, by
    features of real images and of x_S at one noise and level, and a separate fake score by denoising x_S; the
    student has moved by then. Nothing is solved for them, unless the discriminator's real images are solves.

    Published runs have AdamW (0.9, 0.999), weight decay 0.01, rate 1e-5, no clipping and no average.

    Args:
      config: see `Options`, `curriculum.Stages` and `Rival`.
      parts: models "student" and "teacher", of one network, and as asked for "discriminator" and "lpips";
        optimizers "student", "discriminator", and "fake" for a separate one; shape, labels, task, adapter.
    Frozen: teacher; lpips if it is the distance; what the task reads. At `init` also "initial", trainable
      weights to start from.
    Metrics: loss_student, its sum; its terms without their weights, loss_distill, loss_matching and
      loss_adversarial, where those are positive; loss_discriminator; loss_fake.
    Raises: ValueError for unknown or impossible settings, columns of different lengths, guidance of a teacher
      that has nothing to hide, a tap that the network has not (naming those that it has), a head that does not
      fit its features, levels outside a model's range; in `init` for weights that do not fit.
    """
    config, stages, rival = _settled(config, parts)
    teacher, student = parts.models["teacher"], parts.models["student"]
    hidden = _hidden(config.guidance, parts)
    levels = _levels(config, rival, teacher)
    modes = [curriculum.LAWS[config.law](len(levels.labels), w, config.width) for w in stages.modes]
    jump = student
    if config.boundary is not None:
        label = discrete.clock(levels.abar)
        jump = student._replace(precond=precond.with_boundary(student.precond, label, **config.boundary))
    solver, distance = _solver(config, levels), _distance(config, parts)
    adapter = parts.adapter or trees.FULL
    tx = {role: optax.with_extra_args_support(one) for role, one in parts.optimizers.items()}
    separate, by_teacher = config.fake == "separate", rival is not None and rival.real == "teacher"
    if rival is not None:
        head, adversary = parts.models["discriminator"].network, adversarial.build(rival.loss)
        outline = partial(adversarial.features, teacher, rival.tap, parts.shape, parts.labels)
        if parts.task is None:  # else its conditions may need weights, and `init` refuses what does not fit
            jax.eval_shape(head.init, jax.random.key(0), outline())

    def merged(frozen, trainable):
        return adapter.merge(frozen["teacher"], trainable)

    def init(key, frozen):
        params, scored, fake = adapter.init(stream(key, "student"), frozen["teacher"]), {}, {}
        if "initial" in frozen:
            trees.check_fits(frozen["initial"], params, "student")
            params = trees.copy(frozen["initial"])
        if rival is not None:
            task = parts.task
            features = outline(task and conditioning.blank(parts.labels, task, parts.shape, frozen))
            inputs = jnp.zeros(features.shape, features.dtype)
            scored = adversarial.bounded(head.init(stream(key, "discriminator"), inputs), adversary)
        if separate:
            fake = adapter.init(stream(key, "fake"), frozen["teacher"])
        trained = {"student": params, "discriminator": scored, "fake": fake}
        opts = [tx[role].init(tree) if tree else {} for role, tree in trained.items()]
        return State(jnp.zeros((), jnp.int32), params, opts[0], scored, opts[1], fake, opts[2])

    def draw(key, batch, turn):
        shape = batch["image"].shape

        def noised(key, name, count):
            label = jax.random.randint(stream(key, f"{name} label"), shape[:1], 0, count)
            noise = jax.random.normal(stream(key, f"{name} noise"), shape)
            return {f"{name}_label": label, f"{name}_noise": noise}

        def part(name, stage, matching, seen):
            own = stream(key, name)
            found = {
                "index": jax.random.categorical(stream(own, "index"), jnp.log(modes[stage])),
                "scale": jax.random.uniform(stream(own, "scale")),
                "noise": jax.random.normal(stream(own, "noise"), shape),
            }
            if matching:
                found["matching_scale"] = jax.random.uniform(stream(own, "matching scale"))
                found |= noised(own, "matching", len(levels.table))
            return found | (noised(own, "rival", len(rival.labels)) if seen else {})

        weights = stages.weights(turn.student)
        seen = rival is not None and (weights["adversarial"] > 0 or config.shared)
        draws = {"student": part("student", turn.student, weights["matching"] > 0, seen)}
        if (rival is not None or separate) and not config.shared:
            draws["rival"] = part("rival", turn.rival, False, rival is not None)
        if separate:
            draws["fake"] = noised(stream(key, "fake"), "fake", len(levels.table))
        if parts.task is not None:
            draws["task"] = parts.task.draw(stream(key, "task"), batch)
        return draws

    def guided(frozen, cond, share) -> Denoiser:
        """The teacher at the scale that lies at `share` of its interval."""
        aimed, (low, high) = denoiser(teacher, frozen["teacher"], cond), config.guidance
        if low == high == 1:
            return aimed
        base = denoiser(teacher, frozen["teacher"], conditioning.without(cond, hidden))
        return guidance.mixed(aimed, base, low + share * (high - low))

    def solved(frozen, cond, x, part):
        bound = guided(frozen, cond, part["scale"])
        return driver.sample(bound, solver, x, levels.levels, start=part["index"])

    def logits(scored, frozen, cond, x, part):
        label = jnp.asarray(rival.labels)[part["rival_label"]]
        x_t, sigma = levels.renoised(x, label, part["rival_noise"], config.renoise)
        values = adversarial.taken(teacher, frozen["teacher"], cond, rival.tap)(x_t, sigma)
        return head.apply(scored, values, jnp.zeros(len(values), values.dtype))

    def matching(state, frozen, cond, x, part):
        label, noise = part["matching_label"], part["matching_noise"]
        x_t, sigma = levels.renoised(jax.lax.stop_gradient(x), label, noise, config.renoise)
        real = guided(frozen, cond, part["matching_scale"])(x_t, sigma)
        own = merged(frozen, state.fake if separate else state.params)
        fake = denoiser(student, own, cond)(x_t, sigma)
        return 2 * identity.squared(x, identity.direction(x, real, fake, offset=OFFSET)).mean()

    def moved(role, loss, params, opt, images):
        """One update: parameters, optimizer state, and what the loss returns, (value, more)."""
        found, grads = jax.value_and_grad(loss, has_aux=True)(params)
        moves, opt = tx[role].update(grads, opt, params, images_seen=images)
        return optax.apply_updates(params, moves), opt, found

    def student_update(state, frozen, image, cond, part, stage, images):
        weights = {name: weight for name, weight in stages.weights(stage).items() if weight}
        x, sigma = levels.start(image, part["index"], part["noise"], config.pure)
        wanted = "distill" in weights or (by_teacher and config.shared)
        target = solved(frozen, cond, x, part) if wanted else None
        terms = {
            "distill": lambda made: distance(frozen, made, target).mean(),
            "matching": lambda made: matching(state, frozen, cond, made, part),
            "adversarial": lambda made: adversary.generator(
                logits(state.head, frozen, cond, made, part)
            ).mean(),
        }

        def loss(params):
            made = denoiser(jump, merged(frozen, params), cond)(x, sigma)
            values = {name: terms[name](made) for name in weights}
            return sum(weights[name] * value for name, value in values.items()), (values, made)

        params, opt, (total, (values, made)) = moved("student", loss, state.params, state.opt, images)
        metrics = {"loss_student": total} | {f"loss_{name}": value for name, value in values.items()}
        return state._replace(params=params, opt=opt), metrics, made, target

    def head_update(state, frozen, cond, real, made, part, images):
        def loss(scored):
            of_real, of_made = (logits(scored, frozen, cond, x, part) for x in (real, made))
            return (adversary.real(of_real) + adversary.fake(of_made)).mean(), None

        scored, opt, (value, _) = moved("discriminator", loss, state.head, state.head_opt, images)
        state = state._replace(head=adversarial.bounded(scored, adversary), head_opt=opt)
        return state, {"loss_discriminator": value}

    def fake_update(state, frozen, cond, made, part, images):
        x_t, sigma = levels.renoised(made, part["fake_label"], part["fake_noise"])

        def loss(fake):
            answer = denoiser(student, merged(frozen, fake), cond)(x_t, sigma)
            return jnp.mean(((answer - made) / expand(sigma, made)) ** 2), None

        fake, opt, (value, _) = moved("fake", loss, state.fake, state.fake_opt, images)
        return state._replace(fake=fake, fake_opt=opt), {"loss_fake": value}

    def update(state, frozen, batch, draws, turn):
        image, images = batch["image"], trees.images_seen(state.step, len(batch["image"]))
        cond = conditioning.conditions(parts.labels, parts.task, batch, draws.get("task"), frozen)
        part = draws["student"]
        state, metrics, made, target = student_update(state, frozen, image, cond, part, turn.student, images)
        if "rival" in draws:
            part = draws["rival"]
            x, sigma = levels.start(image, part["index"], part["noise"], config.pure)
            made = denoiser(jump, merged(frozen, state.params), cond)(x, sigma)
            target = solved(frozen, cond, x, part) if by_teacher else None
        made = jax.lax.stop_gradient(made)
        if rival is not None:
            real = target if by_teacher else image
            state, more = head_update(state, frozen, cond, real, made, part, images)
            metrics |= more
        if separate:
            state, more = fake_update(state, frozen, cond, made, draws["fake"], images)
            metrics |= more
        return state._replace(step=state.step + 1), metrics

    def variant(step, seed):
        del seed
        if config.stage_rule == "steps":
            return Turn(*(curriculum.by_steps(step, stages.steps),) * 2)
        lengths = 2 * np.asarray(stages.steps)
        return Turn(*(curriculum.by_reference(2 * step + turn, lengths) for turn in (1, 2)))

    def cost(turn, recorded):
        del recorded  # of a solve its expected length; a tap counts as a whole call, an input's gradient as one
        own, other = (calls * float(modes[stage] @ walks) for stage in turn)
        weights, apart = stages.weights(turn.student), (rival is not None or separate) and not config.shared
        total = 3 + own * (weights["distill"] > 0 or (by_teacher and config.shared))
        total += (calls + 1) * (weights["matching"] > 0) + 2 * (weights["adversarial"] > 0)
        return round(total + (1 + other * by_teacher) * apart + 2 * (rival is not None) + 3 * separate)

    walks = [driver.evaluations(solver, levels.levels[first:]) for first in range(len(levels.labels))]
    calls = 1 if tuple(config.guidance) == (1, 1) else 2
    samplers = _samplers(config, levels, jump, parts, hidden, merged)
    return Method(
        init, draw, update, lambda state: state.params, samplers, variant, cost=cost, remarks=_remarks(config)
    )


def check_teacher(config: Mapping, above: Mapping) -> None:
    """Raises ValueError if guidance would hide conditions from a teacher that has always been told them.

    Args:
      config: this method's section.
      above: the section of the method that trains the teacher.
    """
    scales = tuple(registry.options(Options, config, "method flash").guidance)
    if scales != (1, 1) and not above.get("label_dropout", 0.0):
        raise ValueError(
            f"method flash: guidance {scales} hides conditions from the teacher, which was trained with "
            "label_dropout=0 and answers anything without them; train it with method.label_dropout=0.1, or set "
            "guidance=(1.0, 1.0)."
        )


def check_length(config: Mapping, steps: int) -> None:
    """Raises ValueError if a training of so many steps ends before its last stage begins."""
    config = registry.options(Options, config, "method flash")
    stages = registry.options(curriculum.Stages, config.stages, "method flash, stages")
    stages.check_length(steps, "method flash")


def _samplers(config: Options, levels: Grid, jump: Model, parts: Parts, hidden, merged) -> dict[str, Sampler]:
    """Samplers of the student, whose weights are merged first."""

    def sample(inner, params, frozen, keys, cond):
        return inner(merged(frozen, params), frozen, keys, cond)

    def schedule(spacing):
        return lambda n: np.append(levels.table[discrete.labels(spacing, n, len(levels.table))], 0.0)

    requests, groups, found = {f"student {n}": {**config.sampler, "nfe": n} for n in config.nfe}, {}, {}
    for name, request in (requests | dict(config.samplers)).items():
        request = dict(request)
        groups.setdefault(request.pop("spacing", config.spacing), {})[name] = request
    for spacing, group in groups.items():
        found |= sampling.samplers(group, jump, schedule(spacing), parts.shape, hides=hidden)
    return {
        name: one._replace(generate=jax.tree_util.Partial(sample, one.generate)) for name, one in found.items()
    }


def _levels(config: Options, rival: Rival | None, teacher: Model) -> Grid:
    """Levels by label and those of the solve. Raises: ValueError if they are not known, or not trained."""
    table = teacher.precond.table
    if (table is None) == (config.betas is None):
        raise ValueError(
            "method flash: a teacher of a continuum of levels needs a list, betas=dict(betas='linear') or "
            f"others, a discrete one has its own, betas=None; got {config.betas} for "
            f"{'a continuum' if table is None else f'{len(table)} labels'}."
        )
    abar = discrete.alphas_cumprod(**config.betas) if table is None else 1 / (1 + table**2)
    found = grid(abar, config.grid, config.spacing)
    schedules.check_range(found.table, teacher.precond)
    if rival is not None and not 0 <= min(rival.labels) <= max(rival.labels) < len(abar):
        raise ValueError(
            f"method flash: adversarial.labels {tuple(rival.labels)} are not all within the model's, "
            f"0..{len(abar) - 1}; name others."
        )
    return found


def _solver(config: Options, levels: Grid) -> Solver:
    """The teacher's."""
    stride = len(levels.table) // len(levels.labels)
    known = SOLVERS | {"ddim_strided": lambda: strided.ddim(levels.abar, stride)}
    return registry.choose(known, config.solver, "solver of a Flash teacher")


def _distance(config: Options, parts: Parts) -> Callable[[Frozen, Array, Array], Array]:
    """(frozen, x_S, x_T) -> (B,)."""
    perceived = perceptual.bound(config.lpips, parts.models, parts.shape, "method flash")
    if perceived is not None:
        if "variant" not in config.lpips:
            raise ValueError(
                "method flash: lpips has no variant; published runs have variant='standard', as LPIPS was "
                "trained."
            )
        return lambda frozen, x, y: perceived(frozen["lpips"], x, y)
    plain = distances.build(config.distance)
    return lambda frozen, x, y: plain(x, y)


def _remarks(config: Options) -> tuple[str, ...]:
    """What a report says of the training: students of different distances and guidance do not compare."""
    of = f"{config.distance['name']}, not LPIPS as published" if config.lpips is None else "LPIPS"
    low, high = config.guidance
    scale = f"scale {low:g}" if low == high else f"scales of {low:g} to {high:g}"
    return (f"Distillation: distance {of}, from a teacher guided at {scale}.",)


def _hidden(scales: tuple[float, float], parts: Parts) -> tuple[str, ...]:
    """The conditions that guidance hides. Raises: ValueError if it cannot be."""
    hidden = conditioning.guided(parts.labels, parts.task)
    if len(scales) != 2 or not 0 <= scales[0] <= scales[1]:
        raise ValueError(f"method flash: guidance is a smallest and a largest scale; got {tuple(scales)}.")
    if not hidden and tuple(scales) != (1, 1):
        raise ValueError(
            f"method flash: guidance {tuple(scales)} needs a teacher with labels or other conditions to hide, "
            "and this one has none; set guidance=(1.0, 1.0)."
        )
    return hidden


def _settled(config, parts: Parts) -> tuple[Options, curriculum.Stages, Rival | None]:
    """Settings in full. Raises: ValueError for those that are impossible whatever the teacher is."""
    config = registry.options(Options, config, "method flash")
    stages = registry.options(curriculum.Stages, config.stages, "method flash, stages")
    rival = config.adversarial
    rival = None if rival is None else registry.options(Rival, rival, "method flash, adversarial")
    for name, known in CHOICES.items():
        if getattr(config, name) not in known:
            raise ValueError(
                f"method flash: {name} is {getattr(config, name)!r}; known: {', '.join(known)}."
            )
    stages.check("method flash")
    if not isinstance(config.grid, int):
        raise ValueError(f"method flash: all stages have one grid of levels; got {config.grid}: give a number.")
    for modes in stages.modes if config.law == "mixture" else ():
        curriculum.check_modes(config.grid, modes, "method flash")
    if rival is not None and rival.real not in REAL:
        raise ValueError(f"method flash: adversarial.real is {rival.real!r}; known: {', '.join(REAL)}.")
    if rival is None and any(stages.adversarial):
        raise ValueError(
            f"method flash: stages.adversarial {tuple(stages.adversarial)} weighs a discriminator, and "
            "adversarial is None; set zeros."
        )
    trained = {"student": True, "discriminator": rival is not None, "fake": config.fake == "separate"}
    for role in (role for role, there in trained.items() if there):
        if role not in parts.optimizers:
            raise ValueError(f"method flash: there is no optimizer {role}; add config.optimizers.{role}.")
    if rival is not None and "discriminator" not in parts.models:
        raise ValueError(
            "method flash: there is no model discriminator; add config.models.discriminator, or set "
            "adversarial=None and zeros in stages.adversarial."
        )
    return config, stages, rival
