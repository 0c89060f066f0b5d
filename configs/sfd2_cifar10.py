"""SFD's second stage on CIFAR-10 (TFDS) at its official settings, with LPIPS for who has its weights."""

from configs import common


def get_config(arg="full"):
    """Student of 1 network call from sfd_cifar10:5, 2 million trajectories; `:v` from sfdv_cifar10.

    For accelerators. Published: FID 5.83, unconditional, with LPIPS in the loss (arXiv:2409.19681, Table 2).
    `:cond` for a class-conditional teacher. `:lpips` with the file of launch/convert.py, whose sha256 is
    --config.method.lpips.sha256.
    """
    given = common.words(arg, "cond", "v", "lpips")
    several = "v" in given
    config = common.base()
    config.data = dict(name="tfds", dataset="cifar10", conditional="cond" in given)
    one = "sfd_cifar10" + common.joined(given | {"5"}, "cond", "5")
    config.teacher = "sfdv_cifar10" + common.joined(given, "cond") if several else one
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=3, conditioned=several, extra=2, schedule=common.few_levels(), afs=True,
        teacher=dict(name="euler", afs=True) | (dict(stamps=7) if several else {}),
        loss="l1", start="global",
        lpips=dict(weights="lpips.safetensors", sha256="", variant="sfd") if "lpips" in given else None,
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=5e-4, decay="drop", final=0.1)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=128, steps=15625, log_every=25, save_every=1000)
    common.cifar_panel(config)
    return common.smoke(config) if "smoke" in given else config
