"""Study of SFD on Fashion-MNIST (TFDS): students of one to five calls against training-free samplers."""

from configs import common


def get_config(arg="full"):
    """SFD at 2 to 5 calls, SFD-v, the second stage, and SFD at a quarter of its iterations. `:16` for 16x16."""
    given = common.words(arg, "16")
    config = common.sfd_study(
        "edm_fashion_mnist" + common.joined(given, "16"), "fashion_mnist", given,
        iterations=(64 if "16" in given else 375,),
    )  # fmt: skip
    config.evaluation.update(num=1000, batch_size=500, seeds=(0, 1))
    config.evaluation.panel.nearest = False  # 60,000 images: half a minute a row
    common.fashion_panel(config, "16" in given)
    if "smoke" in given:
        config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    return config
