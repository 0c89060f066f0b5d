"""Preconditioning: from a raw network to the `Denoiser` that solvers and losses see.

    D(x; sigma, cond) = c_skip x + c_out F(c_in x; c_noise, cond),    x = x0 + sigma eps
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.processes import cld as langevin
from fastdiff_jax.processes import discrete as processes
from fastdiff_jax.processes import fdm
from fastdiff_jax.processes.standard import vp as vp_process
from fastdiff_jax.processes.standard import vp_level
from fastdiff_jax.types import (
    Array,
    Coefficients,
    Cond,
    Denoiser,
    Model,
    Params,
    PhasePrecond,
    PhaseProcess,
    Precond,
    Process,
    expand,
)

C1, C2 = 0.001, 0.008  # improved-DDPM's floor on alpha ratios and its offset


def same(sigma: Array) -> Array:
    """The rounding of a model trained on a continuum of noise levels."""
    return sigma


def edm(sigma_data: float = 0.5) -> Precond:
    """Scalings that hold network input and training target at unit variance.

    Args:
      sigma_data: data standard deviation; 0.5 suits images in [-1, 1].
    Raises: ValueError if sigma_data is not positive.
    Source: Karras et al. 2022 (arXiv:2206.00364), Table 1, last column.
    """
    if sigma_data <= 0:
        raise ValueError(f"sigma_data is a standard deviation, so positive; got {sigma_data}.")

    def coefficients(sigma):
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        return Coefficients(skip=(sigma_data / total) ** 2, out=sigma * sigma_data / total,
                            inp=1 / total, noise=jnp.log(sigma) / 4)  # fmt: skip

    return Precond(coefficients, same, 0.0, float("inf"))


def vp(beta_d: float = 19.9, beta_min: float = 0.1, steps: int = 1000, eps: float = 1e-5) -> Precond:
    """Noise prediction on the VP process (arXiv:2206.00364, Table 1, first column); c_noise = (M-1) t."""
    process = vp_process(beta_d, beta_min, eps)

    def coefficients(sigma):
        ones = jnp.ones_like(sigma)
        return Coefficients(ones, -sigma, 1 / jnp.sqrt(sigma**2 + 1), (steps - 1) * process.inverse(sigma))

    low, high = (float(vp_level(t, beta_d, beta_min)) for t in (eps, 1.0))
    return Precond(coefficients, same, low, high)


def ve(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Precond:
    """Noise prediction on the VE process (arXiv:2206.00364, Table 1, second column)."""

    def coefficients(sigma):
        ones = jnp.ones_like(sigma)
        return Coefficients(ones, sigma, ones, jnp.log(sigma / 2))

    return Precond(coefficients, same, sigma_min, sigma_max)


def iddpm_table(steps: int = 1000, c1: float = C1, c2: float = C2) -> np.ndarray:
    """(M+1,) noise levels u_0 > ... > u_M = 0 of improved DDPM, host float64.

        u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, c1) - 1),   abar_j = sin^2(pi/2 j / (M (1 + c2)))

    Source: Karras et al. 2022 (arXiv:2206.00364), Table 1, third column.
    """
    alpha_bar = np.sin(np.pi / 2 * np.arange(steps + 1) / (steps * (1 + c2))) ** 2
    table = np.zeros(steps + 1)
    for j in range(steps, 0, -1):
        ratio = max(alpha_bar[j - 1] / alpha_bar[j], c1)
        table[j - 1] = np.sqrt((table[j] ** 2 + 1) / ratio - 1)
    return table


def iddpm(steps: int = 1000) -> Precond:
    """Noise prediction on improved DDPM's discrete levels; the network's learned variance is dropped.

    c_noise = M - 1 - j*, with j* the nearest entry of `iddpm_table`; `round` returns that entry.
    """
    table = iddpm_table(steps)

    def nearest(sigma):
        levels = jnp.asarray(table, jnp.result_type(float))
        return jnp.argmin(jnp.abs(jnp.asarray(sigma)[..., None] - levels), axis=-1)

    def coefficients(sigma):
        ones = jnp.ones_like(sigma)
        index = (steps - 1 - nearest(sigma)).astype(sigma.dtype)
        return Coefficients(ones, -sigma, 1 / jnp.sqrt(sigma**2 + 1), index)

    def rounded(sigma):
        return jnp.asarray(table, jnp.result_type(float))[nearest(sigma)]

    return Precond(coefficients, rounded, float(table[steps - 1]), float(table[0]))


def discrete(
    betas: str = "scaled_linear",
    beta_0: float | None = None,
    beta_1: float | None = None,
    steps: int = 1000,
    zero_snr: bool = False,
    prediction: str = "epsilon",
) -> Precond:
    """A discrete VP model, such as Stable Diffusion: `tabled` on the levels of betas.

    Args:
      betas, beta_0, beta_1, steps, zero_snr: as `processes.discrete.alphas_cumprod`; steps is M.
      prediction: one of PREDICTIONS.
    Raises: ValueError for bad betas, or another prediction.
    Source: Rombach et al. 2022 (arXiv:2112.10752), in the coordinates of arXiv:2206.00364, Table 1.
    """
    return tabled(processes.alphas_cumprod(betas, steps, beta_0, beta_1, zero_snr), prediction)


# What a discrete model's network predicts, as (c_skip, c_out) of sigma; r = sqrt(1 + sigma^2).
PREDICTIONS = {
    "epsilon": lambda sigma: (jnp.ones_like(sigma), -sigma),
    "v": lambda sigma: (1 / (1 + sigma**2), -sigma / jnp.sqrt(1 + sigma**2)),
    "x0": lambda sigma: (jnp.zeros_like(sigma), jnp.ones_like(sigma)),
}


def tabled(abar: np.ndarray, prediction: str = "epsilon") -> Precond:
    """A VP model of the levels abar (M,), whose label is continued between them.

        epsilon: c_skip = 1,    c_out = -sigma                 (the noise)
        v:       c_skip = 1 / r^2,  c_out = -sigma / r         (eps sqrt(abar) - x0 sqrt(1 - abar))
        x0:      c_skip = 0,    c_out = 1                      (the image)
        c_in = 1 / r,    r = sqrt(1 + sigma^2),    c_noise = M tau(sigma) - 1

    with the piecewise linear tau of `processes.discrete.process`: at a trained level, c_noise is its label.

    Raises: ValueError for another prediction, and for levels that do not fall within (0, 1).
    Source: Ho et al. 2020 (arXiv:2006.11239), eq. 11; v: Salimans and Ho 2022 (arXiv:2202.00512), section 4.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"a discrete model predicts {', '.join(PREDICTIONS)}; got {prediction!r}.")
    label, table = processes.clock(abar), processes.sigmas(abar)

    def coefficients(sigma):
        scalings = PREDICTIONS[prediction](sigma)
        return Coefficients(*scalings, 1 / jnp.sqrt(1 + sigma**2), label(sigma))

    return Precond(coefficients, same, float(table[0]), float(table[-1]), table)


