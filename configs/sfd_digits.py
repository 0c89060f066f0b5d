"""SFD on scikit-learn's digits: a few-step student of the edm_digits teacher."""

from configs import common


def get_config(arg="full"):
    """Student of 2 network calls; `:3`, `:4` or `:5` for as many.

    `:cached` trains on trajectories that launch/record.py has recorded; 8192 are met once each, fewer again
    and again. `:guided` has a teacher that was trained with label dropout, and samples with and without
    guidance.
    """
    given = common.words(arg, *"2345", "cached", "guided")
    config = common.base()
    config.data = dict(name="digits")
    teacher_words = {*given, "dropout"} if "guided" in given else given
    config.teacher = "edm_digits" + common.joined(teacher_words, "dropout")
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=common.calls(given, 2) + 2, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_2m", threshold=False),  # SFD: dpmpp_3m, thresholded
    )  # fmt: skip
    # SFD: 5e-5, a tenth of it from half of the run on, in batches of 128.
    adam = dict(name="adam", learning_rate=5e-4, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=16, steps=512, log_every=32, save_every=256)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    config.evaluation.teacher_samplers = common.usual_samplers()
    if "cached" in given:
        kept = [word for word in (*"2345", "guided", "smoke") if word in given]
        folder = "/".join(["runs", "_".join(["sfd_digits", *kept]), "pairs"])
        config.data = dict(name="pairs", source=dict(name="digits"), folder=folder)
    if "guided" in given:
        config.method.guidance = dict(scale=(1.0, 1.5, 2.0))
        guided = dict(name="heun", nfe=70, guidance=dict(scale=2.0))
        config.evaluation.teacher_samplers["heun 70 w 2"] = guided
    return common.smoke(config) if "smoke" in given else config
