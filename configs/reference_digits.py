"""Inpainting of scikit-learn's digits towards a reference's features: a teacher for it."""

from configs import common


def get_config(arg="full"):
    """DDPM++ that repaints large boxes of 8x8 images, told 64 features of a reference, and no label.

    The features are those of the shipped classifier, hidden in one image of ten, for guidance. The report
    compares what is made with its reference in the same net's features; where it is untold, they were hidden.
    About ten minutes on one CPU core, as discrete_digits.
    """
    given = common.words(arg)
    config = common.base()
    common.tasks_digits(config)
    common.task_teacher(config, side=8, concat=2, reference=64)
    config.data.conditional = False
    common.condition_net(config)
    config.task = common.TASKS["reference"]
    untold = dict(name="dpmpp_2m", nfe=16, guidance=dict(scale=0.0))
    config.method.samplers["dpmpp_2m, untold 16"] = untold
    config.train.update(batch_size=128, steps=1300, log_every=25, save_every=325)
    return common.smoke(config) if "smoke" in given else config
