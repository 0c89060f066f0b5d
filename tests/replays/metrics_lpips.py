"""LPIPS in every variant, with the networks' weights by a rule that follows from their names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax import registry
from fastdiff_jax.interop import lpips
from fastdiff_jax.losses import perceptual
from weight_rule import drawn

KINDS = {
    "vgg": ("vgg", "standard"),
    "sfd": ("vgg", "sfd"),
    "cm": ("vgg", "cm"),
    "alex": ("alexnet", "standard"),
}


def weights(network, shapes, seed):
    """Trunk and heads by the rule."""
    names = dict(registry.load("networks", network, "convolutions")())
    trunk, heads = {}, {}
    for layer, leaves in shapes.items():
        height, width, inner, outer = leaves["kernel"].shape
        for leaf, shape in (("weight", (outer, inner, height, width)), ("bias", (outer,))):
            name = f"features.{names[layer]}.{leaf}"
            trunk[name] = drawn(name, shape, seed)
    widths = registry.load("networks", network, "DEFAULTS")["channels"]
    for index, width in enumerate(widths):
        name = lpips.head_name(index)
        heads[name] = drawn(name, (1, width, 1, 1), seed)
    return lpips.from_states(trunk, heads, network)


def tapped(net, taps, params, images):
    levels = jnp.zeros(len(images), images.dtype)
    return net.apply(params, images, levels, {}, taps=taps)[1]


def replay(golden):
    kinds = [kind for kind in KINDS if f"lp_{kind}" in golden.arrays]
    if not kinds:
        return
    seed = int(golden.input("rule_seed"))
    x, y = (
        golden.input(key).transpose(0, 2, 3, 1) / 127.5 - 1 for key in ("lp_img0", "lp_img1")
    )
    for kind in kinds:
        network, variant = KINDS[kind]
        options = {"pooling": perceptual.VARIANTS[variant].pooling} if network == "vgg" else {}
        net = registry.load("networks", network)(options, x.shape[1:], 0)
        taps = registry.load("networks", network, "TAPS")
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        params = weights(network, shapes, seed)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

        def total(x, y, params, net=net, taps=taps, variant=variant):
            features = partial(tapped, net, taps, params["trunk"])
            terms = perceptual.by_tap(features, params["heads"], x, y, variant)
            return sum(terms.values()).sum(), terms

        # All are arguments: of constants, the compiler would evaluate the network itself, slowly.
        (_, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(x, y, params)
        terms = np.stack([terms[tap] for tap in taps], -1)
        golden.check(f"lp_{kind}", terms.sum(-1), rtol=1e-10)
        if f"lp_{kind}_per_layer" in golden.arrays:
            golden.check(f"lp_{kind}_per_layer", terms, rtol=1e-10)
        golden.check(f"lp_{kind}_grad_sub", np.asarray(grads).transpose(0, 3, 1, 2)[:, :, ::4, ::4])
