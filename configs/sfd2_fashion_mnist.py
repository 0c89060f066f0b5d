"""SFD's second stage on Fashion-MNIST (TFDS): one network call, from a student of several."""

from configs import common


def get_config(arg="full"):
    """Student of sfdv_fashion_mnist, which takes its 5 steps as the teacher. `:16` for images of 16x16."""
    given = common.words(arg, "16")
    small = "16" in given
    config = common.base()
    config.data = dict(
        name="tfds", dataset="fashion_mnist", size=16 if small else 32, in_memory=True
    )
    config.teacher = "sfdv_fashion_mnist" + common.joined(given, "16")
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=3, conditioned=True, extra=2, schedule=common.few_levels(), afs=True,
        teacher=dict(name="euler", afs=True, stamps=7),
    )  # fmt: skip
    # SFD: 5e-4, a tenth of it from half of the run on, in batches of 128.
    adam = dict(name="adam", learning_rate=1e-3 if small else 5e-4, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(
        batch_size=16 if small else 64, steps=512 if small else 15000, log_every=64, save_every=256
    )
    common.fashion_panel(config, small)
    config.evaluation.update(num=10000, batch_size=500)
    return common.smoke(config) if "smoke" in given else config
