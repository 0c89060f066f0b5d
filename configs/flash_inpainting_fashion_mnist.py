"""Flash Diffusion on inpainting: few calls by a LoRA delta of inpainting_fashion_mnist."""

from configs import common


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls, told mask and known pixels as its teacher is."""
    given = common.words(arg)
    config = common.base()
    common.tasks_fashion_mnist(config)
    config.teacher = "inpainting_fashion_mnist" + common.joined(given)
    common.flash_student(config, 16, given)
    config.task = common.TASKS["inpainting"]
    return common.smoke(config) if "smoke" in given else config
