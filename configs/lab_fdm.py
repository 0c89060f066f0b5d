"""FDM on a known Gaussian mixture."""

from configs import common


def get_config(arg="full"):
    """The lab_edm teacher with FDM: its network has no normalisation between it and the input scale. Seconds.

    `:vp`, `:ve` for other base processes; `,plain` is without FDM, `,scale` and `,warmup` have one part of
    it; `,64d` has 64 dimensions.
    """
    given = common.words(arg, "64d", *common.FDM)
    config = common.base()
    config.data = common.lab_data(64 if "64d" in given else 2)
    config.models = dict(student=common.lab_network())
    common.fdm(
        config, given,
        edm=dict(sigma_data=0.7, p_mean=-1.2, p_std=1.2),
        multiplier=dict(edm=2.0, vp=2.0),
        warmup=dict(edm=50, vp=50, ve=50),  # ours: as long as the learning rate's ramp
    )  # fmt: skip
    config.method = dict(name="teacher", ema_half_life=50e3, ema_ramp=0.05)
    config.method.samplers = common.samplers(("heun", 35), ("euler", 1), ("euler", 5))
    adam = dict(name="adam", learning_rate=2e-3, ramp_images=12800.0, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=256, steps=3000, log_every=100, save_every=300, milestones=300)
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    return common.smoke(config) if "smoke" in given else config
