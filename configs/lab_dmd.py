"""DMD2, Diff-Instruct and SiDA from an exact teacher: a Gaussian mixture whose denoiser and modes are known."""

from configs import common


def get_config(arg="full"):
    """One-step generators of eight modes in the plane: DMD2, or `:di`, or `:sida`; `:64d` for 64 dimensions.

    The discriminators of DMD2 and SiDA read the last hidden layer of the fake score.
    """
    given = common.words(arg, "dmd2", "di", "sida", "64d")
    (kind, *others) = sorted(given & {"dmd2", "di", "sida"}) or ["dmd2"]
    if others:
        raise ValueError(f"one of dmd2, di and sida at a time; got {', '.join([kind, *others])}.")
    config = common.base()
    config.data = common.lab_data(64 if "64d" in given else 2)
    config.init_from = "lab_edm" + common.joined(
        given, "64d"
    )  # generator and fake score start as this
    exact = dict(network=dict(name="gmm"), precond=dict(name="identity"))
    config.models = dict(teacher=exact, generator=common.lab_network(), fake=common.lab_network())
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.7)
    config.method = dict(name="dmd", sigma_init=2.5, ema_half_life=20e3, ema_ramp=0.05)
    if kind == "dmd2":
        config.method.update(loss="dmd", reduction="mean", floor=1e-5, ratio=2, order="generator_first")
        config.method.adversarial = dict(tap="hidden3", generator_weight=3e-3, discriminator_weight=1e-2)
        config.models.discriminator = dict(
            network=dict(name="discriminator", head="dmd2", layers=((64, 1, 1, 0),)),
            precond=dict(name="identity"),
        )
    elif kind == "di":
        config.method.update(
            loss="dmd", weighted=False, form="product", reduction="sum", ratio=1, order="fake_first",
            shared=("label",), levels=dict(name="lognormal", mean=-1.2, std=1.2),
        )  # fmt: skip
    else:
        config.method.update(
            loss="sid", alpha=1.0, floor=1e-5, reduction="sum", generator_scale=100.0, ratio=1,
            order="fake_first", shared=(), levels=dict(name="karras", t_max=800.0), warmup=100,
        )  # fmt: skip
        config.method.adversarial = dict(
            tap="hidden3", levels=None, weighting="score", clip=10.0, share=0.5, begin=200,
            generator_weight=0.01, discriminator_weight=0.5,
        )  # fmt: skip
    adam = dict(
        name="adam", learning_rate=1e-3, b1=0.0, b2=0.999, eps=1e-8, decay="cosine", final=0.02
    )
    config.optimizers = dict(generator=adam, fake=dict(adam))
    config.train.update(batch_size=256, steps=4000, log_every=100, save_every=1000)
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    config.evaluation.teacher_samplers = common.samplers(("heun", 35), ("euler", 1), ("euler", 5))
    if "smoke" in given and kind == "sida":
        config.method.warmup, config.method.adversarial.begin = 1, 2
    return common.smoke(config) if "smoke" in given else config
