"""SiD on scikit-learn's digits: the default job."""

from configs import common


def get_config(arg="full"):
    """One-step generator from the edm_digits teacher, which is trained first if it is not there.

    `:posthoc` keeps averages of the generator, from which others of any width are made.
    """
    given = common.words(arg, "posthoc")
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "edm_digits" + common.joined(given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "generator", "fake")}
    config.objective = dict(name="edm", p_mean=-0.8, p_std=1.2, sigma_data=0.75)  # as the teacher's
    config.method = dict(
        name="sid", alpha=1.2, sigma_init=2.5, levels=dict(name="karras", t_max=800.0),
        fake_steps=1, accumulation=1,
        ema_half_life=5e3, ema_ramp=0.05,
    )  # fmt: skip
    adam = dict(name="adam", b1=0.0, b2=0.999, eps=1e-8, decay="cosine", final=0.05)
    config.optimizers = dict(  # SiD: both 1e-5 and constant; ours are for minutes
        generator=dict(adam, learning_rate=5e-4), fake=dict(adam, learning_rate=1e-3)
    )
    config.train.update(batch_size=64, steps=1500, log_every=25, save_every=250)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    common.posthoc(config, given)
    config.evaluation.teacher_samplers = common.usual_samplers()
    return common.smoke(config) if "smoke" in given else config
