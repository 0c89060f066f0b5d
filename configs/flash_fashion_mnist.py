"""Flash Diffusion on Fashion-MNIST (TFDS) at 16x16: few calls by a LoRA delta of discrete_fashion_mnist."""

from configs import common


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls, told the class as its teacher is."""
    given = common.words(arg)
    config = common.base()
    common.tasks_fashion_mnist(config)
    config.teacher = "discrete_fashion_mnist" + common.joined(given)
    common.flash_student(config, 16, given)
    return common.smoke(config) if "smoke" in given else config
