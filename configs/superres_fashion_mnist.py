"""Super-resolution of Fashion-MNIST (TFDS) from 4x4 to 16x16: a conditional teacher for it."""

from configs import common


def get_config(arg="full"):
    """Class-conditional DDPM++ that is told the means over blocks of 4x4 pixels, upsampled.

    A discrete noise-prediction model whose labels are hidden in one image of ten, for guidance.
    About half an hour on one CPU core.
    """
    given = common.words(arg)
    config = common.base()
    common.tasks_fashion_mnist(config)
    common.task_teacher(config, side=16, concat=1)
    config.task = common.TASKS["superres"]
    config.train.update(batch_size=64, steps=2000, log_every=50, save_every=500)
    return common.smoke(config) if "smoke" in given else config
