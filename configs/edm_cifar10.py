"""EDM teacher of CIFAR-10 (TFDS): the official networks at their official settings, and a small one."""

from configs import common


def get_config(arg="full"):
    """55.7M parameters, 200 million images; unconditional, `:cond` for class-conditional. For accelerators.

    DDPM++; `:ve` is NCSN++, of 56.4M (the names of released checkpoints: all have the preconditioning and loss
    of EDM). `:zip` reads data/cifar10-32x32.zip, EDM's own form, instead of TFDS.
    `:fid` measures FID as published, for which Inception's weights must be in data/.
    `:16` is for a CPU core: a class-conditional DDPM++ of 311,139 parameters on images halved to 16x16, 333,000
    of them; it stands alone.
    Published: FID 1.97 at 35 NFE, conditional 1.79; NCSN++ 1.98 and 1.79 (arXiv:2206.00364, Table 2).
    """
    given = common.words(arg, "fid", "16", "cond", "vp", "ve", "zip")
    config = common.base()
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)
    config.augment = dict(name="edm", p=0.12)
    if "16" in given:
        return small(config, given)
    config.data = dict(name="tfds", dataset="cifar10", conditional="cond" in given)
    if "zip" in given:
        config.data = common.edm_zip("cifar10-32x32", 32, labels=10 if "cond" in given else 0)
    network = dict(
        name="song", architecture=common.architecture(given), model_channels=128, channel_mult=(2, 2, 2),
        num_blocks=4, attn_resolutions=(16,), dropout=0.13, augment_dim=9, dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network, precond=dict(name="edm", sigma_data=0.5)))
    config.method = dict(
        name="teacher", ema_half_life=500e3, ema_ramp=0.05, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.usual_samplers()
    config.optimizers = dict(student=dict(name="adam", learning_rate=1e-3, ramp_images=10e6))
    config.train.update(batch_size=512, steps=200_000_000 // 512, log_every=100, save_every=5000)
    common.cifar_panel(config)
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config


def small(config, given):
    """The teacher of 16x16 images: EDM's loss and augmentation, a network and rates of our own."""
    common.alone(given, "16", "cond", "vp", "ve", "zip", "fid")
    config.data = dict(name="tfds", dataset="cifar10", size=16, in_memory=True)
    network = dict(
        name="song", model_channels=32, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(8,), dropout=0.0,
        augment_dim=9, dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network, precond=dict(name="edm", sigma_data=0.5)))
    config.method = dict(
        name="teacher", ema_half_life=20e3, ema_ramp=0.05, label_dropout=0.0, accumulation=1
    )
    adam = dict(name="adam", learning_rate=2e-3, ramp_images=25600.0, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=128, steps=2600, log_every=50, save_every=200)
    common.cifar_panel(config, small=True)
    config.method.samplers = common.fewer_samplers()
    return common.smoke(config) if "smoke" in given else config
