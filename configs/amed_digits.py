"""AMED on scikit-learn's digits: a learned solver of six calls for the teacher as it is."""

from configs import common


def get_config(arg="full"):
    """Predictor of the second call's place in each of three steps of the edm_digits teacher.

    80 steps, 10,240 trajectories: 145 s on a busy 2-core CPU. At 6 calls, one sampling seed, ft | px:
    3.29 | 0.214; euler 6.59 | 0.695, dpm_2 22.6 | 2.03, but ipndm_4 0.963 | 0.143, where half of the data
    against the other half has 2.74 | 0.272.
    """
    given = common.words(arg)
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "edm_digits" + common.joined(given)
    predictor = dict(name="nodes", scale_dir=0.01, scale_time=0.2)
    config.models = dict(
        teacher=dict(like="teacher"),
        predictor=dict(network=predictor, precond=dict(name="identity")),
    )
    config.schedule.zero = False  # nodes are placed on a log scale
    # AFS guesses data of mean zero; digits are mostly background, and the guess costs more than it saves.
    config.method = dict(
        name="amed", tap="enc/4x4_block0", kind="ipndm", steps=3, afs=False, order=4,
        teacher=dict(name="ipndm_4"), extra=2,
    )  # fmt: skip
    config.optimizers = dict(predictor=dict(name="adam", learning_rate=5e-3))
    config.train.update(batch_size=128, steps=80, log_every=5, save_every=40)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    # On the student's own levels, but for the teacher at its best.
    best = {"heun 35": dict(name="heun", nfe=35, schedule=dict(name="polynomial"))}
    rivals = common.samplers(*[(name, 6) for name in ("euler", "heun", "dpm_2", "ipndm_4", "dpmpp_2m")])
    config.evaluation.teacher_samplers = dict(best, **rivals)
    if "smoke" in given:
        config = common.smoke(config)
        config.evaluation.teacher_samplers = best
    return config
