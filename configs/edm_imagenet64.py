"""EDM teacher of ImageNet at 64x64: the official ADM at its official settings."""

from configs import common


def get_config(arg="full"):
    """Class-conditional, 295.9M parameters, 2.5 billion images: 13 days on 32 A100. For accelerators.

    Reads data/imagenet-64x64.zip, EDM's own form. bfloat16 where the original has float16. A loss scale of
    100 is the official option, for float16; bfloat16 has the range of float32 and could do without. It is kept,
    as gradients are not unscaled: so Adam's eps weighs as in the original.
    Where memory is short, --config.method.accumulation splits the batch, --config.mesh.fsdp the weights.
    Published: FID 1.36 at 511 NFE, with churn (repository of arXiv:2206.00364).
    `:fid` measures FID as published, see edm_cifar10.
    """
    given = common.words(arg, "fid")
    config = common.base()
    config.data = common.edm_zip("imagenet-64x64", 64, labels=1000)
    config.data.max_reference = 50000  # of 1.28 million, for the report's own distances
    network = dict(
        name="adm", model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, attn_resolutions=(32, 16, 8),
        channels_per_head=64, dropout=0.1, dtype="bfloat16",
    )  # fmt: skip
    config.models = dict(student=dict(network=network, precond=dict(name="edm", sigma_data=0.5)))
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)
    config.method = dict(
        name="teacher", ema_half_life=50e6, ema_ramp=0.05, label_dropout=0.0, loss_scale=100.0,
        accumulation=1,
    )  # fmt: skip
    churn = dict(name="heun_churn", nfe=511, s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003)
    config.method.samplers = {"heun_churn 511": churn} | common.usual_samplers(79)
    config.optimizers = dict(student=dict(name="adam", learning_rate=1e-4, ramp_images=10e6))
    config.train.update(batch_size=4096, steps=2_500_000_000 // 4096, log_every=100, save_every=2500)
    config.evaluation.panel.features.px = dict(name="pixels", pool=8)  # 192 dimensions, not 12288
    config.evaluation.panel.nearest = False  # 50,000 against 50,000 images
    config.evaluation.update(num=50000, batch_size=500)
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config
