"""SiD on Fashion-MNIST (TFDS)."""

from configs import common


def get_config(arg="full"):
    """One-step generator from the edm_fashion_mnist teacher of the same size (`:16` for two CPU cores)."""
    given = common.words(arg, "16")
    small = "16" in given
    config = common.base()
    config.data = dict(
        name="tfds", dataset="fashion_mnist", size=16 if small else 32, in_memory=True
    )
    config.teacher = "edm_fashion_mnist" + common.joined(given, "16")
    config.models = {role: dict(like="teacher") for role in ("teacher", "generator", "fake")}
    config.objective = dict(name="edm", p_mean=-1.0, p_std=1.2, sigma_data=0.65)  # as the teacher's
    config.method = dict(
        name="sid", alpha=1.2, sigma_init=2.5, levels=dict(name="karras", t_max=800.0),
        fake_steps=1, accumulation=1,
        ema_half_life=10e3 if small else 100e3, ema_ramp=0.05,
    )  # fmt: skip
    rate = 3e-4 if small else 5e-5  # ours
    adam = dict(
        name="adam", learning_rate=rate, b1=0.0, b2=0.999, eps=1e-8, decay="cosine", final=0.05
    )
    config.optimizers = dict(generator=adam, fake=dict(adam))
    config.train.update(batch_size=64, steps=2000 if small else 40000, log_every=50, save_every=500)
    common.fashion_panel(config, small)
    config.evaluation.update(num=10000, batch_size=500, teacher_samplers=common.usual_samplers())
    return common.smoke(config) if "smoke" in given else config
