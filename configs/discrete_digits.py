"""Noise-predicting teacher of scikit-learn's digits on Stable Diffusion's discrete levels."""

from configs import common


def get_config(arg="full"):
    """Class-conditional DDPM++ of 1,168,361 parameters on 8x8 images, every tenth label hidden, for Flash.

    Its samplers are guided at several scales: the one with the least distance is the one to distil at.
    """
    given = common.words(arg)
    config = common.base()
    config.data = dict(name="digits")
    network = dict(
        name="song", model_channels=40, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.0,
        dtype="float32",
    )  # fmt: skip
    levels = dict(betas="scaled_linear", steps=1000)
    config.models = dict(student=dict(network=network, precond=dict(name="discrete", **levels)))
    config.objective = dict(name="discrete", **levels)
    config.schedule = dict(name="timesteps", spacing="trailing", betas="scaled_linear", train_steps=1000)
    config.method = dict(name="teacher", ema_half_life=20e3, ema_ramp=0.05, label_dropout=0.1, accumulation=1)
    config.method.samplers = common.samplers(*[("dpmpp_2m", n) for n in (32, 2, 4, 8)])
    for scale in (1.1, 1.25, 1.5, 2.0):  # of 32 steps as the first, of two calls each
        config.method.samplers.update(common.guided_samplers(scale, 64))
    adam = dict(name="adam", learning_rate=2e-3, b2=0.99, ramp_images=6400.0, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)  # ours, as edm_digits'
    config.train.update(batch_size=128, steps=1300, log_every=25, save_every=325)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    return common.smoke(config) if "smoke" in given else config
