"""AMED: trains the predictor of a two-call solver to follow a finer one; the denoiser stays as it is.

Source: Zhou et al., Fast ODE-based Sampling for Diffusion Models in Around 5 Steps, CVPR 2024
(arXiv:2312.00094).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import guidance, registry
from fastdiff_jax.precond import tapped
from fastdiff_jax.rng import normal_per_image, stream
from fastdiff_jax.solvers import amed, driver, schedules
from fastdiff_jax.types import (
    Array,
    At,
    Cond,
    Method,
    Model,
    Network,
    Params,
    Parts,
    Sampler,
    Solver,
)

# Kinds with a history go on from where they arrived; the others start every step at the teacher's point.
OWN_PATH = tuple(amed.HIGHEST)


class Options(NamedTuple):
    """Settings of AMED; defaults are AMED-Solver's for five calls."""

    tap: str  # the teacher's feature map that the predictor reads: the last one of its encoder
    kind: str = "amed"  # of step, see `solvers.amed`
    steps: int = 3  # of two calls each
    afs: bool = True  # guess the first call's x0 when sampling and training: one call fewer
    order: int | None = None  # of kinds with a history
    target: str = "data"  # of dpmpp
    threshold: bool = False  # pull predictions into [-1, 1], as published pixel-space figures of dpmpp do
    teacher: Mapping = {"name": "heun"}  # solver of the points to reach, its options, and `threshold`
    extra: int = 1  # levels of the teacher between two of the student's


class State(NamedTuple):
    """A predictor in training."""

    step: Array  # () int32
    params: Params
    opt: optax.OptState


class Lesson(NamedTuple):
    """One step of the trajectory: where the predictor took it, and what it learned from that."""

    loss: Array  # ()
    grads: Params
    reached: Array  # (B,...)
    params: Params  # after the update
    opt: optax.OptState


class Course(NamedTuple):
    """What a predictor is led along."""

    x: Array  # (B,...) at sigmas[0]
    sigmas: np.ndarray  # (N+1,) the student's levels
    targets: Array  # (N,B,...) the teacher's points at sigmas[1:]
    known: Array | None  # x0 at sigmas[0] if the first call is saved
    own_path: bool  # a step starts where the last one arrived (before its update), else at the teacher's point


def loss(reached: Array, point: Array) -> Array:
    """|reached - point|^2, summed over an image, mean over images; both (B,...); scalar."""
    return jnp.sum(jnp.square(reached - point)) / len(point)


def observed(model: Model, params: Params, cond: Cond, tap: str, threshold: bool = False) -> Callable:
    """The denoiser as AMED's solvers want it: (x, sigma) -> (x0, u (B,F)).

    u is the mean over channels of the features at `tap`, flattened; features (B,F) are taken as they are.
    """
    raw = tapped(model, params, cond, (tap,))

    def denoise(x, sigma):
        x0, features = raw(x, sigma)
        u = features[tap]
        u = u if u.ndim == 2 else u.mean(-1).reshape(len(u), -1)
        return guidance.dynamic_threshold(x0) if threshold else x0, u.astype(x.dtype)

    return denoise


def nodes(network: Network, params: Params) -> Callable[..., amed.Nodes]:
    """A predictor with its weights bound: (u, t, t') -> Nodes."""

    def choose(u, sigma, sigma_next):
        return amed.Nodes(*network.apply(params, u, sigma, {"next": sigma_next}).T)

    return choose


def points(denoise: Callable, solver: Solver, x: Array, sigmas: np.ndarray, every: int) -> Array:
    """(N,B,...) states of a teacher's run over `sigmas` (N every + 1,), one after `every` steps each."""
    return driver.sample(denoise, solver, x, sigmas, trace=True).states[every::every]


def lessons(
    params: Params, opt, tx, solver: Callable[[Params], Solver], denoise: Callable, course: Course
) -> Iterator[Lesson]:
    """One trajectory, an update a step: step k is taken with what step k-1 taught.

    Neither state nor history carries gradients from step to step.

    Args:
      solver: weights -> AMED's solver with them.
      denoise: see `observed`; gradients pass through its second call of a step, into x_m and the level there.
    """
    x, sigmas, targets, known, own_path = course
    steps = driver.prepare(solver(params), sigmas, x.dtype)
    history = steps.init(x, steps.row)

    def attempt(params, history, x, at, entry, target):
        reached, history = solver(params).step(denoise, history, x, at, plan=entry)
        return loss(reached, target), (reached, history)

    for index, target in enumerate(targets):  # unrolled: gradients in a rolled loop crawl on CPUs
        here = jax.tree.map(lambda v, i=index: v[i], (steps.index, steps.sigma, steps.sigma_next, steps.row))
        at = At(*here, known=None if index else known)
        (value, (reached, history)), grads = jax.value_and_grad(attempt, has_aux=True)(
            params, history, x, at, steps.plan[index], target
        )
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        yield Lesson(value, grads, reached, params, opt)
        history = jax.lax.stop_gradient(history)
        x = jax.lax.stop_gradient(reached) if own_path else target


