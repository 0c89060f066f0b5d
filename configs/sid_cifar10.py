"""SiD on CIFAR-10 (TFDS) at its official settings, and small."""

from configs import common


def get_config(arg="full"):
    """One-step generator: 500 million images (`:cond`: 800), Adam(0, 0.999) at 1e-5. For accelerators.

    Published: FID 1.923 at 1 NFE (unconditional), 1.710 (conditional) (arXiv:2404.04057).
    `:16` is for a CPU core: the generator of edm_cifar10:16, from 64,000 images.
    `:fid` measures FID as published, see edm_cifar10.
    """
    given = common.words(arg, "fid", "16", "cond")
    config = common.base()
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)  # as the teacher's
    if "16" in given:
        return small(config, given)
    config.data = dict(name="tfds", dataset="cifar10", conditional="cond" in given)
    config.teacher = "edm_cifar10" + common.joined(given, "cond")
    config.augment = dict(name="edm", p=0.12)  # of generated images; the fake score alone is told
    config.models = {role: dict(like="teacher") for role in ("teacher", "generator", "fake")}
    config.method = dict(
        name="sid", alpha=1.2, sigma_init=2.5, levels=dict(name="karras", t_max=800.0),
        fake_steps=1, accumulation=1,
        ema_half_life=500e3, ema_ramp=0.05,
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=1e-5, b1=0.0, b2=0.999, eps=1e-8)
    config.optimizers = dict(generator=adam, fake=dict(adam))
    images = 800_000_000 if "cond" in given else 500_000_000
    config.train.update(batch_size=256, steps=images // 256, log_every=100, save_every=5000)
    common.cifar_panel(config)
    config.evaluation.teacher_samplers = common.usual_samplers()
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config


def small(config, given):
    """The generator at 16x16: SiD's loss at the rates of sid_digits, ours, and no augmentation."""
    common.alone(given, "16", "cond", "fid")
    config.data = dict(name="tfds", dataset="cifar10", size=16, in_memory=True)
    config.teacher = "edm_cifar10" + common.joined(given, "16")
    config.models = {role: dict(like="teacher") for role in ("teacher", "generator", "fake")}
    config.method = dict(
        name="sid", alpha=1.2, sigma_init=2.5, levels=dict(name="karras", t_max=800.0),
        fake_steps=1, accumulation=1,
        ema_half_life=5e3, ema_ramp=0.05,
    )  # fmt: skip
    adam = dict(name="adam", b1=0.0, b2=0.999, eps=1e-8, decay="cosine", final=0.05)
    config.optimizers = dict(
        generator=dict(adam, learning_rate=5e-4), fake=dict(adam, learning_rate=1e-3)
    )
    config.train.update(batch_size=64, steps=1000, log_every=25, save_every=100)
    common.cifar_panel(config, small=True)
    config.evaluation.teacher_samplers = common.fewer_samplers()
    return common.smoke(config) if "smoke" in given else config
