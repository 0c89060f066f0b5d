"""Study of FDM on digits: teachers with it, without it and with one part of it, at the same budget."""

from configs import common


def get_config(arg="full"):
    """For edm, vp and ve: FD by training images and by network calls, three training seeds; one seed for parts.

    24 runs of three minutes and an hour of sampling, on one CPU core: two hours.
    """
    given = common.words(arg)
    config = common.fdm_study("fdm_digits", given, seeds=(0, 1, 2))
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    if "smoke" in given:
        config.evaluation.update(num=64, batch_size=32)
    return config
