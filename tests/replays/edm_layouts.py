"""State dicts of the released networks: every name with its shape, buffers and parameters."""

import math

import jax
import jax.numpy as jnp

from fastdiff_jax import precond
from fastdiff_jax.interop import names
from replays.edm_nets import NETWORKS

CHANNELS = 3  # of the images of all released networks


def replay(golden):
    for key in golden.keys():
        case, _, last = key.partition("/")
        if last == "cfg":
            replay_case(golden, case)


def replay_case(golden, case):
    config = golden.config(f"{case}/cfg")
    build, size = NETWORKS[config.pop("model_type")], config.pop("img_resolution")
    config.pop("label_dropout", None)
    shape, classes = (size, size, config.pop("in_channels", CHANNELS)), config.pop("label_dim", 0)
    template = jax.eval_shape(build(config, shape, classes).init, jax.random.key(0), jnp.zeros((1, *shape)))
    levels = precond.iddpm_table() if names.LEVELS in golden.arrays[f"{case}/names"] else None
    taps = tuple(config.get("resample_filter", (1, 1)))
    layout = names.layout(template, taps=taps, prefix="model.", levels=levels)

    place = {name: index for index, name in enumerate(golden.arrays[f"{case}/names"])}
    assert layout.keys() == place.keys(), sorted(layout.keys() ^ place.keys())
    ordered = sorted(layout, key=place.__getitem__)  # ours has no order of its own
    golden.check(f"{case}/names", ordered)
    golden.check(f"{case}/shapes", ["x".join(map(str, layout[name])) for name in ordered])
    golden.check(f"{case}/is_buffer", [names.is_buffer(name) for name in ordered])
    trained = [math.prod(layout[name]) for name in ordered if not names.is_buffer(name)]
    golden.check(f"{case}/num_params", sum(trained), rtol=0.0)
