"""The feature net of Fashion-MNIST (TFDS), for distances without FID's Inception."""

from configs import common


def get_config(arg="full"):
    """Small convolutional classifier of 32x32 images, 5 epochs; `:16` is that of 16x16 ones.

    Minutes on two cores. A net for each size: of one size only, it would see the other's images blurred, or
    without their detail. Tested on the test split.
    """
    given = common.words(arg, "16")
    config = common.base()
    config.data = dict(
        name="tfds", dataset="fashion_mnist", size=16 if "16" in given else 32, in_memory=True
    )
    channels = (16, 32, 64) if "16" in given else (8, 16, 64)
    network = dict(name="classifier", channels=channels, features=64)
    config.models = dict(classifier=dict(network=network, precond=dict(name="identity")))
    config.method = dict(name="classifier", noise=0.1, shift=2)  # ours, untuned, as what follows
    config.optimizers = dict(classifier=dict(name="adamw", learning_rate=2e-3, decay="cosine"))
    config.train.update(batch_size=128, steps=2400, log_every=100, save_every=800)
    config.evaluation = common.evaluation(kind="features", panel=dict(), split="test")
    return common.smoke(config) if "smoke" in given else config
