"""SFD's second stage on scikit-learn's digits: one network call, from a student of several."""

from configs import common


def get_config(arg="full"):
    """Student of sfdv_digits, which takes its 5 steps as the teacher; `:plain` for sfd_digits:5 instead."""
    given = common.words(arg, "plain")
    plain = "plain" in given
    config = common.base()
    config.data = dict(name="digits")
    above = "sfd_digits" + common.joined(given | {"5"}, "5")
    config.teacher = above if plain else "sfdv_digits" + common.joined(given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=3, conditioned=not plain, extra=2, schedule=common.few_levels(), afs=True,
        teacher=dict(name="euler", afs=True) | ({} if plain else dict(stamps=7)),
    )  # fmt: skip
    # SFD: 5e-4, a tenth of it from half of the run on, in batches of 128.
    adam = dict(name="adam", learning_rate=1e-3, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=16, steps=1024, log_every=64, save_every=512)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    return common.smoke(config) if "smoke" in given else config
