"""Ablation of SFD on Fashion-MNIST (TFDS): its ingredients switched one at a time."""

from configs import common


def get_config(arg="full"):
    """As sfd_ablation_digits, at a quarter of the iterations of sfd_fashion_mnist and sfdv_fashion_mnist.

    `:16` for images of 16x16.
    """
    given = common.words(arg, "16")
    passed = common.joined(given, "16")
    steps = (64, 256) if "16" in given else (375, 1500)
    config = common.sfd_ablation(
        "edm_fashion_mnist" + passed, "sfd_fashion_mnist" + passed, "sfdv_fashion_mnist" + passed, given,
        steps=() if "smoke" in given else steps,
    )  # fmt: skip
    config.evaluation.update(num=1000, batch_size=500, seeds=(0, 1))
    config.evaluation.panel.nearest = False  # 60,000 images: half a minute a row
    common.fashion_panel(config, "16" in given)
    if "smoke" in given:
        config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    return config
