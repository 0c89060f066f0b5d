"""EDM teacher of scikit-learn's digits."""

from configs import common


def get_config(arg="full"):
    """Class-conditional DDPM++ of 309,697 parameters on 8x8 images: 1300 steps of 128.

    `:dropout` hides every tenth label in training, so that the model can be guided. `:posthoc` keeps averages
    from which others of any width are made: --mode eval --config.evaluation.sigma_rel=0.08,0.12 measures them.
    """
    given = common.words(arg, "dropout", "posthoc")
    config = common.base()
    config.data = dict(name="digits")
    network = dict(
        name="song", model_channels=32, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,), dropout=0.0,
        dtype="float32",
    )  # fmt: skip
    config.models = dict(
        student=dict(network=network, precond=dict(name="edm", sigma_data=0.75))
    )  # data: 0.752
    config.objective = dict(name="edm", p_mean=-0.8, p_std=1.2, sigma_data=0.75)  # ours
    config.method = dict(
        name="teacher",
        ema_half_life=20e3,
        ema_ramp=0.05,
        label_dropout=0.1 if "dropout" in given else 0.0,
        accumulation=1,
    )
    config.method.samplers = common.usual_samplers()
    adam = dict(
        name="adam",
        learning_rate=2e-3,
        b1=0.9,
        b2=0.99,
        ramp_images=6400.0,
        decay="cosine",
        final=0.02,
    )
    config.optimizers = dict(student=adam)  # ours
    config.train.update(batch_size=128, steps=1300, log_every=25, save_every=325)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    common.posthoc(config, given)
    return common.smoke(config) if "smoke" in given else config
