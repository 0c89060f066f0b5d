"""Flash Diffusion on inpainting of digits: few calls by a LoRA delta of the inpainting_digits teacher."""

from configs import common


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls, told mask and known pixels as its teacher is."""
    given = common.words(arg)
    config = common.base()
    common.tasks_digits(config)
    config.teacher = "inpainting_digits" + common.joined(given)
    common.flash_student(config, 8, given)
    config.task = common.TASKS["inpainting"]
    return common.smoke(config) if "smoke" in given else config
