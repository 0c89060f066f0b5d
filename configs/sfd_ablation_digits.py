"""Ablation of SFD on digits: its ingredients switched one at a time."""

from configs import common


def get_config(arg="full"):
    """sfd_digits at 2 network calls with one setting changed, and SFD-v with and without its step condition."""
    given = common.words(arg)
    smoke = common.joined(given)
    config = common.sfd_ablation("edm_digits" + smoke, "sfd_digits" + smoke, "sfdv_digits" + smoke, given)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    if "smoke" in given:
        config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    return config
