"""Flash Diffusion on scikit-learn's digits: few calls by a LoRA delta of the discrete_digits teacher."""

from configs import common

STAGES = 4
SCALE = 1.25  # of guidance: where the teacher's own distance at 64 calls is least, see its report


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls. `:full_weights` trains all weights in the delta's stead.

    Comments have the official values, Stable Diffusion 1.5's where they differ between networks.
    """
    given = common.words(arg, "full_weights")
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "discrete_digits" + common.joined(given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    if "full_weights" not in given:
        rule = dict(rank=5, alpha=5.0, init="gaussian")  # official: attention only, rank 128, alpha as the rank
        everywhere = ("attention", "convolutions", "embeddings")  # attention is in three blocks only here
        config.models.student.lora = dict(rules={name: dict(rule) for name in everywhere})
    config.models.discriminator = dict(  # of 98,753 parameters, on 4x4 features
        network=dict(name="discriminator", head="dmd2", layers=((64, 4, 2, 1), (64, 2, 2, 0))),
        precond=dict(name="identity"),
    )
    config.method = dict(
        name="flash", grid=16,  # official: 32; PixArt 16
        guidance=(SCALE, SCALE),  # official: 3 to 13
        distance=dict(name="l2"),  # official: LPIPS of the decoded latents
        renoise="exact",  # official: grid
        nfe=(1, 2, 4),
    )  # fmt: skip
    config.method.adversarial = dict(tap="dec/4x4_in1", loss=dict(name="lsgan"), labels=(10, 250, 500, 750))
    config.method.stages = dict(
        steps=(400,) * STAGES,  # official: 2500 each
        modes=((0.0, 0.0, 0.5, 0.5), (0.1, 0.3, 0.3, 0.3), (0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.2, 0.2)),
        distill=(1.0,) * STAGES,
        matching=(0.0, 0.3, 0.5, 0.7),
        adversarial=(0.0, 0.1, 0.2, 0.3),
    )
    adam = dict(name="adamw", b1=0.9, b2=0.999, weight_decay=0.01)
    # Official: 1e-5 for both, and no decay.
    student = dict(adam, learning_rate=1e-3, decay="cosine", final=0.05)
    config.optimizers = dict(student=student, discriminator=dict(adam, learning_rate=1e-3))
    config.train.update(batch_size=32, steps=1600, log_every=20, save_every=400)
    config.schedule = dict(name="timesteps", spacing="trailing", betas="scaled_linear", train_steps=1000)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    config.evaluation.teacher_samplers = {
        **common.guided_samplers(SCALE, 64, 32, 8, 4, 2),
        **common.samplers(*[("dpmpp_2m", n) for n in (32, 8, 4, 2)]),
    }
    if "smoke" in given:  # every stage is a program, which takes longer to compile than to run
        config.method.grid = 8
        config.method.stages = {name: (column[0], column[-1]) for name, column in config.method.stages.items()}
        config.method.stages.steps = (2, 4)
    return common.smoke(config) if "smoke" in given else config
