"""Super-resolution of CIFAR-10 (TFDS) from 4x4 to 16x16: a conditional teacher for it."""

from configs import common


def get_config(arg="full"):
    """As superres_fashion_mnist, but of colours, and the network predicts velocities.

    About half an hour on one CPU core, not measured at full size yet.
    """
    given = common.words(arg)
    config = common.base()
    common.tasks_cifar10(config)
    common.task_teacher(config, side=16, prediction="v", concat=3)
    config.task = common.TASKS["superres"]
    config.train.update(batch_size=64, steps=2000, log_every=50, save_every=500)
    return common.smoke(config) if "smoke" in given else config
