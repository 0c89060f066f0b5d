"""CLD, critically damped Langevin dynamics (Dockhorn et al. 2022, arXiv:2112.07068).

    dx = (v / M) beta dt,    dv = -x beta dt - (Gamma / M) v beta dt + sqrt(2 Gamma beta) dW,    Gamma^2 = 4 M

in each coordinate of an image x with a velocity v of its own: noise enters the velocity only. It ends at
N(0, 1) x N(0, M). A state (B,...,2C) holds x and v side by side in the channels. In the clock
b = w int beta with w = 1 / sqrt(M), every kernel is a formula of b alone.
"""

import math

import jax.numpy as jnp

from fastdiff_jax.processes import oscillator
from fastdiff_jax.processes.oscillator import matrix
from fastdiff_jax.types import Array, PhaseProcess, expand


def process(
    beta0: float = 4.0,
    beta1: float = 0.0,
    mass: float = 0.25,
    gamma: float = 0.04,
    numerical_eps: float = 1e-9,
    t_min: float = 1e-5,
    t_max: float = 1.0,
) -> PhaseProcess:
    """CLD with beta(t) = beta0 + beta1 t and velocities that start as N(0, gamma M).

    Args:
      mass: M; the authors' code states 1 / M.
      gamma: share of the final velocity variance that the velocities start with.
      numerical_eps: added to both variances of every kernel; the authors' is 1e-9 for CIFAR-10, else 1e-6.
        At small t it dominates the determinant.
      t_min, t_max: the times that are trained.
    Raises: ValueError unless the mass is positive, gamma and numerical_eps are not negative, the betas grow the
      clock and 0 < t_min < t_max.
    """
    oscillator.check_positive("mass", mass)
    for name, value in (("gamma", gamma), ("numerical_eps", numerical_eps)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative; got {value}.")
    if not 0 < t_min < t_max < math.inf:
        raise ValueError(f"the process runs from t_min > 0 to a larger t_max; got {t_min} and {t_max}.")
    finite = math.isfinite(beta0) and math.isfinite(beta1)
    if not (finite and beta0 >= 0 and beta0 + beta1 * t_max >= 0 and beta0 + beta1 * t_max / 2 > 0):
        raise ValueError(
            f"beta0 + beta1 t must be finite, not negative and not zero throughout; got beta0 {beta0} and "
            f"beta1 {beta1}."
        )
    friction = 2 * math.sqrt(mass)

    def clock(t):
        return beta0 * t + beta1 * t**2 / 2

    def rate(t):
        return beta0 + beta1 * jnp.asarray(t)

    def mean(t):
        return transition(clock(t) / math.sqrt(mass), mass)

    def chol(t, gamma=gamma):
        return factor(clock(t) / math.sqrt(mass), mass, gamma, numerical_eps)

    def drift(t):
        one = jnp.asarray([[0.0, 1 / mass], [-1.0, -friction / mass]])
        return rate(t)[..., None, None] * one

    def diffusion(t):
        one = jnp.asarray([[0.0, 0.0], [0.0, math.sqrt(2 * friction)]])
        return jnp.sqrt(rate(t))[..., None, None] * one

    return PhaseProcess(mean, chol, drift, diffusion, clock, mass, gamma, numerical_eps, t_min, t_max)


def transition(b: Array, mass: float) -> Array:
    """(..., 2, 2) Phi(b) of the mean: e^(-b) [[1 + b, w b], [-b / w, 1 - b]]."""
    return oscillator.transition(b, math.sqrt(mass))  # x' = beta w^2 v: v's own frequency is 1 / w


def moments(b: Array, gamma: float = 0.0) -> tuple[Array, Array, Array, Array]:
    """Var x, w Cov(x, v), w^2 Var v and w^2 det of the kernel from v0 ~ N(0, gamma M), each (...).

        Qx = P(3, 2b),    Qxw = 2 b^2 e^(-2b),    Qw = 1 - e^(-2b) (1 - 2b + 2b^2)
        Qx + g b^2,    Qxw + g b (1 - b),    Qw + g (1 - b)^2,    g = gamma e^(-2b)
        w^2 det = Qx Qw - Qxw^2 + g (Qw b^2 - 2 Qxw b (1 - b) + Qx (1 - b)^2)

    Nothing is subtracted that nearly cancels. The textbook's Sigma = S - Phi (S - S0) Phi^T has no correct
    digit in float32 at small times, where Var x is about 4 b^3 / 3.
    """
    b = jnp.asarray(b)
    x, xw, w = oscillator.critical(b)
    g, rest = gamma * jnp.exp(-2 * b), 1 - b
    det = x * w - xw**2 + g * (w * b**2 - 2 * xw * b * rest + x * rest**2)
    return x + g * b**2, xw + g * b * rest, w + g * rest**2, det


def factor(b: Array, mass: float, gamma: float, eps: float, sign: float = 1.0) -> Array:
    """(..., 2, 2) lower Cholesky factor of the kernel's covariance at b (...), with eps on both variances.

        L11 = sqrt(Sxx),    L21 = Sxv / L11,    L22 = sqrt(det / Sxx)

    Args:
      sign: of Cov(x, v); -1 for velocities that are reversed.
    """
    x, xw, w, det = moments(b, gamma)
    root = math.sqrt(mass)
    det = mass * det + eps * (x + mass * w) + eps**2
    first = jnp.sqrt(x + eps)
    return matrix([first, jnp.zeros_like(first)], [sign * root * xw / first, jnp.sqrt(det) / first])


def covariance(process: PhaseProcess, t: Array, var_x: Array = 0.0, var_v: Array | None = None) -> Array:
    """(..., 2, 2) covariance at t (...) from independent x0 and v0, with the process's eps on both variances.

    Args:
      var_x, var_v: variances of x0 and v0, to broadcast with t; v0's is gamma M by default.
    """
    var_v = process.gamma * process.mass if var_v is None else var_v
    lower, phi = process.chol(t, 0.0), process.mean(t)
    start = jnp.stack(jnp.broadcast_arrays(jnp.asarray(var_x), jnp.asarray(var_v)), -1)
    # A sum of positive parts: noise met on the way, and what is left of the start.
    return multiply(lower, lower) + multiply(phi * start[..., None, :], phi)


def multiply(a: Array, b: Array) -> Array:
    """a b^T of (..., 2, 2) matrices, not in the reduced precision of accelerators' products."""
    return jnp.sum(a[..., :, None, :] * b[..., None, :, :], axis=-1)


def apply(a: Array, state: Array) -> Array:
    """The (2, 2) or (B, 2, 2) matrix on the (x, v) of a state (B,...,2C)."""
    x, v = split(state)
    a = jnp.asarray(a, state.dtype)
    rows = [expand(a[..., i, 0], x) * x + expand(a[..., i, 1], x) * v for i in range(2)]
    return jnp.concatenate(rows, -1)


def split(state: Array) -> tuple[Array, Array]:
    """x and v, each (B,...,C), of a state (B,...,2C)."""
    return tuple(jnp.split(state, 2, axis=-1))


def perturb(process: PhaseProcess, x0: Array, t: Array, noise: Array, v0: Array | None = None) -> Array:
    """The state (B,...,2C) at t (B,) of images x0 (B,...,C): Phi (x0, v0) + L noise.

    Args:
      noise: (B,...,2C) standard normal.
      v0: (B,...,C) velocities to start from; None for what is drawn from N(0, gamma M) and averaged over.
    """
    start = jnp.concatenate([x0, jnp.zeros_like(x0) if v0 is None else v0], -1)
    lower = process.chol(t) if v0 is None else process.chol(t, 0.0)
    return apply(process.mean(t), start) + apply(lower, noise)


def precision(lower: Array) -> Array:
    """l_t = 1 / L22 (...): the kernel's velocity score is -l_t times the velocity's noise."""
    return 1 / lower[..., 1, 1]


def velocity_variance(lower: Array) -> Array:
    """Var v (...) of the covariance with lower factor (..., 2, 2)."""
    return lower[..., 1, 0] ** 2 + lower[..., 1, 1] ** 2
