"""CLD teacher of CIFAR-10 (TFDS): an NCSN++ of the official depth at the official settings."""

from configs import common


def get_config(arg="full"):
    """Unconditional; 8 blocks a level, 800,000 steps. For accelerators.

    Network, rate with its ramp, gradient clip and average as in arXiv:2112.07068; the batch size is ours.
    """
    given = common.words(arg)
    batch = 128
    config = common.base()
    config.data = dict(name="tfds", dataset="cifar10", conditional=False)
    network = dict(
        name="song", architecture="ncsnpp", model_channels=128, channel_mult=(1, 2, 2, 2), num_blocks=8,
        attn_resolutions=(16,), dropout=0.1, dtype="float32",
    )  # fmt: skip
    process = dict(beta0=4.0, beta1=0.0, mass=0.25, gamma=0.04, numerical_eps=1e-9)
    config.models = dict(
        student=dict(network=network, precond=dict(name="cld", noise="log", **process))
    )
    config.objective = dict(name="cld", weighting="reweightedv2")
    half_life = batch * 6931.1  # an average of 0.9999 a step
    config.method = dict(
        name="teacher", ema_half_life=half_life, ema_ramp=None, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.phase_samplers()
    adam = dict(name="adam", learning_rate=2e-4, ramp_images=batch * 100e3, clip=1.0)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=batch, steps=800_000, log_every=100, save_every=5000)
    common.cifar_panel(config)
    return common.smoke(config) if "smoke" in given else config
