"""SFD: whole training runs with every kind of teacher, single iterations in full, SFD-v, the second stage."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import guidance, precond
from fastdiff_jax.losses import trajectory
from fastdiff_jax.methods import sfd
from fastdiff_jax.networks import gmm, mlp
from fastdiff_jax.precond import denoiser
from fastdiff_jax.runtime import optimizers
from fastdiff_jax.solvers import driver, nested, schedules
from fastdiff_jax.types import Model, Parts

GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
LEAVES = ("W1", "b1", "u", "v", "W2", "b2")
STAGES = {
    "stage2_plain": "stage1_n7",
    "stage2_v": "sfdv",
}  # whose final weights a second stage starts from


def settings_of(run: str, golden) -> dict:
    """What a run's name says of its settings, over the reference's defaults."""
    ends = {name: float(golden.input(name)) for name in ("sigma_min", "sigma_max")}
    found = {"schedule": {"name": "polynomial", "zero": False} | ends}
    numbers = [int(number) for number in re.findall(r"\d+", run)]
    if re.fullmatch(r"tea_dpmpp\d_eps", run):
        found["teacher"] = {"name": f"dpmpp_{numbers[0]}m", "target": "noise"}
    elif re.fullmatch(r"tea_dpmpp\d", run):
        found["teacher"] = {"name": f"dpmpp_{numbers[0]}m", "threshold": True}
    elif re.fullmatch(r"tea_ipndm\d", run):
        found["teacher"] = {"name": f"ipndm_{numbers[0]}"}
    elif run.startswith("tea_"):
        found["teacher"] = {"name": {"dpm": "dpm_2"}.get(run[4:], run[4:])}
    elif re.fullmatch(r"M\d+", run):
        found["extra"] = numbers[0]
    elif re.fullmatch(r"(stage1_)?n\d+", run):
        found["stamps"] = numbers[-1]
    elif run == "noafs":
        found["afs"] = False
    elif run == "sched_logsnr":
        found["schedule"] = {"name": "logsnr", "zero": False} | ends
    elif run.startswith("sched_"):
        name = {"uni": "time", "poly": "polynomial"}[run[6:].rstrip("0123456789")]
        found["schedule"] = {"name": name, "rho": float(numbers[0]), "zero": False} | ends
    elif run == "sfdv":
        drawn = golden.input("sfdv/num_steps").tolist()
        found |= {"stamps": sorted({4, 5, 6, 7, *drawn}), "conditioned": True}
    elif run in STAGES:
        found |= {"stamps": 3, "extra": 2, "teacher": {"name": "euler", "afs": True}}
        if run == "stage2_v":
            found["conditioned"], found["teacher"]["stamps"] = True, 7
    else:
        assert run in ("gmm_default", "mlp_default"), f"the replay does not know the run {run}"
    return found


def replay(golden):
    start = {leaf: jnp.asarray(golden.input(f"mlp/{leaf}")) for leaf in LEAVES}
    mixture = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    runs = dict.fromkeys(key.split("/")[0] for key in golden.keys() if key.endswith("/loss_hist"))
    finals = {}
    for run in sorted(runs, key=lambda run: run in STAGES):  # what they build on comes first
        if run in STAGES:
            begin = teacher = finals[STAGES[run]]
        else:
            begin, teacher = start, start if run == "mlp_default" else mixture
        finals[run] = replay_run(golden, run, begin, teacher)
    latents = jnp.asarray(golden.input("sample/latents"))
    for key in golden.keys("sample/"):
        if key != "sample/latents":
            run, stamps = re.fullmatch(r"sample/(.*)_n(\d+)", key).groups()
            replay_sample(golden, key, run, int(stamps), finals[run], latents)


def check(golden, key, value, tolerance=1e-10):
    """Checks with the specified tolerance: relative to values above one, absolute below."""
    scale = max(1.0, np.max(np.abs(golden.arrays[key])))
    golden.check(key, value, rtol=0.0, atol=tolerance * scale)


def perceptron(params) -> Model:
    size, hidden = params["W1"].shape
    network = mlp.build({"hidden": (hidden,), "stamps": "zero"}, (size,))
    return Model(network, precond.edm(0.5))


def condition(stamps, size) -> dict:
    return {} if stamps is None else {"stamps": jnp.full(size, float(stamps))}


def replay_run(golden, run, begin, teacher):
    latents = golden.input("latents")
    batch, settings, history = (
        latents.shape[1],
        settings_of(run, golden),
        golden.arrays[f"{run}/loss_hist"],
    )
    request = dict(name="adam", learning_rate=float(golden.input("lr")))
    if not run.startswith("stage"):
        request |= dict(decay="drop", final=0.1)
    tx = optimizers.build(request, batch, float(len(latents) * batch))
    student, analytic = perceptron(begin), "means" in teacher
    if analytic:
        above = Model(gmm.build({}, latents.shape[2:]), precond.identity())
    else:
        above = perceptron(teacher)
    parts = Parts({"student": student, "teacher": above}, {"student": tx}, latents.shape[2:])
    method = sfd.build(settings, parts)
    # Not by `init`, which gives a student that is told nothing no weights for it; here they lie idle.
    state = sfd.State(jnp.zeros((), jnp.int32), begin, tx.init(begin))
    update = jax.jit(method.update, static_argnums=4)
    losses, iteration = [], 0
    while len(losses) < len(history):
        stamps = settings.get("stamps", 4)
        if run == "sfdv":
            stamps = int(golden.input("sfdv/num_steps")[iteration])
        z = jnp.asarray(latents[iteration % len(latents)])
        if golden.keys(f"{run}/it{iteration}/"):
            images = float(iteration * batch)
            replay_iteration(
                golden, f"{run}/it{iteration}", settings, stamps, z, parts, state, teacher, images
            )
        draws = {"latents": z, "dropout": jax.random.key(0)}
        state, metrics = update(state, {"teacher": teacher}, {}, draws, stamps)
        losses += [metrics[f"loss_{k}"] for k in range(1, stamps)]
        iteration += 1
    check(golden, f"{run}/loss_hist", np.array(losses), 1e-9)
    for leaf in LEAVES:
        check(golden, f"{run}/final_{leaf}", state.params[leaf], 1e-9)
    return state.params


def replay_iteration(golden, at, settings, stamps, z, parts, state, teacher, images):
    """One iteration from the method's own pieces, so that everything in between is seen."""
    asked = sfd.Options(**settings)
    afs, extra, size = asked.afs, asked.extra, len(z)
    path = nested.path_of(schedules.build(settings["schedule"]), stamps, extra)
    walker = nested.teacher_of(asked.teacher)
    check(golden, f"{at}/t_steps", path.student)
    above = denoiser(parts.models["teacher"], teacher, condition(walker.stamps, size))
    x = path.student[0] * z
    passed = nested.targets(above, walker, x, path)
    check(golden, f"{at}/teacher", passed)
    check(golden, f"{at}/teacher_nfe", driver.evaluations(walker.solver, path.teacher, walker.afs))
    params, opt, tx = state.params, state.opt, parts.optimizers["student"]
    cond = condition(stamps if asked.conditioned else None, size)
    for k, (sigma, below) in enumerate(zip(path.student[:-1], path.student[1:])):
        step, calls = f"{at}/step{k}", []
        check(golden, f"{step}/x_in", x)
        known = guidance.gaussian_guess(x, sigma) if afs and k == 0 else None

        def loss(params):
            def watched(x, sigma):
                calls.append(sigma)
                return denoiser(parts.models["student"], params, cond)(x, sigma)

            y = trajectory.reached(watched, x, sigma, below, known)
            return trajectory.elements(y, passed[k]).sum() / size, y

        (value, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
        check(golden, f"{step}/student", y)
        check(golden, f"{step}/loss", value)
        check(golden, f"{step}/student_nfe", len(calls))
        x = y
        if known is not None:
            assert not any(np.any(grad) for grad in grads.values()), (
                "an analytical step trains nothing"
            )
            continue
        moves, opt = tx.update(grads, opt, params, images_seen=jnp.asarray(images))
        params = jax.tree.map(jnp.add, params, moves)
        for leaf in LEAVES:
            if f"{step}/grad_{leaf}" in golden.arrays:
                check(golden, f"{step}/grad_{leaf}", grads[leaf])
            else:
                assert leaf == "v" and not np.any(grads[leaf]), f"{step}: {leaf} has a gradient"
            check(golden, f"{step}/new_{leaf}", params[leaf], 1e-9)


def replay_sample(golden, key, run, stamps, params, latents):
    settings = settings_of(run, golden)
    path = nested.path_of(schedules.build(settings["schedule"]), stamps, 0)
    cond = condition(stamps if settings.get("conditioned") else None, len(latents))
    denoise = denoiser(perceptron(params), params, cond)
    check(golden, key, nested.walked(denoise, latents, path, settings.get("afs", True)))