def boundary(label: Array, scaling: float = 10.0, sigma_data: float = 0.5) -> tuple[Array, Array]:
    """(c_skip, c_out) that make a consistency function the identity at label 0, elementwise.

        c_skip = d^2 / (s^2 + d^2),    c_out = s / sqrt(s^2 + d^2),    s = scaling label,    d = sigma_data

    Source: Luo et al. 2023 (arXiv:2310.04378), after arXiv:2303.01469, appendix C.
    """
    total = (scaling * label) ** 2 + sigma_data**2
    return sigma_data**2 / total, scaling * label / jnp.sqrt(total)


def with_boundary(
    base: Precond, label: Callable[[Array], Array], scaling: float = 10.0, sigma_data: float = 0.5
) -> Precond:
    """`base` as a consistency function, with the scalings of `boundary` around it:

        f(x; sigma) = c_skip x / sqrt(1 + sigma^2) + c_out D(x; sigma)

    Args:
      label: sigma -> label, see `processes.discrete.clock`.
    """

    def coefficients(sigma):
        c, (skip, out) = base.coefficients(sigma), boundary(label(sigma), scaling, sigma_data)
        return c._replace(skip=skip / jnp.sqrt(1 + sigma**2) + out * c.skip, out=out * c.out)

    return base._replace(coefficients=coefficients)


