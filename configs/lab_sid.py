"""SiD from an exact teacher: a Gaussian mixture whose denoiser, moments and modes are known."""

from configs import common


def get_config(arg="full"):
    """One-step generator of eight modes in the plane; `:64d` for 64 dimensions. Under a minute with lab_edm."""
    given = common.words(arg, "64d")
    config = common.base()
    config.data = common.lab_data(64 if "64d" in given else 2)
    config.init_from = "lab_edm" + common.joined(
        given, "64d"
    )  # generator and fake score start as this
    exact = dict(network=dict(name="gmm"), precond=dict(name="identity"))
    config.models = dict(teacher=exact, generator=common.lab_network(), fake=common.lab_network())
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.7)
    config.method = dict(
        name="sid",
        alpha=1.0,
        sigma_init=2.5,
        levels=dict(name="karras", t_max=800.0),
        ema_half_life=20e3,
        ema_ramp=0.05,
    )
    adam = dict(
        name="adam", learning_rate=1e-3, b1=0.0, b2=0.999, eps=1e-8, decay="cosine", final=0.02
    )
    config.optimizers = dict(generator=adam, fake=dict(adam))
    config.train.update(batch_size=256, steps=4000, log_every=100, save_every=1000)
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    config.evaluation.teacher_samplers = common.samplers(("heun", 35), ("euler", 1), ("euler", 5))
    return common.smoke(config) if "smoke" in given else config
