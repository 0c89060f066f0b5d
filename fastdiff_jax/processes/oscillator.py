"""The damped oscillator in closed form: what momentum does to a diffusion process.

    x'' + 2 zeta w x' + w^2 x = sqrt(4 zeta w^3) dW,    x(0) = x0, x'(0) = 0

in the clock b = w tau. Its mean is the scale of FDM; critically damped (zeta = 1) it is the process of CLD.
The forcing makes (x, x') stationary with covariance diag(1, w^2). zeta, the damping, is a Python number.
"""

import math
import numbers

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Array

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def waves(b: Array, damping: float) -> tuple[Array, Array]:
    """e^(-zeta b) (c, q), elementwise: the even and the odd solution, damped.

        zeta < 1: c = cos(k b), q = sin(k b) / k;    zeta = 1: c = 1, q = b;    zeta > 1: cosh, sinh
        k = sqrt(|1 - zeta^2|)

    Raises: ValueError if the damping is not positive.
    """
    check_positive("damping", damping)
    k = math.sqrt(abs(1 - damping**2))
    if damping == 1:
        return jnp.exp(-b), b * jnp.exp(-b)
    if damping < 1:
        return jnp.exp(-damping * b) * jnp.cos(k * b), jnp.exp(-damping * b) * jnp.sin(k * b) / k
    slow = jnp.exp(-b / (damping + k))  # zeta - k = 1 / (zeta + k); the product of both would overflow
    return slow * (1 + jnp.exp(-2 * k * b)) / 2, slow * -jnp.expm1(-2 * k * b) / (2 * k)


def response(b: Array, damping: float = 1.0) -> Array:
    """The mean of x from x0 = 1 at rest: e^(-b) (1 + b) if critically damped. Elementwise.

    Critical damping decays fastest among those that never change sign.
    Raises: ValueError as `waves`.
    """
    even, odd = waves(b, damping)
    return even + damping * odd


def transition(b: Array, frequency: float = 1.0, damping: float = 1.0) -> Array:
    """(..., 2, 2) matrix that takes the mean of (x, x') from clock 0 to b (...).

        Phi = e^(-zeta b) [[c + zeta q, q / w], [-w q, c - zeta q]]

    Args:
      frequency: w, positive.
    Raises: ValueError as `waves`, and for another frequency.
    """
    check_positive("frequency", frequency)
    even, odd = waves(b, damping)
    top = [even + damping * odd, odd / frequency]
    return matrix(top, [-frequency * odd, even - damping * odd])


def covariance(b: Array, frequency: float = 1.0, damping: float = 1.0) -> Array:
    """(..., 2, 2) covariance of (x, x') at clock b (...) >= 0 from a fixed start.

        C - Phi C Phi^T,    C = diag(1, w^2)

    At small b that difference cancels; the same as integrals, positive throughout, over e = e^(-zeta s) (c, q):

        Var x = 4 zeta int_0^b e_q^2 ds,    Var x' = 4 zeta w^2 int_0^b (e_c - zeta e_q)^2 ds

    Critically damped, they are `critical`.
    Raises: ValueError as `transition`.
    """
    check_positive("frequency", frequency)
    b = jnp.asarray(b)
    if damping == 1:
        position, mixed, velocity = critical(b)
        return matrix([position, frequency * mixed], [frequency * mixed, frequency**2 * velocity])
    even, odd = waves(b, damping)
    early = b < 1 / (1 + damping)
    points = jnp.where(early, b, 0.0)[..., None] * jnp.asarray((1 + NODES) / 2, b.dtype)
    there, half = waves(points, damping), jnp.where(early, b, 0.0) / 2

    def integral(values):
        return 4 * damping * half * jnp.sum(values**2 * jnp.asarray(WEIGHTS, b.dtype), axis=-1)

    position = integral(there[1])
    velocity = integral(there[0] - damping * there[1])
    position = jnp.where(early, position, 1 - (even + damping * odd) ** 2 - odd**2)
    velocity = jnp.where(early, velocity, 1 - (even - damping * odd) ** 2 - odd**2)
    mixed = 2 * damping * frequency * odd**2
    return matrix([position, mixed], [mixed, frequency**2 * velocity])


def critical(b: Array) -> tuple[Array, Array, Array]:
    """Var x, Cov(x, x') / w and Var x' / w^2 at clock b (...) from a fixed start, critically damped.

        P(3, 2b) = 1 - e^(-2b) (1 + 2b + 2b^2),    2 b^2 e^(-2b),    1 - e^(-2b) (1 - 2b + 2b^2)

    with the regularised incomplete gamma function P. Nothing is subtracted that nearly cancels.
    """
    b = jnp.asarray(b)
    decay = jnp.exp(-2 * b)
    return _incomplete_gamma(2 * b), 2 * b**2 * decay, -jnp.expm1(-2 * b) + decay * (2 * b - 2 * b**2)


def _incomplete_gamma(y):
    """P(3, y) = 1 - e^(-y) (1 + y + y^2 / 2), elementwise."""
    # jax.scipy's loops, and in float32 it is off by 5e-6, this by 5e-7; CLD's determinant multiplies that by 4.
    small = jnp.where(y < 1.5, y, 0.0)
    total = jnp.zeros_like(y)
    for k in range(21, 2, -1):  # y^3 / 3! + y^4 / 4! + ..., by Horner's scheme
        total = 6 / math.factorial(k) + small * total
    series = small**3 / 6 * jnp.exp(-small) * total
    return jnp.where(y < 1.5, series, -jnp.expm1(-y) - jnp.exp(-y) * (y + y**2 / 2))


def heavy_ball(step: float, count: int) -> tuple[float, np.ndarray]:
    """What the oscillator is the limit of: gradient descent with momentum, critically damped; host float64.

        x_{k+1} = (1 - step + gamma) x_k - gamma x_{k-1},    x_{-1} = x_0 = 1,    gamma = (1 - sqrt(step))^2

    A diffusion step is one step of stochastic gradient descent on a quadratic; this gives it momentum.

    Args:
      step: in (0, 1); step = (w h)^2 for time steps h.
    Returns: gamma, and x_0, ..., x_count in closed form, (1 - sqrt(step))^k (1 + k sqrt(step)).
    Raises: ValueError for a step outside (0, 1).
    """
    if not 0 < step < 1:
        raise ValueError(f"the step of a heavy ball is in (0, 1); got {step}.")
    root, k = math.sqrt(step), np.arange(count + 1)
    return (1 - root) ** 2, (1 - root) ** k * (1 + k * root)


def check_positive(name: str, value: float) -> None:
    """Raises: ValueError, naming it, for a number that is not positive and finite."""
    if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
        raise ValueError(f"{name} must be positive and finite; got {value}.")


def matrix(top, bottom) -> Array:
    """(..., 2, 2) of two rows of two (...)."""
    return jnp.stack([jnp.stack(top, -1), jnp.stack(bottom, -1)], -2)
