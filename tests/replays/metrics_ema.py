"""Averages of weights: EDM's half-life, and EDM2's power functions with their reconstruction."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import averages, trees

BATCH = 128  # images a step of the recorded power-function averages
HALF_LIFE, HALF_LIFE_BATCH, RAMP = 500e3, 512, 0.05  # of the recorded half-life decays


def replay(golden):
    if not golden.keys("ema_"):
        return
    replay_widths(golden)
    replay_decays(golden)
    args = golden.input("ema_corr_args")
    gammas = [[averages.exponent(s) for s in args[:, column]] for column in (1, 3)]
    golden.check("ema_corr", averages.overlap(args[:, 0], gammas[0], args[:, 2], gammas[1]))
    replay_run(golden)


def replay_widths(golden):
    found = [averages.exponent(s) for s in golden.input("ema_sigma_rel")]
    golden.check("ema_gamma", found)
    golden.check("ema_sigma_back", [averages.width(gamma) for gamma in found])


def replay_decays(golden):
    times = jnp.asarray(golden.input("ema_beta_t_next"))
    gammas = [averages.exponent(s) for s in golden.input("ema_sigma_rel")]
    betas = [1 - averages.share(times, BATCH, gamma) for gamma in gammas]
    golden.check("ema_beta", betas, rtol=1e-12)
    seen = jnp.asarray(golden.input("ema_hl_cur"))
    decay = jax.vmap(lambda images: trees.half_life_beta(images, HALF_LIFE_BATCH, HALF_LIFE, RAMP))
    golden.check("ema_hl_beta", decay(seen), rtol=1e-12)


def replay_run(golden):
    """The recorded iterates as the weights of a run: averages tracked, snapshots, reconstruction."""
    start, iterates = jnp.asarray(golden.input("ema_theta0")), jnp.asarray(golden.input("ema_theta"))
    steps = jnp.arange(1, len(iterates) + 1, dtype=iterates.dtype)

    def tracked(gamma):
        def step(average, now):
            count, latest = now
            average = averages.moved(average, latest, averages.share(count, 1.0, gamma))
            return average, average

        return jax.lax.scan(step, start, (steps, iterates))[1]

    gammas = [averages.exponent(s) for s in golden.input("ema_in_sigma")]
    times = golden.input("ema_snap_t")
    index = np.rint(times / BATCH).astype(int) - 1
    snapshots = jnp.stack([tracked(gamma)[index] for gamma in gammas], 1)
    golden.check("ema_snapshots", snapshots, rtol=1e-12)

    wanted = [averages.exponent(s) for s in golden.input("ema_out_sigma")]
    end, all_times, all_gammas = times.max(), np.repeat(times, len(gammas)), np.tile(gammas, len(times))
    factors = [averages.coefficients(all_times, all_gammas, end, gamma) for gamma in wanted]
    golden.check("ema_coefs", np.stack(factors, 1))
    flat = [tree for pair in np.asarray(snapshots) for tree in pair]
    made = np.stack([averages.combined(one, flat, np.float64) for one in factors])
    golden.check("ema_recon", made, rtol=1e-10)
    direct = jnp.stack([tracked(gamma)[index[-1]] for gamma in wanted])
    golden.check("ema_direct", direct, rtol=1e-10)
    assert np.abs(made - direct).max() < 1e-3, "a reconstruction is near the average tracked at its width"
