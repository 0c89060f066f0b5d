"""A learned denoiser of a known Gaussian mixture: what lab students start from."""

from configs import common


def get_config(arg="full"):
    """MLP denoiser of eight modes in the plane; `:64d` for 64 dimensions. About ten seconds.

    With `:cond` it is told the mode, but for a tenth of the points: a teacher for guidance.
    """
    given = common.words(arg, "64d", "cond")
    config = common.base()
    config.data = common.lab_data(64 if "64d" in given else 2)
    config.models = dict(student=common.lab_network())
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.7)
    config.method = dict(name="teacher", ema_half_life=50e3, ema_ramp=0.05)
    if "cond" in given:
        config.data.labels, config.method.label_dropout = True, 0.1
    config.method.samplers = common.samplers(("heun", 35), ("euler", 1), ("euler", 5))
    adam = dict(name="adam", learning_rate=2e-3, ramp_images=12800.0, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=256, steps=3000, log_every=100, save_every=1000)
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    return common.smoke(config) if "smoke" in given else config
