"""CLD teacher of scikit-learn's digits."""

from configs import common


def get_config(arg="full"):
    """Class-conditional DDPM++ that sees position and velocity; the network and budget of edm_digits.

    Seven minutes on two busy CPU cores. 500 samples, one seed, ft | px: sscs 2.87 | 0.410 at 20 calls,
    2.47 | 0.401 at 50; ode 3.86 | 0.461 at 51, 3.14 | 0.456 at 101; em 3.44 | 0.441 at 50.
    """
    given = common.words(arg)
    config = common.base()
    config.data = dict(name="digits")
    network = dict(
        name="song", model_channels=32, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,), dropout=0.0,
        dtype="float32",
    )  # fmt: skip
    process = dict(beta0=4.0, beta1=0.0, mass=0.25, gamma=0.04, numerical_eps=1e-6)
    config.models = dict(
        student=dict(network=network, precond=dict(name="cld", noise="log", **process))
    )
    config.objective = dict(name="cld", weighting="reweightedv2")
    config.method = dict(
        name="teacher", ema_half_life=20e3, ema_ramp=0.05, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.phase_samplers()
    adam = dict(
        name="adam", learning_rate=2e-3, b1=0.9, b2=0.99, ramp_images=6400.0, decay="cosine", final=0.02
    )
    config.optimizers = dict(student=adam)  # ours
    config.train.update(batch_size=128, steps=1300, log_every=25, save_every=325)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    return common.smoke(config) if "smoke" in given else config
