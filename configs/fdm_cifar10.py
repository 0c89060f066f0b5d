"""FDM teacher of CIFAR-10 (TFDS): the official networks at their official settings."""

from configs import common


def get_config(arg="full"):
    """Class-conditional, FDM on EDM; `:vp` and `:ve` for other base processes. For accelerators.

    `,plain` is without FDM, `,scale` and `,warmup` have one part of it. Published at 200 million images, with
    FDM and without: FID 1.79 and 1.88, `:vp` 2.08 and 2.15, `:ve` 2.85 and 3.09 (README of sail-sg/FDM, the
    code of arXiv:2306.06991).
    """
    given = common.words(arg, *common.FDM)
    config = common.base()
    config.data = dict(name="tfds", dataset="cifar10", conditional=True)
    wide = not given & {"vp", "ve"}
    network = dict(
        name="song", architecture="ncsnpp" if "ve" in given else "ddpmpp", model_channels=128,
        channel_mult=(2, 2, 2) if wide else (1, 2, 2, 2), num_blocks=4, attn_resolutions=(16,), dropout=0.13,
        augment_dim=9, dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network))  # and what common.fdm gives it
    common.fdm(
        config, given,
        edm=dict(sigma_data=0.5, p_mean=-1.2, p_std=1.2),
        multiplier=dict(edm=2.0, vp=2.0),
        warmup=dict(edm=200, vp=400, ve=400),
    )  # fmt: skip
    config.augment = dict(name="edm", p=0.12)
    config.method = dict(
        name="teacher", ema_half_life=500e3, ema_ramp=0.05, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.usual_samplers()
    config.optimizers = dict(student=dict(name="adam", learning_rate=1e-3, ramp_images=10e6))
    config.train.update(batch_size=512, steps=200_000_000 // 512, log_every=100, save_every=5000)
    common.cifar_panel(config)
    return common.smoke(config) if "smoke" in given else config
