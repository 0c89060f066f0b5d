"""Flash Diffusion along edge maps: few calls by a LoRA delta of edges_fashion_mnist."""

from configs import common


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls, with its teacher's adapter, which is not changed."""
    given = common.words(arg)
    config = common.base()
    common.tasks_fashion_mnist(config)
    config.teacher = "edges_fashion_mnist" + common.joined(given)
    common.flash_student(config, 16, given)
    config.task = common.TASKS["edges"]
    return common.smoke(config) if "smoke" in given else config
