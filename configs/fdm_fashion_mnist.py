"""FDM teacher of Fashion-MNIST (TFDS)."""

from configs import common


def get_config(arg="full"):
    """The network of edm_fashion_mnist with FDM on EDM; `:vp` and `:ve` for other base processes.

    `:16` halves the images, for two CPU cores, and sees 64,000. `,plain` is without FDM, `,scale` and
    `,warmup` have one part of it. The rate is constant after its ramp, as in fdm_digits. Checkpoints of ten
    parts stay, of five at 16x16.
    """
    given = common.words(arg, "16", *common.FDM)
    small = "16" in given
    config = common.base()
    config.data = dict(
        name="tfds", dataset="fashion_mnist", size=16 if small else 32, in_memory=True
    )
    network = dict(
        name="song", architecture="ncsnpp" if "ve" in given else "ddpmpp", model_channels=32 if small else 64,
        channel_mult=(1, 1) if small else (1, 2, 2), num_blocks=1 if small else 2,
        attn_resolutions=(8,) if small else (16,), dropout=0.0 if small else 0.1, dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network))  # and what common.fdm gives it
    common.fdm(
        config, given,
        edm=dict(sigma_data=0.65, p_mean=-1.0, p_std=1.2),
        multiplier=dict(edm=2.0, vp=2.0),
        # As long as the learning rate's ramp, or as published for CIFAR-10.
        warmup=dict(edm=50, vp=50, ve=50) if small else dict(edm=200, vp=400, ve=400),
    )  # fmt: skip
    config.method = dict(
        name="teacher", ema_half_life=50e3, ema_ramp=0.1, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.usual_samplers()
    rate, ramp = (2e-3, 6400.0) if small else (1e-3, 25600.0)
    adam = dict(name="adam", learning_rate=rate, ramp_images=ramp)
    config.optimizers = dict(student=adam)  # ours
    steps = 500 if small else 40000
    config.train.update(
        batch_size=128, steps=steps, log_every=50, save_every=min(steps // 10, 1000),
        milestones=steps // (5 if small else 10),
    )  # fmt: skip
    common.fashion_panel(config, small)
    config.evaluation.update(num=10000, batch_size=500)
    return common.smoke(config) if "smoke" in given else config
