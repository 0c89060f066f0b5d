"""SFD on ImageNet at 64x64 at its official settings."""

from configs import common


def get_config(arg="full"):
    """Student of 2 network calls (`:3`, `:4`, `:5` for as many), 200 thousand trajectories. For accelerators.

    Published: FID 10.25, 6.35, 4.99, 4.33 at 2 to 5 calls (arXiv:2409.19681, Table 3). bfloat16, as the
    teacher, where the original has float16 until a loss is NaN.
    `:fid` measures FID as published, see edm_cifar10.
    """
    given = common.words(arg, "fid", *"2345")
    config = common.base()
    config.data = common.edm_zip("imagenet-64x64", 64, labels=1000)
    config.data.max_reference = 50000  # of 1.28 million, for the report's own distances
    config.teacher = "edm_imagenet64" + common.joined(given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=common.calls(given, 2) + 2, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_3m", threshold=True), loss="l1", start="global",
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=5e-5, decay="drop", final=0.1)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=128, steps=1563, log_every=25, save_every=250)
    config.evaluation.panel.features.px = dict(name="pixels", pool=8)  # 192 dimensions, not 12288
    config.evaluation.panel.nearest = False  # 50,000 against 50,000 images
    config.evaluation.update(num=50000, batch_size=500, teacher_samplers=common.usual_samplers(79))
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config
