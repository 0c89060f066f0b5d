"""SFD-v on scikit-learn's digits: one student of the edm_digits teacher for 2, 3, 4 and 5 network calls."""

from configs import common


def get_config(arg="full"):
    """It is told how many levels its sampler has, by layers that say nothing at first."""
    given = common.words(arg)
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "edm_digits" + common.joined(given)
    config.models = dict(
        teacher=dict(like="teacher"),
        student=dict(like="teacher", network=dict(stamps="zero")),  # SFD-v: "random"
    )
    config.method = dict(
        name="sfd", stamps=(4, 5, 6, 7), conditioned=True, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_2m", threshold=False),  # SFD-v: dpmpp_3m, thresholded
    )  # fmt: skip
    # SFD-v: 5e-5, a tenth of it from half of the run on, in batches of 128.
    adam = dict(name="adam", learning_rate=5e-4, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=16, steps=2048, log_every=64, save_every=512)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    config.evaluation.teacher_samplers = common.usual_samplers()
    return common.smoke(config) if "smoke" in given else config
