"""Fashion-MNIST (TFDS) at 16x16 along edge maps: an adapter of a class-conditional teacher."""

from configs import common


def get_config(arg="full"):
    """The teacher discrete_fashion_mnist with an adapter that reads Sobel's edges; only the adapter is trained.

    Its weights begin as the teacher's, which is trained first if it is not there; but for the adapter's they
    stay so. About a quarter of an hour on one CPU core, and the teacher's half hour.
    """
    given = common.words(arg)
    config = common.base()
    config.init_from = "discrete_fashion_mnist" + common.joined(given)
    common.tasks_fashion_mnist(config)
    common.task_teacher(config, side=16, adapter=1)
    config.method.trains = ("adapter",)
    config.task = common.TASKS["edges"]
    config.train.update(batch_size=64, steps=1000, log_every=50, save_every=250)
    return common.smoke(config) if "smoke" in given else config