def build(config, parts: Parts) -> Method:
    """AMED as a method: one update of the predictor for every step of the student's trajectory.

    Args:
      config: see `Options`.
      parts: models["teacher"], with the tap; models["predictor"], a network like `networks.nodes`;
        optimizers["predictor"]; schedule, ending above zero; shape, labels.
    Frozen: teacher.
    Metrics: loss, the sum over the steps of the trajectory; loss_last, of the last one.
    Raises: ValueError for unknown or impossible settings, levels that the teacher was not trained at, and a
      schedule whose finer version misses its own levels.
    """
    config = registry.options(Options, config, "method amed")
    for name, least in (("steps", 1), ("extra", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"method amed: {name} is {least} or more; got {getattr(config, name)}.")
    teacher, predictor = parts.models["teacher"], parts.models["predictor"].network
    tx, every = parts.optimizers["predictor"], config.extra + 1
    sigmas, fine = parts.schedule(config.steps), parts.schedule(config.steps * every)
    if not np.allclose(fine[::every], sigmas, rtol=1e-6, atol=0):
        raise ValueError(
            f"method amed: the schedule with {config.steps * every} steps misses levels of that with "
            f"{config.steps}, {sigmas}; use one whose levels are a function of i/N (zero=False)."
        )
    schedules.check_range(sigmas, teacher.precond)
    guide = dict(config.teacher)
    guide_threshold = guide.pop("threshold", False)
    guide = registry.choose(registry.entries("solvers", "SOLVERS"), guide, "solver")
    of_kind = partial(amed.amed, config.kind, order=config.order, target=config.target)
    nfe = driver.evaluations(of_kind(None, 0), sigmas, config.afs)

    def solver(width):
        return lambda params: of_kind(nodes(predictor, params), width)

    def condition(labels):
        return {} if parts.labels is None else {"label": jax.nn.one_hot(labels, len(parts.labels))}

    def width(weights):
        """F of the features that the teacher gives."""
        cond = condition(jnp.zeros(1, jnp.int32))

        def features(weights):
            x = jnp.zeros((1, *parts.shape))
            return observed(teacher, weights, cond, config.tap)(x, float(sigmas[0]))[1]

        return jax.eval_shape(features, weights).shape[1]

    def begun(latents):
        """x at the first level, and x0 there if it is guessed."""
        x = jnp.asarray(sigmas[0], latents.dtype) * latents
        guess = guidance.gaussian_guess(x, jnp.asarray(sigmas[0], x.dtype)) if config.afs else None
        return x, guidance.dynamic_threshold(guess) if config.afs and config.threshold else guess

    def init(key, frozen):
        features = jnp.zeros((1, width(frozen["teacher"])))
        params = predictor.init(key, features, {"next": jnp.zeros(1)})
        return State(jnp.zeros((), jnp.int32), params, tx.init(params))

    def draw(key, batch, variant):
        size = len(jax.tree.leaves(batch)[0])
        return {"latents": jax.random.normal(stream(key, "latents"), (size, *parts.shape))}

    def update(state, frozen, batch, draws, variant):
        weights, cond = frozen["teacher"], condition(batch.get("label"))
        x, known = begun(draws["latents"])

        def followed(x, sigma):
            return observed(teacher, weights, cond, config.tap, guide_threshold)(x, sigma)[0]

        targets = points(followed, guide, x, fine, every)
        denoise = observed(teacher, weights, cond, config.tap, config.threshold)
        course = Course(x, sigmas, targets, known, config.kind in OWN_PATH)
        taught = list(lessons(state.params, state.opt, tx, solver(width(weights)), denoise, course))
        losses, last = [lesson.loss for lesson in taught], taught[-1]
        state = State(state.step + 1, last.params, last.opt)
        return state, {"loss": sum(losses), "loss_last": losses[-1]}

    def generate(params, frozen, keys, cond):
        weights = frozen["teacher"]
        x, known = begun(normal_per_image(keys, parts.shape))
        denoise = observed(teacher, weights, cond, config.tap, config.threshold)
        return driver.sample(denoise, solver(width(weights))(params), x, sigmas, known=known)

    name = "amed" if config.kind == "amed" else f"amed_{config.kind}"
    return Method(init, draw, update, lambda state: state.params, {f"{name} {nfe}": Sampler(nfe, generate)})