def identity() -> Precond:
    """The network is the denoiser; it receives x and sigma as they are. For analytic teachers."""

    def coefficients(sigma):
        return Coefficients(jnp.zeros_like(sigma), *(jnp.ones_like(sigma),) * 2, sigma)

    return Precond(coefficients, same, 0.0, float("inf"))


def with_input_scale(base: Precond, process: Process) -> Precond:
    """`base` with the scale of a process as c_in, and no other change: FDM (arXiv:2306.06991).

        D(x; sigma) = c_skip x + c_out F(s(sigma) x; c_noise)

    Weights are tied to the scale that they were trained with. The range is what base and process share.
    """

    def coefficients(sigma):
        return base.coefficients(sigma)._replace(inp=process.scale(process.inverse(sigma)))

    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        low, high = (float(process.sigma(jnp.float64(t))) for t in (process.t_min, process.t_max))
    low, high = max(base.sigma_min, low), min(base.sigma_max, high)
    if not low < high:
        raise ValueError(
            f"the input scale's process ends where its preconditioner begins, or the other way round; it has "
            f"{float(process.sigma(process.t_min)):g} to {float(process.sigma(process.t_max)):g}, that "
            f"{base.sigma_min:g} to {base.sigma_max:g}."
        )
    return base._replace(coefficients=coefficients, sigma_min=low, sigma_max=high)


CLOCKS = {"t": same, "log": jnp.log}
MATCHINGS = ("hsm", "dsm")  # hybrid and denoising score matching


def cld(
    beta0: float = 4.0,
    beta1: float = 0.0,
    mass: float = 0.25,
    gamma: float = 0.04,
    numerical_eps: float = 1e-9,
    t_min: float = 1e-5,
    matching: str = "hsm",
    mixed_score: bool = True,
    noise: str = "t",
) -> PhasePrecond:
    """A network's part in CLD's velocity score, see `velocity` (arXiv:2112.07068).

    Args:
      beta0, beta1, mass, gamma, numerical_eps, t_min: as `processes.cld.process`.
      matching: the kernel whose noise is predicted: "hsm", averaged over the velocities that the process starts
        from, or "dsm", with these drawn.
      mixed_score: the network adds to the score of Gaussian velocities, which is known.
      noise: what the network is told: "t", or its logarithm "log".
    Raises: ValueError for another matching or noise, and what `processes.cld.process` refuses.
    """
    if noise not in CLOCKS:
        raise ValueError(f"a CLD network is told {' or '.join(CLOCKS)}; got noise {noise!r}.")
    if matching not in MATCHINGS:
        raise ValueError(f"CLD matches the score by {' or '.join(MATCHINGS)}; got {matching!r}.")
    process = langevin.process(beta0, beta1, mass, gamma, numerical_eps, t_min)
    return PhasePrecond(process, matching, CLOCKS[noise], mixed_score)


PRECONDS = {"edm": edm, "vp": vp, "ve": ve, "iddpm": iddpm, "discrete": discrete,
            "identity": identity}
PHASES = {"cld": cld}  # of models that are no denoisers


def build(config) -> Precond | PhasePrecond:
    """The preconditioner that `config.name` asks for; its other entries are arguments.

    An entry `input_scale`, the section of one of `processes.fdm.PROCESSES`, wraps it, see `with_input_scale`;
    it may be of another base process, for study.

    Raises: ValueError naming the known ones.
    """
    config = dict(config)
    scale = config.pop("input_scale", None)
    if scale is None:
        return registry.choose(PRECONDS | PHASES, config, "preconditioner")
    base = registry.choose(PRECONDS, config, "preconditioner")
    return with_input_scale(base, registry.choose(fdm.PROCESSES, scale, "input scale"))


