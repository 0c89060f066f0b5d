"""SFD-v on Fashion-MNIST (TFDS): one student for 2, 3, 4 and 5 network calls."""

from configs import common


def get_config(arg="full"):
    """It is told how many levels its sampler has, by layers that say nothing at first. `:16` for 16x16."""
    given = common.words(arg, "16")
    small = "16" in given
    config = common.base()
    config.data = dict(
        name="tfds", dataset="fashion_mnist", size=16 if small else 32, in_memory=True
    )
    config.teacher = "edm_fashion_mnist" + common.joined(given, "16")
    config.models = dict(
        teacher=dict(like="teacher"),
        student=dict(like="teacher", network=dict(stamps="zero")),  # SFD-v: "random"
    )
    config.method = dict(
        name="sfd", stamps=(4, 5, 6, 7), conditioned=True, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_2m" if small else "dpmpp_3m", threshold=False),  # SFD-v: dpmpp_3m, thresholded
    )  # fmt: skip
    # SFD: 5e-5, a tenth of it from half of the run on, in batches of 128.
    adam = dict(name="adam", learning_rate=5e-4 if small else 2e-4, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(
        batch_size=16 if small else 64, steps=1024 if small else 6000, log_every=64, save_every=512
    )
    common.fashion_panel(config, small)
    config.evaluation.update(num=10000, batch_size=500, teacher_samplers=common.usual_samplers())
    return common.smoke(config) if "smoke" in given else config
