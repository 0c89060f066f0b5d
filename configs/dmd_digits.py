"""DMD2, Diff-Instruct and SiDA on scikit-learn's digits."""

from configs import common


def get_config(arg="full"):
    """One-step generators from the edm_digits teacher: DMD2, or `:di` Diff-Instruct, or `:sida` SiDA.

    About five minutes each on two CPU cores. DMD2 and SiDA see real images. Comments have the official values.
    """
    given = common.words(arg, "dmd2", "di", "sida", "posthoc")
    (kind, *others) = sorted(given & {"dmd2", "di", "sida"}) or ["dmd2"]
    if others:
        raise ValueError(f"one of dmd2, di and sida at a time; got {', '.join([kind, *others])}.")
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "edm_digits" + common.joined(given)
    config.models = {role: dict(like="teacher") for role in ("teacher", "generator", "fake")}
    config.objective = dict(name="edm", p_mean=-0.8, p_std=1.2, sigma_data=0.75)  # as the teacher's
    adam = dict(name="adam", b1=0.0, b2=0.999, eps=1e-8, decay="cosine", final=0.05)
    rates = dict(generator=5e-4, fake=1e-3)  # ours, as those of sid_digits
    config.train.update(batch_size=64, steps=1500, log_every=30, save_every=300)
    encoded = "enc/4x4_block0"  # the encoder's last features, 4x4x32
    if kind == "dmd2":
        config.objective = dict(name="edm_grid", sigma_data=0.75)
        config.method = dict(
            name="dmd", loss="dmd", weighted=True, floor=1e-6, reduction="mean",  # official: no floor
            sigma_init=2.5,  # official: 80
            levels=dict(name="karras_grid", first=20, last=980), order="generator_first",
            ratio=2,  # official: 5
        )  # fmt: skip
        config.method.adversarial = dict(
            tap=encoded, loss=dict(name="vanilla"), generator_weight=3e-3, discriminator_weight=1e-2, begin=0
        )
        config.models.discriminator = dict(
            network=dict(name="discriminator", head="dmd2", layers=((None, 4, 2, 1), (None, 2, 2, 0))),
            precond=dict(name="identity"),
        )
        # Official: AdamW(0.9, 0.999), weight decay 0.01, 2e-6 after a warm-up of 500 iterations.
        adam = dict(adam, name="adamw", weight_decay=0.01, clip=10.0)
        config.train.steps = 2400
    elif kind == "di":
        config.method = dict(
            name="dmd", loss="dmd", weighted=False, form="product", reduction="sum",
            sigma_init=2.5,  # official: 1
            levels=dict(name="lognormal", mean=-0.8, std=1.2),  # official: mean -1.2
            order="fake_first", shared=("label",), ratio=1, score_dropout=True,
        )  # fmt: skip
    else:
        config.method = dict(
            name="dmd", loss="sid", alpha=1.0, floor=1e-5, reduction="sum", generator_scale=100.0,
            sigma_init=2.5, levels=dict(name="karras", t_max=800.0), order="fake_first", shared=(), ratio=1,
            warmup=50,  # official: 100,000 images
        )  # fmt: skip
        config.method.adversarial = dict(
            tap=encoded, loss=dict(name="vanilla"), levels=None, weighting="score", clip=10.0, share=0.5,
            groups=4,  # of 16 images, as the official ones of a device and round
            generator_weight=0.01, discriminator_weight=0.5,  # official: 1, halved
            begin=100,  # official: 200,000 images
        )  # fmt: skip
    config.method.update(ema_half_life=5e3, ema_ramp=0.05, accumulation=1)
    config.optimizers = {role: dict(adam, learning_rate=rate) for role, rate in rates.items()}
    if kind == "sida":
        config.optimizers.fake.clip_value = 1.0
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    config.evaluation.teacher_samplers = common.usual_samplers()
    common.posthoc(config, given)
    if "smoke" in given and kind == "sida":
        config.method.warmup, config.method.adversarial.begin = 1, 2
    return common.smoke(config) if "smoke" in given else config
