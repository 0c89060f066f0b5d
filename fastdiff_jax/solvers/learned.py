"""GGDM: samplers with trained coefficients, a weight for every prediction and every earlier state.

    x_{i+1} = p_i D(x_i; level_i) + sum_j w_ij x_{i-j} + s_i n_i,    0 <= j <= i

Rows may be traced, so gradients reach them through `driver.sample`. The paper counts levels from k = 0 (clean)
to K (noise) and stays in the process's coordinates z = alpha x, whose noise is sigma = alpha sigma_edm:

    z_k = M[k,0] xhat(z_{k+1}) + sum_{u>k} M[k,u] z_u + s_k n_k,    k = K-1..0

Functions that take M (K,K+1), s (K,), alpha and sigma (K+1,) are in the paper's form; `from_vp` and `to_vp`
convert. Source: Watson et al. 2022 (arXiv:2202.05830), sections 3 and 4.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.solvers import multistep
from fastdiff_jax.solvers.driver import predict
from fastdiff_jax.types import Array, Params, Solver, expand

LEAST = 1e-3  # smallest spread that training starts at, in z: at zero itself the gradient vanishes


class Row(NamedTuple):
    """Coefficients of one step in EDM coordinates, or of all with a leading axis K."""

    prediction: Array  # () weight of xhat
    states: Array  # (h,) weights of the h latest states, newest first
    spread: Array | None = None  # () standard deviation of the noise; None: none is drawn
    level: Array | None = None  # () noise level that the network is told; None: the one it is at


def ggdm(coefficients: Row | None = None) -> Solver:
    """The sampler with these coefficients: K steps of one call; without any, DDIM on the levels that it gets.

    Args:
      coefficients: leading axes K, may be traced; states (K,h) with h <= K and zeros for j > i.
    Raises: ValueError for wrong shapes, and (unless traced) values that are not finite or weights on states
      that are not there yet, or a negative spread.
    """
    if coefficients is None:
        return Solver(step, empty, ddim_rows)
    steps = _checked(coefficients)

    def table(sigmas):
        if len(sigmas) != steps + 1:
            raise ValueError(f"these ggdm coefficients are for {steps} steps; got {len(sigmas) - 1}.")
        return coefficients

    return Solver(step, empty, table, steps=steps)


def empty(x: Array, rows: Row) -> Array:
    """(h,B,...) zeros: rows of the first steps do not weigh them."""
    return jnp.zeros((rows.states.shape[1], *x.shape), x.dtype)


def step(denoise, latest, x, at, *, plan):
    """One step of the family; the history is its latest states, newest first."""
    row = at.row
    if at.fresh is not None and len(latest) > 1:
        raise ValueError("ggdm weighs all earlier states, so a run cannot begin inside its table; drop start.")
    latest = jnp.concatenate([x[None], latest[:-1]])
    found = predict(denoise, x, at if row.level is None else at._replace(sigma=row.level))
    # Not a dot product, which accelerators may run in bfloat16.
    moved = row.prediction * found + (expand(row.states, latest) * latest).sum(0)
    if row.spread is None:
        return moved, latest
    if at.noise is None:
        raise ValueError("ggdm with a spread draws noise; pass noise, e.g. driver.per_image(keys, shape).")
    return moved + row.spread * at.noise(0), latest


def ddim_rows(sigmas: np.ndarray) -> Row:
    """DDIM as a member of the family; it weighs the current state only, so that is all it keeps."""
    ratio = sigmas[1:] / sigmas[:-1]
    return Row(1 - ratio, ratio[:, None])


def ddim_coefficients(
    alpha: np.ndarray, sigma: np.ndarray, eta: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """DDIM's M (K,K+1) and s (K,) in the paper's form; eta = 1 is DDPM's ancestral sampler.

        s_k = eta sigma_k sqrt(1 - (e_k / e_{k+1})^2),    e = sigma / alpha
        M[k,k+1] = sqrt(sigma_k^2 - s_k^2) / sigma_{k+1},    M[k,0] = alpha_k - alpha_{k+1} M[k,k+1]

    Raises: ValueError unless alpha is positive, noise grows with the level, and 0 <= eta <= 1.
    Source: Song et al. 2020 (arXiv:2010.02502), eq. 12 and 16.
    """
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    if alpha.ndim != 1 or alpha.shape != sigma.shape or len(alpha) < 2:
        raise ValueError(
            f"ggdm: alpha and sigma are (K+1,) for K >= 1 steps; got {alpha.shape} and {sigma.shape}."
        )
    sound = np.isfinite(alpha).all() and np.isfinite(sigma).all() and (alpha > 0).all() and sigma[0] >= 0
    if not sound or (np.diff(sigma / alpha) <= 0).any():
        raise ValueError(f"ggdm: alpha is positive and sigma / alpha rises; got {alpha} and {sigma}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"ggdm: eta is from 0 (DDIM) to 1 (DDPM); got {eta}.")
    edm, low = sigma / alpha, sigma[:-1]
    s = eta * low * np.sqrt(1 - (edm[:-1] / edm[1:]) ** 2)
    ratio, k = np.sqrt(low**2 - s**2) / sigma[1:], np.arange(len(low))
    m = np.zeros((len(low), len(low) + 1))
    m[k, k + 1], m[:, 0] = ratio, alpha[:-1] - alpha[1:] * ratio
    return m, s


def embedded(solver: Solver, sigmas: np.ndarray) -> Row:
    """A multistep solver as a member of the family, on levels (K+1,): rows with states (K,K), host float64.

    Its predictions of earlier steps are what those steps made of their states:

        D(x_q) = (x_{q+1} - sum_j w_qj x_{q-j}) / p_q

    Raises: ValueError for a solver that is not one of `multistep`, or ignores its newest prediction.
    """
    target = next((name for name, step in multistep.STEPS.items() if step is solver.step), None)
    if target is None:
        raise ValueError("ggdm starts as a multistep solver of one call a step, such as euler or dpmpp_2m.")
    table, steps = solver.table(sigmas), len(sigmas) - 1
    state, kept = np.eye(steps + 1), []  # as weights on the states; what the solver's history keeps
    prediction, states = np.zeros(steps), np.zeros((steps, steps))
    for i, (a, b) in enumerate(zip(table.a, table.b)):
        weights = a * state[i] + sum((b[j] * kept[i - j] for j in range(1, min(i + 1, len(b)))), 0 * state[i])
        prediction[i] = b[0] if target == "data" else -b[0] / sigmas[i]
        if target == "noise":
            weights = weights + b[0] / sigmas[i] * state[i]
        if prediction[i] == 0:
            raise ValueError(f"ggdm cannot start as a solver that ignores its prediction, as step {i} does.")
        found = (state[i + 1] - weights) / prediction[i]
        kept.append(found if target == "data" else (state[i] - found) / sigmas[i])
        states[i, : i + 1] = weights[i::-1]
    return Row(prediction, states)


def from_vp(m: Array, s: Array, alpha: Array) -> Row:
    """Rows (states (K,K)) in EDM coordinates from M (K,K+1), s (K,) and alpha (K+1,); M and s may be traced.

    Raises: ValueError for shapes that do not fit, and (unless traced) a weight on a state not there yet.
    """
    steps = len(s)
    if steps < 1 or m.shape != (steps, steps + 1) or np.shape(alpha) != (steps + 1,):
        raise ValueError(
            f"ggdm: M is (K,K+1), s (K,), alpha (K+1,) with K >= 1; got {m.shape}, {np.shape(s)}, "
            f"{np.shape(alpha)}."
        )
    known = _host(m)
    if known is not None and known[:, 1:][~_present(steps)].any():
        raise ValueError("ggdm: row k of M weighs column 0 and columns u > k only; others must be zero.")
    k, u, there = _places(steps)
    return Row(
        prediction=(m[:, 0] / alpha[:-1])[::-1],
        states=m[k, u] * (there * alpha[u] / alpha[k]),
        spread=(s / alpha[:-1])[::-1],
    )


def to_vp(rows: Row, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M (K,K+1) and s (K,) from rows in EDM coordinates; inverse of `from_vp`, on the host.

    Raises: ValueError as `ggdm`, or if alpha (K+1,) does not fit.
    """
    steps = _checked(rows)
    if np.shape(alpha) != (steps + 1,):
        raise ValueError(f"ggdm: alpha is (K+1,) for {steps} steps; got {np.shape(alpha)}.")
    states = np.asarray(rows.states, np.float64)
    states = np.pad(states, ((0, 0), (0, steps - states.shape[1])))
    k, u, there = _places(steps)
    m = np.zeros((steps, steps + 1))
    m[:, 0] = np.asarray(rows.prediction)[::-1] * alpha[:-1]
    m[np.broadcast_to(k, u.shape)[there], u[there]] = (states * alpha[k] / alpha[u])[there]
    s = np.zeros(steps) if rows.spread is None else np.asarray(rows.spread, np.float64)
    return m, s[::-1] * alpha[:-1]


