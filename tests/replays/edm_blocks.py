"""The parts of the EDM networks alone: blocks, resampling convolutions, embeddings, preconditioners."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import precond
from fastdiff_jax.interop import names
from fastdiff_jax.networks.block import Block, Style
from fastdiff_jax.networks.embeddings import positional
from fastdiff_jax.networks.layers import Conv, downsample, upsample
from fastdiff_jax.processes import standard

STYLE = {"skip_scale": "skip_scale", "eps": "eps", "resample_proj": "project", "adaptive_scale": "adaptive",
         "dropout": "dropout"}  # fmt: skip


def replay(golden):
    for key in golden.keys():
        parts = key.split("/")
        if parts[-1] == "cfg":
            {"block": replay_block, "conv": replay_conv}[parts[0]](golden, "/".join(parts[:-1]))
    replay_embeddings(golden)
    replay_preconditioners(golden)


def replay_block(golden, case):
    config = golden.config(f"{case}/cfg")
    del config["in_channels"], config["emb_channels"]  # read from x and emb
    channels, taps = config.pop("out_channels"), taps_of(config)
    heads, width = config.pop("num_heads", None), config.pop("channels_per_head", 64)
    heads = (heads or channels // width) if config.pop("attention", False) else 0
    up, down = config.pop("up", False), config.pop("down", False)
    style = Style(taps=taps)._replace(**{STYLE[name]: value for name, value in config.items()})
    module = Block(channels, heads, up, down, style)
    apply_module(golden, case, module, taps, jnp.asarray(golden.input(f"{case}/emb")))


def replay_conv(golden, case):
    config = golden.config(f"{case}/cfg")
    taps, size = taps_of(config), config["kernel"]
    up, down = config.get("up", False), config.get("down", False)
    fused = config.get("fused_resample", False)
    if size:
        module = Conv(config["out_channels"], size, up, down, taps, fused)
        return apply_module(golden, case, module, taps)
    x = channels_last(golden.input(f"{case}/x"))
    stored = names.from_state(state_of(golden, case), {}, taps=taps)
    assert not stored
    y = upsample(x, taps) if up else downsample(x, taps)
    golden.check(f"{case}/y", channels_first(y))


def apply_module(golden, case, module, taps, *inputs):
    x = channels_last(golden.input(f"{case}/x"))
    template = jax.eval_shape(module.init, jax.random.key(0), x, *inputs)["params"]
    params = names.from_state(state_of(golden, case), template, taps=taps)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
    y = jax.jit(module.apply)({"params": params}, x, *inputs)
    golden.check(f"{case}/y", channels_first(y))


def replay_embeddings(golden):
    t = jnp.asarray(golden.input("emb/t"))
    for key in golden.keys("emb/pos_"):
        *kind, channels = key.removeprefix("emb/pos_").split("_")
        golden.check(key, positional(t, int(channels), endpoint=kind == ["endpoint"]))


def replay_preconditioners(golden):
    sigma = jnp.asarray(golden.input("precond/sigma"))
    for name in dict.fromkeys(key.split("/")[1] for key in golden.keys("precond/") if key.count("/") == 2):
        at = f"precond/{name}"
        steps = {"steps": len(golden.arrays[f"{at}/u"]) - 1} if name == "iddpm" else {}
        model = precond.PRECONDS[name](**steps)
        c = model.coefficients(sigma)
        for key, value in {"c_skip": c.skip, "c_out": c.out, "c_in": c.inp, "c_noise": c.noise}.items():
            golden.check(f"{at}/{key}", value)
        golden.check(f"{at}/round_sigma", model.round(sigma))
        golden.check(f"{at}/sigma_min_max", np.array([model.sigma_min, model.sigma_max]))
        if name == "vp":
            process = standard.vp()
            golden.check(f"{at}/sigma_inv", process.inverse(sigma))
            golden.check(f"{at}/sigma_of_t", process.sigma(jnp.asarray(golden.input(f"{at}/t"))))
        if name == "iddpm":
            golden.check(f"{at}/u", precond.iddpm_table(**steps))
            golden.check(f"{at}/index", steps["steps"] - 1 - c.noise, rtol=0)


def taps_of(config):
    return tuple(config.pop("resample_filter", (1, 1)))


def state_of(golden, case):
    prefix = f"{case}/params/"
    return {key.removeprefix(prefix): golden.input(key) for key in golden.keys(prefix)}


def channels_last(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def channels_first(x):
    return np.asarray(x).transpose(0, 3, 1, 2)
