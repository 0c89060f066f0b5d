"""SFD on CIFAR-10 (TFDS) at its official settings, and small."""

from configs import common


def get_config(arg="full"):
    """Student of 2 network calls (`:3`, `:4`, `:5` for as many), 200 thousand trajectories. For accelerators.

    Published: FID 4.53, 3.58, 3.24, 3.06 at 2 to 5 calls, unconditional (arXiv:2409.19681, Table 2).
    `:cond` for a class-conditional teacher. `:16` is for a CPU core: the student of edm_cifar10:16, from 4096
    trajectories.
    `:fid` measures FID as published, see edm_cifar10.
    """
    given = common.words(arg, "fid", "16", "cond", *"2345")
    config = common.base()
    if "16" in given:
        return small(config, given)
    config.data = dict(name="tfds", dataset="cifar10", conditional="cond" in given)
    config.teacher = "edm_cifar10" + common.joined(given, "cond")
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=common.calls(given, 2) + 2, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_3m", threshold=True), loss="l1", start="global",
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=5e-5, decay="drop", final=0.1)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=128, steps=1563, log_every=25, save_every=250)
    common.cifar_panel(config)
    config.evaluation.teacher_samplers = common.usual_samplers()
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config


def small(config, given):
    """The student at 16x16: settings of sfd_digits, whose teacher walks by DPM-Solver++(2M) unthresholded."""
    common.alone(given, "16", "cond", "fid")
    config.data = dict(name="tfds", dataset="cifar10", size=16, in_memory=True)
    config.teacher = "edm_cifar10" + common.joined(given, "16")
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.method = dict(
        name="sfd", stamps=common.calls(given - {"16"}, 2) + 2, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_2m", threshold=False),
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=5e-4, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=16, steps=256, log_every=32, save_every=64)
    common.cifar_panel(config, small=True)
    config.evaluation.teacher_samplers = common.fewer_samplers()
    return common.smoke(config) if "smoke" in given else config
