"""Models of M discrete noise levels: their betas, the continuous map through them, and lists of labels.

Label t = 0..M-1 is the level abar_t = prod_{k<=t} (1 - beta_k); in EDM coordinates that is
sigma_t = sqrt(1 / abar_t - 1).
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from fastdiff_jax.types import Array, Process

STEPS = 1000  # labels of the models in the field


def linear(beta_0: float = 1e-4, beta_1: float = 0.02, steps: int = STEPS) -> np.ndarray:
    """(M,) betas evenly spaced, both ends included (DDPM, arXiv:2006.11239, section 4)."""
    return np.linspace(beta_0, beta_1, steps)


def scaled_linear(beta_0: float = 0.00085, beta_1: float = 0.012, steps: int = STEPS) -> np.ndarray:
    """(M,) betas whose roots are evenly spaced; Stable Diffusion (arXiv:2112.10752) with the default ends."""
    return np.linspace(np.sqrt(beta_0), np.sqrt(beta_1), steps) ** 2


def cosine(steps: int = STEPS, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """(M,) betas of a squared-cosine abar (improved DDPM, arXiv:2102.09672, eq. 17).

    beta_k = min(1 - g(k+1) / g(k), largest),   g(k) = cos^2(pi/2 (k/M + offset) / (1 + offset))
    """
    g = np.cos(np.pi / 2 * (np.arange(steps + 1) / steps + offset) / (1 + offset)) ** 2
    return np.minimum(1 - g[1:] / g[:-1], largest)


BETAS = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


def alphas_cumprod(
    betas: str = "scaled_linear",
    steps: int = STEPS,
    beta_0: float | None = None,
    beta_1: float | None = None,
    zero_snr: bool = False,
) -> np.ndarray:
    """(M,) abar, decreasing, host float64.

    Args:
      betas: one of BETAS.
      beta_0, beta_1: first and last beta, for the schedules that have them; None for their defaults.
      zero_snr: `rescaled`, without the last level, which has no EDM coordinates: (M-1,), labels as they were.
        So near to noise alone a network should predict v or the image.
    Raises: ValueError for an unknown schedule, fewer than two steps, and ends not in 0 < beta_0 <= beta_1 < 1.
    """
    if betas not in BETAS:
        raise ValueError(f"no betas {betas!r}; known: {', '.join(BETAS)}.")
    if steps < 2 or steps != int(steps):
        raise ValueError(f"a discrete model has a whole number of levels, at least 2; got {steps}.")
    ends = {"beta_0": beta_0, "beta_1": beta_1}
    ends = {name: value for name, value in ends.items() if value is not None}
    if betas == "cosine" and ends:
        raise ValueError(f"cosine betas have no ends to choose; drop {', '.join(ends)}.")
    found = BETAS[betas](steps=steps, **ends)
    if not (found > 0).all() or not (found < 1).all() or found[0] > found[-1]:
        raise ValueError(
            f"betas need 0 < beta_0 <= beta_1 < 1; got {found[0]:g} and {found[-1]:g} for {betas}."
        )
    abar = np.cumprod(1 - found)
    return rescaled(abar)[:-1] if zero_snr else abar


def rescaled(abar: np.ndarray) -> np.ndarray:
    """(M,) abar of zero terminal signal: r = sqrt(abar) shifted to end at 0 and scaled to begin as before.

        r_t -> (r_t - r_T) r_0 / (r_0 - r_T)

    The last level is then noise alone, sigma = inf: `process` refuses it.

    Source: Lin et al. 2023 (arXiv:2305.08891), Alg. 1.
    """
    root = np.sqrt(np.asarray(abar, np.float64))
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def sigmas(abar: np.ndarray) -> np.ndarray:
    """sqrt(1 / abar - 1): the levels of cumulated alphas in EDM coordinates, host float64."""
    abar = np.asarray(abar, np.float64)
    return np.sqrt((1 - abar) / abar)


def process(abar: np.ndarray) -> Process:
    """The discrete levels as a process in tau = (t + 1) / M, so that label t is at M tau - 1.

    ln alpha is the piecewise linear function through ln alpha(k/M) = ln(abar_{k-1}) / 2, k = 1..M, and goes on
    with the slopes of its outermost pieces. sigma = sqrt(exp(-2 ln alpha) - 1) and its inverse follow.
    Below tau = 1/M that may pass ln alpha = 0, beyond which there is no level: NaN.

    Args:
      abar: (M,) cumulated alphas, host values; M at least 2.
    Raises: ValueError unless 1 > abar_0 > abar_1 > ... > 0. Levels at infinite sigma have no EDM coordinates.
    """
    abar = np.asarray(abar, np.float64)
    if abar.ndim != 1 or len(abar) < 2:
        raise ValueError(f"cumulated alphas are (M,) with M at least 2; got shape {abar.shape}.")
    if abar[-1] == 0:
        raise ValueError(
            f"level {len(abar) - 1} is noise alone, abar = 0, without EDM coordinates; cut it off, abar[:-1]."
        )
    if not (abar[0] < 1 and abar[-1] > 0 and (np.diff(abar) < 0).all()):
        raise ValueError(
            f"cumulated alphas must decrease strictly within (0, 1); got {abar[0]:g} to {abar[-1]:g}."
        )
    steps, knots = len(abar), np.log(abar) / 2
    slopes = np.diff(knots)  # differences made in float64, whatever the precision they are used in

    def pieces(index, dtype):
        return (jnp.asarray(table, dtype)[index] for table in (knots, slopes))

    def log_alpha(tau):
        tau = floating(tau)
        label = steps * tau - 1
        index = jnp.clip(jnp.floor(label), 0, steps - 2).astype(jnp.int32)
        knot, slope = pieces(index, tau.dtype)
        return knot + (label - index) * slope

    def sigma(tau):
        return jnp.sqrt(jnp.expm1(-2 * log_alpha(tau)))

    def inverse(sigma):
        sigma = floating(sigma)
        level = -jnp.log1p(sigma**2) / 2
        above = jnp.searchsorted(
            jnp.asarray(-knots, sigma.dtype), -level, side="right", method="compare_all"
        )
        index = jnp.clip(above - 1, 0, steps - 2)
        knot, slope = pieces(index, sigma.dtype)
        return (index + (level - knot) / slope + 1) / steps

    return Process(lambda tau: jnp.exp(log_alpha(tau)), sigma, inverse, 1 / steps, 1.0)


def clock(abar: np.ndarray) -> Callable[[Array], Array]:
    """sigma -> label of the levels abar (M,), continued between them as by `process`."""
    steps, inverse = len(abar), process(abar).inverse
    return lambda sigma: steps * inverse(sigma) - 1


def looked_up(labels: Array, grid: np.ndarray) -> Array:
    """Index in the list `grid` (K,) of each label; the last entry's, K - 1, of those that it does not hold.

    How diffusers' solvers find the level that they add noise of (arXiv:2406.02347, the authors' code).
    """
    same = jnp.asarray(labels)[..., None] == jnp.asarray(grid)
    return jnp.where(same.any(-1), same.argmax(-1), len(grid) - 1)


def floating(values) -> Array:
    """`values` as a jax array of a float dtype, their own if they have one."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def labels(spacing: str, steps: int, train: int = STEPS, offset: int = 0) -> np.ndarray:
    """(N,) decreasing labels of a sampler of N steps on a model of M = `train` labels.

        trailing: round(M - k M / N) - 1,     leading: (N - 1 - k) (M // N) + offset,
        linspace: round((M - 1) (1 - k / (N - 1))),     k = 0..N-1
        lcm: s (50 - floor(50 k / N)) - 1, s = M // 50

    Half-way cases round to the even number, as numpy does, of values as diffusers sums them up (trailing ones
    differ in places, N = 48 and 96 say, from M - k M / N rounded). The last is what diffusers' sampler of
    latent consistency models (arXiv:2310.04378) has by default, whose students know 50 labels; N is at most 50.

    Args:
      offset: of leading labels; diffusers' `steps_offset`.
    Raises: ValueError for an unknown spacing, N not in 1..M (lcm: 1..50), and an offset that leaves the labels.
    """
    _check_steps(steps, train)
    if spacing == "lcm" and not steps <= LCM_LABELS <= train:
        raise ValueError(
            f"lcm labels are {LCM_LABELS} out of {train}; {steps} steps cannot be spaced so: use trailing."
        )
    if spacing not in SPACINGS:
        raise ValueError(f"no label spacing {spacing!r}; known: {', '.join(SPACINGS)}.")
    if offset and spacing != "leading":
        raise ValueError(f"only leading labels have an offset; got {offset} for {spacing}.")
    found = SPACINGS[spacing](steps, train) + offset
    if found[0] >= train or found[-1] < 0:
        raise ValueError(
            f"labels lie in 0..{train - 1}; {steps} leading ones with offset {offset} run from {found[0]} "
            f"to {found[-1]}: use another offset."
        )
    return found


