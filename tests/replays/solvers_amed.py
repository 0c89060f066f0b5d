"""AMED: what the predictor says, samples of every kind of step with their calls, and training iterations."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdiff_jax import guidance, precond, registry
from fastdiff_jax.interop import names
from fastdiff_jax.methods import amed as method
from fastdiff_jax.networks import gmm
from fastdiff_jax.networks import nodes as predictors
from fastdiff_jax.networks.module import tapped
from fastdiff_jax.solvers import amed, driver, schedules
from fastdiff_jax.types import Model, Network, Parts

GMM = {"weights": "gmm_pi", "means": "gmm_mu", "scales": "gmm_s"}
CASE = re.compile(r"amed/sd([\d.]+)_st([\d.]+)/(\w+?)_n(\d+)(_afs)?/x0")
PREDICTION = re.compile(r"amed/sd([\d.]+)_st([\d.]+)/pred_t([\d.]+)_([\d.]+)")
TRAINING = re.compile(r"amed/train_(\w+)/teacher")
# Our kind and its options, the schedule, and the denoiser's thresholding, by the file's name of a solver.
RECORDED = {
    "amed": (dict(kind="amed"), "uniform", False),
    "euler": (dict(kind="euler"), "polynomial", False),
    "dpm": (dict(kind="dpm"), "polynomial", False),
    "ipndm": (dict(kind="ipndm", order=4), "polynomial", False),
    "dpmpp": (dict(kind="dpmpp", order=3), "logsnr", True),
    "dpmppeps": (dict(kind="dpmpp", order=2, target="noise"), "logsnr", False),
}
TEACHERS = {"amed": (dict(name="heun"), 1), "ipndm": (dict(name="ipndm_4"), 2)}  # and levels in between
TRAINED = {"amed": (0.01, 0.0), "ipndm": (0.01, 0.2)}  # scale_dir, scale_time
RATE = 5e-3


def replay(golden):
    latents = jnp.asarray(golden.input("latents"))
    params = {name: jnp.asarray(golden.input(key)) for name, key in GMM.items()}
    teacher = Model(watching(golden, params), precond.identity())
    denoisers = [compiled(method.observed(teacher, params, {}, "bottleneck", cut)) for cut in (False, True)]
    bind = functools.cache(functools.partial(bound, golden))
    for key in golden.keys("amed/"):
        if match := CASE.fullmatch(key):
            check_samples(golden, key, *match.groups(), latents, denoisers, bind)
        elif match := PREDICTION.fullmatch(key):
            check_prediction(golden, key, *map(float, match.groups()), latents)
        elif match := TRAINING.fullmatch(key):
            check_training(golden, f"amed/train_{match[1]}", match[1], latents, teacher, params)


def watching(golden, params):
    """The mixture with the file's toy bottleneck (B,64,3): tanh(x / sqrt(1 + t^2) Wb)."""
    mixture = gmm.build({"modes": len(params["weights"])}, params["means"].shape[1:])
    wb = jnp.asarray(golden.input("amed/Wb"))

    def apply(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        features = {"bottleneck": bottleneck(x / jnp.sqrt(1 + c_noise**2)[:, None], wb)}
        return tapped(mixture.apply(params, x, c_noise, cond), features, taps)

    return Network(mixture.init, apply)


def compiled(function):
    """`function` as one program, also where jit is off."""
    program = jax.jit(function)

    def call(*arguments):
        with jax.disable_jit(False):
            return program(*arguments)

    return call


def bottleneck(x, wb):
    return jnp.tanh(x @ wb).reshape(len(x), 3, -1).swapaxes(1, 2)


def schedule_of(golden, name):
    ends = dict(
        sigma_min=float(golden.input("sigma_min")), sigma_max=float(golden.input("sigma_max")), zero=False
    )
    makers = {
        "uniform": lambda: schedules.time(rho=1.0, **ends),
        "polynomial": lambda: schedules.polynomial(rho=7.0, **ends),
        "logsnr": lambda: schedules.logsnr(**ends),
    }
    return makers[name]()


def predictor(golden, scale_dir, scale_time):
    """The network with the recorded weights of the heads that it has."""
    network = predictors.build(dict(scale_dir=scale_dir, scale_time=scale_time), ())
    state = {key.removeprefix("amed/params/"): golden.input(key) for key in golden.keys("amed/params/")}
    width = state["enc_layer0.weight"].shape[1]
    template = jax.eval_shape(
        network.init, jax.random.key(0), jnp.zeros((1, width)), {"next": jnp.zeros(1)}
    )
    heads = {f"{layer}.{leaf}" for layer in template for leaf in ("weight", "bias")}
    params = names.from_state({key: state[key] for key in heads}, template)
    return network, jax.tree.map(jnp.asarray, params)


def bound(golden, scale_dir, scale_time):
    """The predictor with its weights, as one program, and the width of its features."""
    network, params = predictor(golden, scale_dir, scale_time)
    return compiled(method.nodes(network, params)), params["enc_layer0"]["kernel"].shape[0]


def check_prediction(golden, key, scale_dir, scale_time, t, t_next, latents):
    nodes, _ = bound(golden, scale_dir, scale_time)
    u = bottleneck(latents, jnp.asarray(golden.input("amed/Wb"))).mean(-1)
    level, lower = (jnp.full(len(u), value) for value in (t, t_next))
    chosen = nodes(u, level, lower)
    present = [chosen.share, *[chosen.slope] * (scale_dir > 0), *[chosen.level] * (scale_time > 0)]
    golden.check(key, jnp.stack(present, 1))
    for scale, value in ((scale_dir, chosen.slope), (scale_time, chosen.level)):
        assert scale or np.all(value == 1), "a head that is absent says 1"


def check_samples(golden, key, scale_dir, scale_time, name, stamps, afs, latents, denoisers, bind):
    settings, schedule, threshold = RECORDED[name]
    nodes, width = bind(float(scale_dir), float(scale_time))
    sigmas, calls = schedule_of(golden, schedule)(int(stamps) - 1), []
    solver = amed.amed(nodes=nodes, width=width, **settings)

    def counted(x, sigma):
        calls.append(1)
        return denoisers[threshold](x, sigma)

    x = sigmas[0] * latents
    known = guidance.gaussian_guess(x, sigmas[0]) if afs else None
    known = guidance.dynamic_threshold(known) if afs and threshold else known
    with jax.disable_jit():  # loops run in Python then, so that every call is counted
        golden.check(key, driver.sample(counted, solver, x, sigmas, known=known), rtol=0, atol=1e-9)
    made = key.removesuffix("x0") + "nfe"
    golden.check(made, len(calls), rtol=0)
    golden.check(made, driver.evaluations(solver, sigmas, bool(afs)), rtol=0)


def check_training(golden, at, name, latents, teacher, params):
    """One trajectory twice: step by step, with its gradients, and as the method's update."""
    settings, schedule, _ = RECORDED[name]
    (guide, extra), scales = TEACHERS[name], TRAINED[name]
    schedule, (network, weights) = schedule_of(golden, schedule), predictor(golden, *scales)
    tx, every = optax.adam(RATE), extra + 1
    steps = len(golden.arrays[f"{at}/teacher"])
    models = {"teacher": teacher, "predictor": Model(network, precond.identity())}
    parts = Parts(models, {"predictor": tx}, latents.shape[1:], schedule=schedule)
    options = dict(tap="bottleneck", steps=steps, teacher=guide, extra=extra, **settings)
    trained = method.build(options, parts)
    state = method.State(jnp.zeros((), jnp.int32), weights, tx.init(weights))
    after, metrics = jax.jit(trained.update, static_argnums=4)(
        state, {"teacher": params}, {}, {"latents": latents}, None
    )

    sigmas, fine = schedule(steps), schedule(steps * every)
    x, denoise = sigmas[0] * latents, method.observed(teacher, params, {}, "bottleneck")
    solver = registry.entries("solvers", "SOLVERS")[guide["name"]]()
    teach = jax.jit(lambda x: method.points(lambda x, t: denoise(x, t)[0], solver, x, fine, every))
    targets = teach(x)
    golden.check(f"{at}/teacher", targets)
    width = weights["enc_layer0"]["kernel"].shape[0]

    def student(weights):
        return amed.amed(nodes=method.nodes(network, weights), width=width, **settings)

    @jax.jit
    def taught(weights):
        known, own_path = guidance.gaussian_guess(x, sigmas[0]), settings["kind"] in method.OWN_PATH
        course = method.Course(x, sigmas, targets, known, own_path)
        return list(method.lessons(weights, tx.init(weights), tx, student, denoise, course))

    total = 0.0
    for step, lesson in enumerate(taught(weights)):
        golden.check(f"{at}/step{step}/loss", lesson.loss)
        golden.check(f"{at}/step{step}/student", lesson.reached)
        golden.check(f"{at}/step{step}/grad_fc_r", lesson.grads["fc_r"]["kernel"].T)
        golden.check(f"{at}/step{step}/grad_enc1", lesson.grads["enc_layer1"]["kernel"].T)
        total += lesson.loss
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-12)
    for found in (lesson.params, after.params):
        golden.check(f"{at}/final_fc_r", found["fc_r"]["kernel"].T)
        golden.check(f"{at}/final_map0", found["map_layer0"]["kernel"].T)
