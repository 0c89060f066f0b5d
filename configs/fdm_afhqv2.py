"""FDM teacher of AFHQv2 at 64x64: the official networks at their official settings."""

from configs import common


def get_config(arg="full"):
    """Unconditional, FDM on EDM; `:vp` and `:ve` for other base processes. For accelerators.

    Reads data/afhqv2-64x64.zip, EDM's own form. `,plain` is without FDM, `,scale` and `,warmup` have one part
    of it. Published at 200 million images and 79 network calls, with FDM and without: FID 1.93 and 2.37, `:vp`
    2.39 and 2.61, `:ve` 47.30 and 57.48 (README of sail-sg/FDM, the code of arXiv:2306.06991).
    By that README neither `:ve` has converged.
    """
    given = common.words(arg, *common.FDM)
    config = common.base()
    config.data = common.edm_zip("afhqv2-64x64", 64)
    network = dict(
        name="song", architecture="ncsnpp" if "ve" in given else "ddpmpp", model_channels=128,
        channel_mult=(1, 2, 2, 2), num_blocks=4, attn_resolutions=(16,), dropout=0.25, augment_dim=9,
        dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network, precond=dict(name="edm")))
    common.fdm(
        config, given,
        edm=dict(sigma_data=0.5, p_mean=-1.2, p_std=1.2),
        multiplier=dict(edm=2.0, vp=1.0),
        warmup=dict(edm=400, vp=400, ve=400),
    )  # fmt: skip
    config.augment = dict(name="edm", p=0.15)
    config.method = dict(
        name="teacher", ema_half_life=500e3, ema_ramp=0.05, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.usual_samplers(79)
    config.optimizers = dict(student=dict(name="adam", learning_rate=2e-4, ramp_images=10e6))
    config.train.update(batch_size=256, steps=200_000_000 // 256, log_every=100, save_every=10000)
    config.evaluation.panel.features.px = dict(name="pixels", pool=8)  # 192 dimensions, not 12288
    config.evaluation.panel.nearest = False  # tens of thousands against each other
    config.evaluation.update(num=50000, batch_size=500)
    return common.smoke(config) if "smoke" in given else config
