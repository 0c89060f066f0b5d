"""EDM's augmentation with recorded draws: images and labels, of whatever transforms a case names."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdiff_jax.data import augment, warp


def replay(golden):
    golden.check("sym6", warp.SYM6, rtol=0.0)
    for name in sorted({key.split("/")[0] for key in golden.keys() if key.endswith("/cfg")}):
        replay_case(golden, name)


def replay_case(golden, name):
    images = jnp.asarray(golden.input(f"{name}/x")).transpose(0, 2, 3, 1)
    pipe = augment.pipe({"name": "chosen"} | golden.config(f"{name}/cfg"))
    draws = {
        key.rpartition("/")[2]: jnp.asarray(rows(golden.input(key), len(images)))
        for key in golden.keys(f"{name}/rnd/")
    }
    wanted = jax.eval_shape(lambda key: pipe.draw(key, len(images)), jax.random.key(0))
    assert {key: value.shape for key, value in draws.items()} == {k: v.shape for k, v in wanted.items()}
    changed, labels = jax.jit(pipe.apply)(images, draws)
    golden.check(f"{name}/y", changed.transpose(0, 3, 1, 2), rtol=1e-8)
    golden.check(f"{name}/labels", labels, rtol=1e-8)


def rows(values: np.ndarray, size: int) -> np.ndarray:
    """Recorded draws as ours: (B,1,1,1) -> (B,); those of x and y come first, (2,B,...) -> (B,2)."""
    columns = values.reshape(-1, size).T
    return columns[:, 0] if columns.shape[1] == 1 else columns
