"""SFD on Fashion-MNIST (TFDS)."""

from configs import common


def get_config(arg="full"):
    """Student of 2 network calls, `:3`, `:4` or `:5` for as many; `:16` for images of 16x16."""
    given = common.words(arg, "16", *"2345")
    small = "16" in given
    config = common.base()
    config.data = dict(
        name="tfds", dataset="fashion_mnist", size=16 if small else 32, in_memory=True
    )
    config.teacher = "edm_fashion_mnist" + common.joined(given, "16")
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=common.calls(given - {"16"}, 2) + 2, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_2m" if small else "dpmpp_3m", threshold=False),  # SFD: dpmpp_3m, thresholded
    )  # fmt: skip
    # SFD: 5e-5, a tenth of it from half of the run on, in batches of 128.
    adam = dict(name="adam", learning_rate=5e-4 if small else 2e-4, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(
        batch_size=16 if small else 64, steps=256 if small else 1500, log_every=32, save_every=128
    )
    common.fashion_panel(config, small)
    config.evaluation.update(num=10000, batch_size=500, teacher_samplers=common.usual_samplers())
    return common.smoke(config) if "smoke" in given else config