def marginals(m: np.ndarray, s: np.ndarray, alpha: np.ndarray, sigma: np.ndarray):
    """What a sampler makes of a known image: z_k ~ N(a_k x0, c_k) if every xhat is x0; both (K+1,), host.

        a_k = M[k,0] + sum_u M[k,u] a_u,    C[k,v] = sum_u M[k,u] C[u,v],    C[k,k] = M_k C M_k + s_k^2

    from a_K = alpha_K, C[K,K] = sigma_K^2. DDIM and DDPM have a = alpha, c = sigma^2; trained ones need not.
    """
    steps = len(s)
    from_vp(m, s, alpha)  # its checks
    mean, covariance = np.zeros(steps + 1), np.zeros((steps + 1, steps + 1))
    mean[-1], covariance[-1, -1] = alpha[-1], sigma[-1] ** 2
    for k in reversed(range(steps)):
        weights = m[k, k + 1 :]
        mean[k] = m[k, 0] + weights @ mean[k + 1 :]
        shared = weights @ covariance[k + 1 :, k + 1 :]
        covariance[k, k + 1 :] = covariance[k + 1 :, k] = shared
        covariance[k, k] = shared @ weights + s[k] ** 2
    return mean, np.diag(covariance).copy()


def parameters(
    m: np.ndarray,
    s: np.ndarray,
    alpha: np.ndarray,
    sigma: np.ndarray,
    *,
    time: bool = False,
    pred: bool = False,
) -> Params:
    """Free numbers to train, from the sampler M, s on; in z, where all states are of one size.

        prediction (K,)          M[k,0]
        states (K (K+1) / 2,)    M[k,u], u > k, row by row
        spread (K,)              softplus^-1 of s_k, which starts at LEAST or above
        time (K,)                with `time`: logits of the levels told, see `coefficients`
        pred (K,2)               with `pred`: zeros, (a, b) of xhat = D + a z + b eps

    Raises: ValueError as `from_vp`.
    """
    from_vp(m, s, alpha)
    steps = len(s)
    found = {
        "prediction": m[:, 0],
        "states": m[:, 1:][_present(steps)],
        "spread": np.log(np.expm1(np.maximum(s, LEAST))),
    }
    if time:
        edm = (sigma / alpha)[::-1]
        found["time"] = np.log(-np.diff(np.append(edm[:-1], 0.0)) / edm[0])
    if pred:
        found["pred"] = np.zeros((steps, 2))
    return {name: jnp.asarray(value, jnp.result_type(float)) for name, value in found.items()}


