"""Study of SFD on digits: students of one to five network calls against training-free samplers."""

from configs import common


def get_config(arg="full"):
    """SFD at 2 to 5 calls, SFD-v, the second stage, and SFD at other numbers of iterations, on edm_digits.

    `:cached` adds a student on recorded trajectories; first, for a quarter as many as are trained on,
    python launch/record.py --config configs/sfd_digits.py:cached --num 2048.
    """
    given = common.words(arg, "cached")
    config = common.sfd_study(
        "edm_digits" + common.joined(given), "digits", given, iterations=(64, 128, 256, 1024)
    )
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    if "smoke" in given:
        config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    return config
