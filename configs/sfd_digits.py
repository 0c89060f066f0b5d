"""SFD on scikit-learn's digits: a few-step student of the edm_digits teacher."""

from configs import common


def get_config(arg="full"):
    """Student of 2 network calls; `:3`, `:4` or `:5` for as many."""
    given = common.words(arg, *"2345")
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "edm_digits" + common.joined(given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=common.calls(given, 2) + 2, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_2m", threshold=False),  # SFD: dpmpp_3m, thresholded
    )  # fmt: skip
    # SFD: 5e-5, a tenth of it from half of the run on, in batches of 128.
    adam = dict(name="adam", learning_rate=2e-3, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=16, steps=512, log_every=32, save_every=256)
    config.evaluation.update(num=1797, batch_size=600)
    common.digits_panel(config)
    config.evaluation.teacher_samplers = common.usual_samplers()
    return common.smoke(config) if "smoke" in given else config
