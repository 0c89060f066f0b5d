"""FID's Inception with weights by rule: resize protocols, every layer, features and logits."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.interop import inception
from fastdiff_jax.metrics import resizing
from fastdiff_jax.networks import vgg
from weight_rule import drawn, state

STEP = 13  # rows and columns of an input that the file keeps
RESIZES = {
    "half": resizing.half_pixel,
    "tf1": resizing.corner,
    "pil_bicubic": resizing.bicubic,
    "pil_bilinear": resizing.triangle,
}


def replay(golden):
    if golden.keys("rule_check"):
        rule(golden)
    if golden.keys("rs_"):
        resizes(golden)
    if golden.keys("inc_"):
        network(golden)


def rule(golden):
    """The weights themselves, so that a wrong rule is not taken for a wrong network."""
    seed, known = int(golden.input("rule_seed")), inception.shapes()
    names = [str(name) for name in golden.input("rule_check_names")]
    made = [drawn(name, known.get(name) or trunk_shape(name), seed) for name in names]
    np.testing.assert_array_equal([w.ravel()[:4] for w in made], golden.arrays["rule_check_first4"])
    golden.check("rule_check_first4", [w.ravel()[:4] for w in made], rtol=0)
    golden.check("rule_check_sum", [w.sum(dtype=np.float64) for w in made])


def trunk_shape(name):
    """Of VGG16's convolutions, and of the heads of its taps."""
    widths = vgg.DEFAULTS["channels"]
    if name.startswith("lin"):
        return (1, widths[int(name[3 : name.index(".")])], 1, 1)
    inner, known = 3, {}
    for layer, index in vgg.convolutions():
        outer = widths[int(layer.removeprefix("conv").partition("_")[0]) - 1]
        known |= {f"features.{index}.weight": (outer, inner, 3, 3), f"features.{index}.bias": (outer,)}
        inner = outer
    return known[name]


def channels_last(images):
    return np.asarray(images, np.float64).transpose(0, 2, 3, 1)


def channels_first(images):
    return np.asarray(images).transpose(0, 3, 1, 2)


def resizes(golden):
    images = channels_last(golden.input("rs_img"))
    for key in [key for key in golden.keys("rs_") if key != "rs_img"]:
        height, width = golden.arrays[key].shape[2:]
        weights = RESIZES[key.split("_", 2)[2]]
        made = channels_first(resizing.resized(jnp.asarray(images), height, width, weights))
        if "pil" in key:  # float32 between the passes
            golden.check(key, np.clip(made, 0, 255), rtol=0, atol=1e-3)
        else:
            golden.check(key, made)


def network(golden):
    seed = int(golden.input("rule_seed"))
    images = jnp.asarray(channels_last(golden.input("inc_images")))
    params = inception.from_state(state(inception.shapes(), seed))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    net = registry.load("networks", "inception")({}, (299, 299, 3), 0)
    means = [key.removeprefix("inc_mean_") for key in golden.keys("inc_mean_")]

    @jax.jit
    def run(params, inputs):
        levels = jnp.zeros(len(inputs), inputs.dtype)
        logits, taps = net.apply(params, inputs, levels, {}, taps=(*means, "pool", "unbiased"))
        return logits, {name: taps[name].mean((1, 2)) for name in means}, taps["pool"], taps["unbiased"]

    protocols = [key.split("_")[2] for key in golden.keys("inc_resized_")]
    for protocol in protocols:
        inputs = resizing.network_input(images, protocol)
        kept = inputs if protocol != "clean" else resizing.PROTOCOLS[protocol].resize(images)
        exact = dict(rtol=1e-9) if protocol != "clean" else dict(rtol=0, atol=1e-3)
        golden.check(f"inc_resized_{protocol}_sub", channels_first(kept)[:, :, ::STEP, ::STEP], **exact)
        logits, layers, pool, unbiased = run(params, inputs)
        exact = dict(rtol=1e-9) if protocol != "clean" else dict(rtol=0, atol=1e-4)
        for key, value in {"pool": pool, "logits": logits, "logits_unbiased": unbiased}.items():
            if f"inc_{key}_{protocol}" in golden.arrays:
                golden.check(f"inc_{key}_{protocol}", value, **exact)
        if protocol == "fid":
            for name in means:
                golden.check(f"inc_mean_{name}", layers[name])
