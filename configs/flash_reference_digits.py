"""Flash Diffusion on reference_digits: few calls by a LoRA delta of that teacher."""

from configs import common


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls, told a reference's features, mask and known pixels as its teacher is."""
    given = common.words(arg)
    config = common.base()
    common.tasks_digits(config)
    config.teacher = "reference_digits" + common.joined(given)
    common.flash_student(config, 8, given)
    config.data.conditional = False
    common.condition_net(config)
    config.task = common.TASKS["reference"]
    return common.smoke(config) if "smoke" in given else config
