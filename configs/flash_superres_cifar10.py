"""Flash Diffusion on super-resolution in colour: few calls by a LoRA delta of superres_cifar10."""

from configs import common


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls, told the upsampled image as its teacher is."""
    given = common.words(arg)
    config = common.base()
    common.tasks_cifar10(config)
    config.teacher = "superres_cifar10" + common.joined(given)
    common.flash_student(config, 16, given)
    config.task = common.TASKS["superres"]
    return common.smoke(config) if "smoke" in given else config
