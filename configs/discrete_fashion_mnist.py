"""Noise-predicting teacher of Fashion-MNIST (TFDS) at 16x16 on Stable Diffusion's discrete levels."""

from configs import common


def get_config(arg="full"):
    """Class-conditional DDPM++ with every tenth label hidden: what edges_fashion_mnist adds to.

    About half an hour on one CPU core.
    """
    given = common.words(arg)
    config = common.base()
    common.tasks_fashion_mnist(config)
    common.task_teacher(config, side=16)
    config.train.update(batch_size=64, steps=2000, log_every=50, save_every=500)
    return common.smoke(config) if "smoke" in given else config
