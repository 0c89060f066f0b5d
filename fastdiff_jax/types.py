"""The shapes of the design: what a network, a solver, a sampler and a method are.

Every algorithm is a NamedTuple of pure functions with its state in the open; loops, keys, devices
and files belong to drivers. The waist is `Denoiser`: processes, networks and weights sit below it,
solvers, losses, methods and metrics above.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any
Params = PyTree
Frozen = Mapping[str, Params]  # trees that never train, by name: {"teacher": ...}
State = PyTree
History = PyTree
Key = Array  # one typed key, shape ()
Keys = Array  # (B,) typed keys, one per image
Batch = Mapping[str, Array]  # {"image": (B,H,W,C) in model units, "label": (B,) int32}
Draws = Mapping[str, Array]  # every random number of one training step
Metrics = Mapping[str, Array]  # scalars to log
Cond = Mapping[str, PyTree]  # {"label": (B,K), "augment": (B,9), ...}; {} when none; unknown keys raise
Denoiser = Callable[[Array, Array], Array]  # (x (B,...), sigma () or (B,)) -> x0 (B,...)
Noise = Callable[[Array, int], Array]  # (step index, draw index) -> standard normal like x
Schedule = Callable[[int], np.ndarray]  # N -> (N+1,) decreasing sigmas, host float64


class Network(NamedTuple):
    """A raw network F: weights and inputs are explicit, nothing is bound."""

    init: Callable[..., Params]  # (key, x (B,...), cond) -> params
    apply: Callable[..., Array]  # (params, x, c_noise (B,), cond, *, dropout=None, taps=()) -> F


class Coefficients(NamedTuple):
    """D(x; sigma) = skip x + out F(inp x; noise): four (B,) arrays."""

    skip: Array
    out: Array
    inp: Array
    noise: Array


class Precond(NamedTuple):
    """How a network becomes a denoiser, and the noise levels it was trained for."""

    coefficients: Callable[[Array], Coefficients]  # sigma (B,) -> four (B,)
    round: Callable[[Array], Array]  # sigma -> nearest trained sigma; identity but for discrete models
    sigma_min: float
    sigma_max: float
    table: np.ndarray | None = None  # (M,) sigma of each label of a discrete model, rising; None: no labels


class Process(NamedTuple):
    """x_t = scale(t) (x0 + sigma(t) eps); drift and diffusion follow by autodiff."""

    scale: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    inverse: Callable[[Array], Array]  # sigma -> t
    t_min: float
    t_max: float


class PhaseProcess(NamedTuple):
    """Position and velocity z = (x, v), dz = drift z dt + diffusion dw: critically damped Langevin dynamics.

    t () or (B,) -> (..., 2, 2), which act on x and v of every coordinate alike.
    """

    mean: Callable[[Array], Array]
    chol: Callable[..., Array]  # (t, gamma=own) -> lower factor of the covariance from v0 ~ N(0, gamma mass)
    drift: Callable[[Array], Array]
    diffusion: Callable[[Array], Array]
    clock: Callable[[Array], Array]  # t -> (...), the integral of beta
    mass: float
    gamma: float
    eps: float  # added to both variances
    t_min: float
    t_max: float


class PhasePrecond(NamedTuple):
    """How a network (x, v) -> (channels of x) becomes the velocity score of a `PhaseProcess`."""

    process: PhaseProcess
    matching: str  # "hsm" or "dsm": the kernel whose noise is predicted
    noise: Callable[[Array], Array]  # t (B,) -> c_noise (B,)
    mixed: bool  # whether the network adds to the score of Gaussian velocities


class Model(NamedTuple):
    """A network with its preconditioning; `precond.denoiser` binds weights and condition.

    The model of a phase process is no denoiser: `precond.velocity` binds it.
    """

    network: Network
    precond: Precond | PhasePrecond


class At(NamedTuple):
    """Where a solver step stands."""

    index: Array
    sigma: Array  # () or (B,): learned solvers place nodes per sample
    sigma_next: Array
    row: Any = None  # this step's coefficients
    noise: Callable[[int], Array] | None = None  # draw index -> standard normal like x
    known: Array | None = None  # x0 at sigma if already known (AFS, FSAL, ParaDiGMS)
    fresh: Array | None = None  # () bool, only in runs that begin inside a table: no history yet


def no_history(x, rows) -> None:
    """The history of a one-step solver."""
    del x, rows


def no_rows(sigmas: np.ndarray) -> None:
    """The table of a solver without coefficients."""
    del sigmas


def all_ones(sigmas: np.ndarray) -> tuple[int, ...]:
    """The plan of a solver that calls the network once a step: N ones for N+1 sigmas."""
    return (1,) * (len(sigmas) - 1)


def entry_itself(entry: Hashable) -> int:
    """Network calls of a plan whose entries are call counts."""
    return entry


class Solver(NamedTuple):
    """One step of a sampler. It never loops and never draws.

    What differs between steps as a number is a row of `table`, what differs as structure is `plan`.
    """

    step: Callable[..., tuple[Array, History]]  # (denoise, history, x, at, *, plan)
    init: Callable[[Array, Any], History] = no_history
    table: Callable[[np.ndarray], Any] = no_rows  # sigmas (N+1,) -> arrays (N, ...), host float64
    plan: Callable[[np.ndarray], tuple[Hashable, ...]] = all_ones
    evaluations: Callable[[Hashable], int] = entry_itself  # plan entry -> network calls
    repeats: bool = False  # whether levels may repeat, as rounding to few trained ones makes them
    steps: int | None = None  # the only number of steps it is made for; None: any
    guessed: bool = True  # whether a first call's x0 can be given (AFS): not where the step moves x before it


class Sampler(NamedTuple):
    """What a report evaluates: images from keys, at an exact cost."""

    nfe: int  # network calls per image
    generate: Callable[[Params, Frozen, Keys, Cond], Array]  # keys (B,), one per image -> (B,...)


def constant(step: int, seed: int) -> None:
    """The variant of a method whose steps all have one structure."""
    del step, seed


def keep(state: State, step: int) -> State:
    """The `advance` of a method without stages."""
    del step
    return state


class Method(NamedTuple):
    """One training algorithm; a teacher's training is one as well, so there is one loop."""

    init: Callable[[Key, Frozen], State]
    draw: Callable[[Key, Batch, Hashable], Draws]  # every random number of one step, as arrays
    update: Callable[..., tuple[State, Metrics]]  # (state, frozen, batch, draws, variant), pure
    weights: Callable[[State], Params]  # the product: EMA where the method has one, else raw
    samplers: Mapping[str, Sampler]
    variant: Callable[[int, int], Hashable] = constant  # (step, seed), on the host, static under jit
    advance: Callable[[State, int], State] = keep  # host side, between compiled steps
    # (variant, recorded) -> network evaluations of a step for an image: forward 1, gradient 3. Recorded:
    # its batch brings along what a `Recording` holds. None: not stated
    cost: Callable[[Hashable, bool], int] | None = None
    remarks: tuple[str, ...] = ()  # sentences for the report: what this training had, or had not
    # what is trained, before averaging: what other averages are of. None: as `weights`
    raw: Callable[[State], Params] | None = None


