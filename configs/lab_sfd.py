"""SFD from an exact teacher: a Gaussian mixture whose denoiser, moments and modes are known."""

from configs import common


def get_config(arg="full"):
    """Student of 2 network calls on eight modes in the plane; `:64d` for 64 dimensions."""
    given = common.words(arg, "64d")
    config = common.base()
    config.data = common.lab_data(64 if "64d" in given else 2)
    config.init_from = "lab_edm" + common.joined(given, "64d")  # the student starts as this
    exact = dict(network=dict(name="gmm"), precond=dict(name="identity"))
    config.models = dict(teacher=exact, student=common.lab_network())
    config.method = dict(
        name="sfd", stamps=4, extra=3, schedule=common.few_levels(), afs=True,
        teacher=dict(name="dpmpp_3m", threshold=False),
    )  # fmt: skip
    adam = dict(name="adam", learning_rate=1e-3, decay="drop", final=0.1)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=256, steps=2000, log_every=50, save_every=500)
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    config.evaluation.teacher_samplers = common.samplers(("heun", 35), ("euler", 1), ("euler", 5))
    return common.smoke(config) if "smoke" in given else config
