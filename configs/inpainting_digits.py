"""Inpainting of scikit-learn's digits: a conditional teacher for it."""

from configs import common


def get_config(arg="full"):
    """Class-conditional DDPM++ that repaints boxes and strokes of 8x8 images.

    A discrete noise-prediction model whose labels are hidden in one image of ten, for guidance.
    About ten minutes on one CPU core, as discrete_digits.
    """
    given = common.words(arg)
    config = common.base()
    common.tasks_digits(config)
    common.task_teacher(config, side=8, concat=2)
    config.task = common.TASKS["inpainting"]
    config.train.update(batch_size=128, steps=1300, log_every=25, save_every=325)
    return common.smoke(config) if "smoke" in given else config