class Recording(NamedTuple):
    """What a method's training step asks of its teacher, as something that can be computed beforehand."""

    recipe: Mapping[str, Any]  # JSON: what the states depend on besides weights, latents and labels
    calls: int  # of the teacher, for one image
    states: Callable[[Frozen, Array, Cond], Array]  # (frozen, latents (B,...), cond) -> (B,S,...)


class Metric(NamedTuple):
    """A streaming statistic of images or features."""

    init: Callable[[], Any]
    update: Callable[..., Any]
    compute: Callable[[Any], dict[str, float]]


class Augment(NamedTuple):
    """Random changes of training images, and the labels that tell the network of them."""

    draw: Callable[[Key, int], Draws]  # (key, B) -> the numbers of B samples, (B,...) each
    apply: Callable[[Array, Draws], tuple[Array, Array]]  # images -> (changed images, labels (B,A))
    labels: int  # A: what the network's condition "augment" holds; zeros say "not changed"


def no_columns(made, batch, draws, features) -> dict[str, float]:
    """The measure of a task without columns of its own."""
    del made, batch, draws, features
    return {}


class Task(NamedTuple):
    """What a model is told of each image besides its label, made from the image itself.

    The last four are for reports: arrays of the host, images (N,H,W,C) in model units.
    """

    draw: Callable[[Key, Batch], Draws]  # every random number of a batch's conditions, (B,...) each
    cond: Callable[[Batch, Draws, Frozen], Cond]  # {"concat": (B,H,W,C'), "reference": (B,K), ...}
    guided: tuple[str, ...] = ("label",)  # conditions that dropout hides and guidance amplifies
    shown: Callable[[Batch, Draws], Array] | None = None  # the conditions as images
    pasted: Callable[[Array, Batch, Draws], Array] = lambda made, batch, draws: made  # as pictures show them
    # (made, batch, draws, features: images -> (N,D), or None) -> columns
    measure: Callable[..., dict[str, float]] = no_columns
    baselines: Callable[[Batch, Draws], Mapping[str, Array]] = lambda batch, draws: {}  # made without a network


class Adapter(NamedTuple):
    """How a student's trainable tree and the frozen base below it make its weights."""

    init: Callable[[Key, Params], PyTree]  # base -> trainable
    merge: Callable[[Params, PyTree], Params]  # (base, trainable) -> weights of the network


class Parts(NamedTuple):
    """What `runtime.assemble` hands to a method's `build(config, parts)`."""

    models: Mapping[str, Model]
    optimizers: Mapping[str, Any]  # optax.GradientTransformation by name
    shape: tuple[int, ...]  # of one image, (H,W,C), or of one point, (d,)
    labels: np.ndarray | None = None  # (K,) class shares of the data; None when unconditional
    schedule: Schedule | None = None
    objective: Any = None  # losses.matching.Objective of the teacher's process
    augment: Augment | None = None  # of training images; None: they stay as they are
    task: Task | None = None  # conditions besides the label; None: there are none
    adapter: Adapter | None = None  # of the student on its teacher; None: all its weights are trained


class Data(NamedTuple):
    """A data set as stored values with the code that maps them to model units and back.

    `encode` makes what is saved, shown and measured (uint8 for images); `decode` inverts it. Metrics
    see `decode(encode(x))` only, so real and generated images have passed the same quantiser.
    """

    name: str
    train: Any  # random access: len, [i] -> {"image": stored, "label": int}
    reference: Mapping[str, np.ndarray]  # {"image": (N,...) stored, "label": (N,)}: what metrics compare with
    classes: int  # 0 when there are no labels
    encode: Callable[[np.ndarray], np.ndarray]  # model units, float -> stored
    decode: Callable[[np.ndarray], np.ndarray]  # stored -> model units, float32
    fingerprint: str  # hash of the stored values
    shape: tuple[int, ...]
    exact: Params | None = None  # weights of the data's analytic denoiser, where there is one
    note: str = ""  # what sets this copy apart from the published data: its numbers do not compare with others


def expand(values: Array, like: Array) -> Array:
    """() or (B,) values with trailing axes of length one, to broadcast against `like` (B,...)."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim) if values.ndim else ())
