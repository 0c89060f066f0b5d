"""SiD on FFHQ at 64x64 at its official settings."""

from configs import common


def get_config(arg="full"):
    """One-step generator: 500 million images, Adam(0.9, 0.999) at 1e-5, the fake score Adam(0, 0.999).

    For accelerators. Published: FID 1.550 at 1 NFE (arXiv:2404.04057). bfloat16 where the original has float16.
    `:fid` measures FID as published, see edm_cifar10.
    """
    given = common.words(arg, "fid")
    config = common.base()
    config.data = common.edm_zip("ffhq-64x64", 64)
    config.teacher = "edm_ffhq64" + common.joined(given)
    half = dict(like="teacher", network=dict(dtype="bfloat16"))
    config.models = {role: dict(half) for role in ("teacher", "generator", "fake")}
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)
    config.augment = dict(name="edm", p=0.15)  # of generated images; the fake score alone is told
    config.method = dict(
        name="sid", alpha=1.2, sigma_init=2.5, levels=dict(name="karras", t_max=800.0),
        fake_steps=1, accumulation=1,
        ema_half_life=500e3, ema_ramp=0.05,
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=1e-5, b1=0.0, b2=0.999, eps=1e-6)  # eps is that of half precision
    config.optimizers = dict(generator=adam | dict(b1=0.9), fake=dict(adam))
    config.train.update(batch_size=512, steps=500_000_000 // 512, log_every=100, save_every=5000)
    config.evaluation.panel.features.px = dict(name="pixels", pool=8)  # 192 dimensions, not 12288
    config.evaluation.panel.nearest = False  # tens of thousands against each other
    config.evaluation.update(num=50000, batch_size=500, teacher_samplers=common.usual_samplers(79))
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config