def denoiser(model: Model, params: Params, cond: Cond = {}, dropout=None) -> Denoiser:
    """Binds weights and condition: (x (B,...), sigma () or (B,)) -> x0 (B,...).

    Raises: ValueError for the model of a phase process.
    """
    if isinstance(model.precond, PhasePrecond):
        raise ValueError("a model of CLD is no denoiser: train it with the objective cld, sample it as CLD.")

    def denoise(x, sigma):
        c = _coefficients(model, x, sigma)
        return _output(c, x, model.network.apply(params, expand(c.inp, x) * x, c.noise, cond, dropout=dropout))

    return denoise


class Velocity(NamedTuple):
    """A bound model of a phase process."""

    process: PhaseProcess
    matching: str  # "hsm" or "dsm": whether its kernel starts from drawn velocities or averages over them
    noise: Callable[[Array, Array], Array]  # (state (B,...,2C), t () or (B,)) -> alpha (B,...,C)

    def lower(self, t: Array) -> Array:
        """(..., 2, 2) Cholesky factor of the kernel that it was trained on."""
        return self.process.chol(t) if self.matching == "hsm" else self.process.chol(t, 0.0)

    def score(self, state: Array, t: Array) -> Array:
        """-l_t alpha (B,...,C): the gradient of the state's log density with respect to its velocity."""
        t = jnp.asarray(t, state.dtype)
        return -expand(langevin.precision(self.lower(t)), state) * self.noise(state, t)


def velocity(model: Model, params: Params, cond: Cond = {}, dropout=None) -> Velocity:
    """Binds weights and condition of a model of a phase process; F sees x and v side by side in its channels.

        alpha = F(x, v; c_noise), and if mixed, + v / (l_t Var v):    what the velocity's noise is predicted as

    Var v is the kernel's from x0 = 0 and v0 ~ N(0, gamma M), so a network of zeros is right at the end.

    Raises: ValueError for a model that is a denoiser.
    Source: Dockhorn et al. 2022 (arXiv:2112.07068), section 3.2 and appendix B.
    """
    if not isinstance(model.precond, PhasePrecond):
        raise ValueError("a denoiser has no velocity: the objective cld needs a model with precond cld.")
    process, matching, label, mixed = model.precond

    def noise(state, t):
        t = jnp.broadcast_to(jnp.asarray(t, state.dtype), state.shape[:1])
        alpha = model.network.apply(params, state, label(t), cond, dropout=dropout).astype(state.dtype)
        if mixed:
            share = 1 / (langevin.precision(bound.lower(t)) * langevin.velocity_variance(process.chol(t)))
            alpha = alpha + expand(share, state) * langevin.split(state)[1]
        return alpha

    bound = Velocity(process, matching, noise)
    return bound


def input_shape(model: Model, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a model's network takes for images of `shape`: twice the channels for a phase process."""
    return (*shape[:-1], 2 * shape[-1]) if isinstance(model.precond, PhasePrecond) else tuple(shape)


def tapped(model: Model, params: Params, cond: Cond, taps: Sequence[str], dropout=None) -> Callable:
    """As `denoiser`, and the network's features with it: (x, sigma) -> (x0, {tap: features (B,...)}).

    Raises: ValueError if no tap is named, or the network has not one that is.
    """
    if not taps:
        raise ValueError("a tapped denoiser needs the name of a tap; without features, use denoiser.")

    def denoise(x, sigma):
        c, taken = _coefficients(model, x, sigma), tuple(taps)
        raw, features = model.network.apply(
            params, expand(c.inp, x) * x, c.noise, cond, dropout=dropout, taps=taken
        )
        return _output(c, x, raw), features

    return denoise


def _coefficients(model, x, sigma):
    return model.precond.coefficients(jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1]))


def _output(c, x, raw):
    raw = raw[..., : x.shape[-1]]  # improved-DDPM networks also predict a variance
    return expand(c.skip, x) * x + expand(c.out, x) * raw.astype(x.dtype)
