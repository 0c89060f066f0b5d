"""GGDM sampler of five steps for the digits teacher."""

from configs import common


def get_config(arg="full"):
    """Trains the coefficients of a 5-step sampler of edm_digits in the features that the report measures in.

    Six minutes on two busy cores: ft 1.17, px 0.179, one training seed. DPM-Solver++(2M) on the levels that it
    starts from: 1.64 and 0.264; on EDM's own: 5.78 and 0.431, Euler there 15.2 and 1.40.
    """
    given = common.words(arg)
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "edm_digits" + common.joined(given)
    common.feature_panel(config, "digits")
    net = config.evaluation.panel.features.ft  # trained in what it is measured in
    classifier = dict(network=dict(name="classifier"), precond=dict(name="identity"), weights=net)
    config.models = dict(teacher=dict(like="teacher"), features=classifier)
    config.method = dict(
        name="ggdm", steps=5, start="dpmpp_2m", eta=0.0, time=False, pred=False, unit=True,
        schedule=dict(name="polynomial", sigma_min=0.1),  # at 0.002 the last call would see a finished image
        remat=False,  # small images: memory is no matter, time is
    )  # fmt: skip
    # DDSS: 5e-4, constant, 50k steps of 512; ours are for minutes.
    config.optimizers = dict(coefficients=dict(name="adam", learning_rate=1e-3, decay="cosine"))
    config.train.update(batch_size=256, steps=150, log_every=10, save_every=50)
    config.evaluation.update(num=1797, batch_size=600)
    config.evaluation.teacher_samplers = common.samplers(("heun", 35), ("euler", 5), ("dpmpp_2m", 5))
    config.evaluation.teacher_samplers["untrained 5"] = dict(
        name="dpmpp_2m", nfe=5, schedule=config.method.schedule.to_dict()
    )
    return common.smoke(config) if "smoke" in given else config
