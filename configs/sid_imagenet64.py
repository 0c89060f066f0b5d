"""SiD on ImageNet at 64x64 at its official settings."""

from configs import common


def get_config(arg="full"):
    """One-step generator: 1 billion images in batches of 8192, Adam(0, 0.999) at 4e-6. For accelerators.

    Where memory is short, --config.method.accumulation splits the batch: the original has rounds of 64 images.
    Published: FID 1.524 at 1 NFE (arXiv:2404.04057). bfloat16, as the teacher, where the original has float16.
    `:fid` measures FID as published, see edm_cifar10.
    """
    given = common.words(arg, "fid")
    config = common.base()
    config.data = common.edm_zip("imagenet-64x64", 64, labels=1000)
    config.data.max_reference = 50000  # of 1.28 million, for the report's own distances
    config.teacher = "edm_imagenet64" + common.joined(given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "generator", "fake")}
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)
    config.method = dict(
        name="sid", alpha=1.2, sigma_init=2.5, levels=dict(name="karras", t_max=800.0),
        fake_steps=1, accumulation=1,
        ema_half_life=2e6, ema_ramp=0.05,
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=4e-6, b1=0.0, b2=0.999, eps=1e-6)  # eps is that of half precision
    config.optimizers = dict(generator=adam, fake=dict(adam))
    config.train.update(batch_size=8192, steps=1_000_000_000 // 8192, log_every=100, save_every=1000)
    config.evaluation.panel.features.px = dict(name="pixels", pool=8)  # 192 dimensions, not 12288
    config.evaluation.panel.nearest = False  # tens of thousands against each other
    config.evaluation.update(num=50000, batch_size=500, teacher_samplers=common.usual_samplers(79))
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config
