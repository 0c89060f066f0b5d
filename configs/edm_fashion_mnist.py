"""EDM teacher of Fashion-MNIST (TFDS)."""

from configs import common


def get_config(arg="full"):
    """Class-conditional DDPM++ on 28x28 images padded to 32.

    `:16` halves them, for two CPU cores: 309,697 parameters, as edm_digits has, and 512,000 images.
    """
    given = common.words(arg, "16")
    small = "16" in given
    config = common.base()
    config.data = dict(
        name="tfds", dataset="fashion_mnist", size=16 if small else 32, in_memory=True
    )
    network = dict(
        name="song", model_channels=32 if small else 64, channel_mult=(1, 1) if small else (1, 2, 2),
        num_blocks=1 if small else 2, attn_resolutions=(8,) if small else (16,), dropout=0.0 if small else 0.1,
        dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network, precond=dict(name="edm", sigma_data=0.65)))
    config.objective = dict(
        name="edm", p_mean=-1.0, p_std=1.2, sigma_data=0.65
    )  # ours; std is 0.63 at 16, 0.67 at 32
    config.method = dict(
        name="teacher", ema_half_life=50e3, ema_ramp=0.05, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.usual_samplers()
    steps = 4000 if small else 40000
    rate = 2e-3 if small else 1e-3  # ours
    adam = dict(name="adam", learning_rate=rate, ramp_images=25600.0, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=128, steps=steps, log_every=50, save_every=1000)
    common.fashion_panel(config, small)
    config.evaluation.update(num=10000, batch_size=500)
    return common.smoke(config) if "smoke" in given else config
