"""SFD-v on CIFAR-10 (TFDS) at its official settings."""

from configs import common


def get_config(arg="full"):
    """One student for 2 to 5 network calls, 800 thousand trajectories. For accelerators.

    Published: FID 4.28, 3.50, 3.18, 2.95 at 2 to 5 calls, unconditional (arXiv:2409.19681, Table 2).
    `:cond` for a class-conditional teacher.
    """
    given = common.words(arg, "cond")
    config = common.base()
    config.data = dict(name="tfds", dataset="cifar10", conditional="cond" in given)
    config.teacher = "edm_cifar10" + common.joined(given, "cond")
    config.models = dict(
        teacher=dict(like="teacher"), student=dict(like="teacher", network=dict(stamps="random"))
    )
    config.method = dict(
        name="sfd", stamps=(4, 5, 6, 7), conditioned=True, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_3m", threshold=True), loss="l1", start="global",
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=5e-5, decay="drop", final=0.1)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=128, steps=6250, log_every=25, save_every=500)
    common.cifar_panel(config)
    config.evaluation.teacher_samplers = common.usual_samplers()
    return common.smoke(config) if "smoke" in given else config
