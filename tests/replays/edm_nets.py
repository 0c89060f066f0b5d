"""Whole EDM U-Nets: raw outputs, denoisers under every preconditioner, weights by name both ways, snapshots."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.interop import names
from fastdiff_jax.networks import adm, song
from fastdiff_jax.runtime import converted
from fastdiff_jax.types import Model

NETWORKS = {"SongUNet": song.build, "DhariwalUNet": adm.build}
FIXTURES = ("edm_tiny_*.pkl",)


def replay(golden):
    for key in golden.keys():
        case, _, last = key.partition("/")
        if last == "cfg":
            replay_case(golden, case)
        elif last == "D" and case.startswith("pkl_"):
            replay_snapshot(golden, case)


def replay_snapshot(golden, case):
    """What a released file's network denoises, in double precision from its single-precision weights."""
    found = converted.read(golden.fixture(f"edm_tiny_{case.removeprefix('pkl_')}.pkl"))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), found.params)
    labels = golden.input(f"{case}/class_labels") if golden.keys(f"{case}/class_labels") else None
    x, sigma = (golden.input(f"{case}/{key}") for key in ("x", "sigma"))
    golden.check(f"{case}/D", converted.denoised(found.what, params, x, sigma, labels))


def replay_case(golden, case):
    config = golden.config(f"{case}/cfg")
    build, size = NETWORKS[config.pop("model_type")], config.pop("img_resolution")
    config.pop("label_dropout", None)  # a matter of training: the goldens have it off
    shape, classes = (size, size, config.pop("in_channels")), config.pop("label_dim", 0)
    network = build(config, shape, classes)
    x = jnp.asarray(golden.input(f"{case}/x").transpose(0, 2, 3, 1))
    template = jax.eval_shape(network.init, jax.random.key(0), x)
    taps = tuple(config.get("resample_filter", (1, 1)))

    prefix = f"{case}/params/"
    recorded = {key.removeprefix(prefix): golden.input(key) for key in golden.keys(prefix)}
    params = names.from_state(recorded, template, taps=taps)
    restored = names.to_state(params, taps=taps)
    assert restored.keys() == recorded.keys(), restored.keys() ^ recorded.keys()
    for name, value in restored.items():
        golden.check(prefix + name, value, rtol=1e-7)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

    conds = {"label": "class_labels", "augment": "augment_labels"}
    cond = {
        name: jnp.asarray(golden.input(f"{case}/{key}"))
        for name, key in conds.items()
        if golden.keys(f"{case}/{key}")
    }
    # Each program runs once or twice, so compiling is what costs.
    apply = jax.jit(network.apply, compiler_options={"xla_backend_optimization_level": 0})

    def check(key, value):
        golden.check(f"{case}/{key}", np.asarray(value).transpose(0, 3, 1, 2))

    levels = jnp.asarray(golden.input(f"{case}/noise_labels"))
    check("F", apply(params, x, levels, cond, dropout=None))
    compiled, sigma = network._replace(apply=apply), jnp.asarray(golden.input(f"{case}/sigma"))
    for key in golden.keys(f"{case}/D_"):
        _, name, *without = key.partition("/")[2].split("_")
        given = dict(cond)
        if without:
            given.pop({"nolabel": "label", "noaug": "augment"}[without[0]])
        model = Model(compiled, precond.PRECONDS[name]())
        check(key.partition("/")[2], precond.denoiser(model, params, given)(x, sigma))