def coefficients(params: Mapping[str, Array], alpha: np.ndarray, sigma: np.ndarray) -> Row:
    """Rows of the solver from `parameters`, differentiable in them.

    +TIME: the network is told  level_i = sigma_0 (w_i + .. + w_{K-1}),  w = softmax(time),  which falls from
    the first level to above zero whatever the logits. Inputs keep the scale of the level they are made for.
    +PRED: xhat = D + a z + b eps, with z = alpha x and eps = (x - D) / sigma_edm. Where M is free as well this
    adds no sampler; it lets the optimiser move prediction and current state together. Both are our reading.
    """
    steps = len(params["spread"])
    row, column = np.nonzero(_present(steps))
    m = jnp.zeros((steps, steps + 1), params["states"].dtype).at[:, 0].set(params["prediction"])
    m = m.at[row, column + 1].set(params["states"])
    found = from_vp(m, jax.nn.softplus(params["spread"]), alpha)
    edm = (sigma / alpha)[::-1]
    if "pred" in params:
        a, b = params["pred"].T
        a, b = a * alpha[:0:-1], b / edm[:-1]
        found = found._replace(
            prediction=found.prediction * (1 - b),
            states=found.states.at[:, 0].add(found.prediction * (a + b)),
        )
    if "time" in params:
        shares = jax.nn.softmax(params["time"])
        found = found._replace(level=edm[0] * jnp.cumsum(shares[::-1])[::-1])
    return found


def _present(steps):
    """(K,K) bool: whether level u = column + 1 is there when level k = row is made."""
    return np.triu(np.ones((steps, steps), bool))


def _places(steps):
    """Level made k (K,1) and level weighed u (K,K) of row i and column j, and whether that exists."""
    i, j = np.arange(steps)[:, None], np.arange(steps)
    k = steps - 1 - i
    return k, np.minimum(k + 1 + j, steps), j <= i


def _checked(rows):
    """The number of steps of coefficients that a sampler can have."""
    steps, shape = len(rows.prediction), np.shape(rows.states)
    if steps < 1 or len(shape) != 2 or shape[0] != steps or not 1 <= shape[1] <= steps:
        raise ValueError(
            f"ggdm coefficients are prediction (K,) and states (K,h), 1 <= h <= K; got "
            f"{np.shape(rows.prediction)} and {shape}."
        )
    for name, values in rows._asdict().items():
        known = None if values is None else _host(values)
        if values is not None and np.shape(values)[:1] != (steps,):
            raise ValueError(f"ggdm: {name} has {steps} rows as the prediction; got {np.shape(values)}.")
        if known is not None and not np.isfinite(known).all():
            raise ValueError(f"ggdm: {name} must be finite; got {known[~np.isfinite(known)][0]}.")
        if known is not None and name == "spread" and (known < 0).any():
            raise ValueError(f"ggdm: spread is a standard deviation, not negative; got {known.min()}.")
        if known is not None and name == "level" and (known <= 0).any():
            raise ValueError(f"ggdm: the network is undefined at level zero; got level {known.min()}.")
        if known is not None and name == "states" and np.triu(known, 1).any():
            raise ValueError("ggdm: row i weighs its i + 1 latest states only; others must be zero.")
    return steps


def _host(values):
    """The values if they are known, None while they are traced."""
    try:
        return np.asarray(values)
    except jax.errors.TracerArrayConversionError:
        return None


SOLVERS = {"ggdm": ggdm}
ORDERS = {"ggdm": 1}  # of its default, DDIM
