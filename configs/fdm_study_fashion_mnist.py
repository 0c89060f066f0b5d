"""Study of FDM on Fashion-MNIST (TFDS): teachers with it and without it, at the same budget."""

from configs import common


def get_config(arg="full"):
    """For edm, vp and ve: FD by training images and by network calls, one training seed.

    `:16` halves the images, for two CPU cores, and measures 1000 samples: three hours on a busy machine.
    """
    given = common.words(arg, "16")
    config = common.fdm_study("fdm_fashion_mnist", given, seeds=(0,), parts=False)
    config.evaluation.update(num=1000 if "16" in given else 5000, batch_size=500)
    if "16" in given and "smoke" not in given:
        config.study.solvers.heun.nfe = (7, 19)
    common.fashion_panel(config, "16" in given)
    if "smoke" in given:
        config.evaluation.update(num=64, batch_size=32)
    return config