def _trailing(steps, train):
    return np.arange(train, 0, -train / steps)[:steps].round().astype(np.int64) - 1  # diffusers' sums: ties


def _leading(steps, train):
    return np.arange(steps)[::-1] * (train // steps)


def _linspace(steps, train):
    return np.round(np.linspace(train - 1, 0, steps)).astype(np.int64)


def _lcm(steps, train):
    places = np.floor(np.linspace(0, LCM_LABELS, steps, endpoint=False)).astype(np.int64)
    return (train // LCM_LABELS) * (LCM_LABELS - places) - 1


LCM_LABELS = 50  # of the teacher's solver that latent consistency models learn to skip
SPACINGS = {"trailing": _trailing, "leading": _leading, "linspace": _linspace, "lcm": _lcm}


def pndm_labels(steps: int, train: int = STEPS) -> np.ndarray:
    """The official labels of PNDM: every s-th from 0 on, s = M // N, in falling order, and the end -1.

    They are N + 1, or more where N does not divide M. The level of label t is abar[floor(t) + 1]: that of
    the end is abar[0], and fractional labels share one, see `halfway`.

    Raises: ValueError for N not in 1..M.
    Source: Liu et al. 2022 (arXiv:2202.09778), the authors' code.
    """
    _check_steps(steps, train)
    return np.append(np.arange(0, train, train // steps)[::-1], -1)


def plms_labels(steps: int, train: int = STEPS, offset: int = 1) -> np.ndarray:
    """(N+1,) labels of diffusers' PNDM scheduler: offset + (N-1, ..., 1, 0) s, s = M // N, and one s further.

    The level of label t is abar[t], that of the negative end abar[0]. With offset 1 and N a divisor of M the
    levels are those of `pndm_labels`: one list of levels, two ways to tell the network.

    Raises: ValueError for N not in 1..M, and an offset that leaves the labels.
    """
    found = labels("leading", steps, train, offset)
    return np.append(found, found[-1] - train // steps)


def calls(labels: np.ndarray, plan: Sequence[int], whole: bool = False) -> np.ndarray:
    """The labels of a run's network calls, in order.

    A step from t to t' of one call makes it at t; one of two calls (improved Euler) at t, t'; one of four
    (Runge-Kutta) at t, m, m, t' with m = (t + t') / 2. PLMS's second label is repeated that way.

    Args:
      labels: (N+1,) labels with their end.
      plan: N counts of calls, `Solver.plan` of a PNDM solver.
      whole: round m down, as diffusers does; the official code passes the fraction on to the network.
    Raises: ValueError unless there is one plan entry a step, out of 1, 2 and 4.
    """
    if len(labels) != len(plan) + 1 or not set(plan) <= {1, 2, 4}:
        raise ValueError(
            f"N + 1 labels go with N steps of 1, 2 or 4 calls; got {len(labels)} labels and {tuple(plan)}."
        )
    found = []
    for high, low, count in zip(labels, labels[1:], plan):
        middle = (high + low) // 2 if whole else (high + low) / 2
        found += {1: [high], 2: [high, low], 4: [high, middle, middle, low]}[count]
    return np.array(found)


def places(levels: np.ndarray, abar: np.ndarray) -> np.ndarray:
    """(N+1,) indices of `levels` in the table abar (M,).

    Raises: ValueError if one of them is no level of the table.
    """
    table = sigmas(abar)
    found = np.abs(np.log(table) - np.log(np.maximum(levels, 1e-300))[:, None]).argmin(1)
    off = ~np.isclose(levels, table[found], rtol=1e-6, atol=0)
    if off.any():
        raise ValueError(
            f"{levels[off][0]:g} is no level of the discrete model, whose labels these steps need; use the "
            "schedule timesteps with the model's betas, spacing 'leading', offset 1 and zero=False."
        )
    return found


def halfway(abar: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """PNDM's official middle of a step from label t to t': levels (N+1,) -> (N,) of label floor((t + t') / 2).

    Raises: ValueError, when called, if a level is not in the table abar (M,).
    """

    def middles(levels):
        index = places(levels, abar)
        return sigmas(abar)[(index[:-1] + index[1:]) // 2]  # index t + 1 in the table, on both sides

    return middles


def halfway_twice(abar: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """diffusers' two middles of a step from t to t', s = t - t': levels (N+1,) -> (N,2).

    They are of the labels t - s // 2, where the first half step goes, and t' + s // 2, which the network is
    told; the latter is one less if s is odd.

    Raises: ValueError, when called, if a level is not in the table abar (M,).
    """

    def middles(levels):
        index = places(levels, abar)
        half = (index[:-1] - index[1:]) // 2
        return sigmas(abar)[np.stack([index[:-1] - half, index[1:] + half], 1)]

    return middles


def _check_steps(steps, train):
    if not 1 <= steps <= train or steps != int(steps):
        raise ValueError(
            f"a model of {train} labels is sampled in a whole number of steps from 1 to {train}; got {steps}."
        )
