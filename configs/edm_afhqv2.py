"""EDM teacher of AFHQv2 at 64x64: the official networks at their official settings."""

from configs import common


def get_config(arg="full"):
    """Unconditional DDPM++ of 61.8M parameters, 200 million images. For accelerators.

    `:ve` is NCSN++, of 62.8M (released checkpoints have these names; the training is EDM's for both).
    Reads data/afhqv2-64x64.zip, EDM's own form. Published: FID 1.96 at 79 NFE, NCSN++ 2.16
    (arXiv:2206.00364, Table 2).
    """
    given = common.words(arg, "vp", "ve")
    config = common.base()
    config.data = common.edm_zip("afhqv2-64x64", 64)
    network = dict(
        name="song", architecture=common.architecture(given), model_channels=128, channel_mult=(1, 2, 2, 2),
        num_blocks=4, attn_resolutions=(16,), dropout=0.25, augment_dim=9, dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network, precond=dict(name="edm", sigma_data=0.5)))
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)
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
