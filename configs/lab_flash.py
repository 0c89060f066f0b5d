"""Flash Diffusion in the lab: a student of few steps of a learned, conditional denoiser of a known mixture."""

from configs import common


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls for eight modes in the plane; `:64d` for 64 dimensions. About a minute.

    The teacher is not guided, so that both are measured against the mixture; `:guided` draws scales of 1 to 2.
    `:separate` trains a fake score of its own for distribution matching.
    The discriminator reads its last hidden layer.
    """
    given = common.words(arg, "64d", "guided", "separate")
    config = common.base()
    config.data = common.lab_data(64 if "64d" in given else 2)
    config.data.labels = True
    config.teacher = "lab_edm:cond" + "".join(f",{word}" for word in ("64d", "smoke") if word in given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    config.models.discriminator = dict(
        network=dict(name="discriminator", head="dmd2", layers=((64, 1, 1, 0),)), precond=dict(name="identity")
    )
    config.method = dict(
        name="flash", betas=dict(betas="scaled_linear"), grid=32, nfe=(1, 2, 4),
        guidance=(1.0, 2.0) if "guided" in given else (1.0, 1.0),
        stages=dict(steps=(1000,) * 4),
        adversarial=dict(tap="hidden3", loss=dict(name="lsgan")),
    )  # fmt: skip
    # Official: 1e-5 for both, a constant rate.
    adamw = dict(name="adamw", learning_rate=5e-4, weight_decay=0.01, decay="cosine", final=0.02)
    config.optimizers = dict(student=adamw, discriminator=dict(adamw))
    if "separate" in given:
        config.method.fake = "separate"
        config.optimizers.fake = dict(adamw)
    config.train.update(batch_size=256, steps=4000, log_every=100, save_every=1000)
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    few = [("euler", n) for n in (1, 2, 4)]
    config.evaluation.teacher_samplers = common.samplers(("heun", 35), ("dpmpp_2m", 32), *few)
    if "smoke" in given:
        config.method.stages.steps = (1, 1, 1, 3)
    return common.smoke(config) if "smoke" in given else config
