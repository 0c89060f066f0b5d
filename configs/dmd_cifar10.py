"""DMD2, Diff-Instruct and SiDA on CIFAR-10 (TFDS) at their official settings, but for augmentation."""

from configs import common


def get_config(arg="full"):
    """One-step generators: DMD2, or `:di` Diff-Instruct, or `:sida` SiDA; `:cond` for each. For accelerators.

    `:sid,sida` is SiDA from a finished sid_cifar10. Published FID at 1 NFE: SiDA 1.499 (unconditional), 1.396
    (conditional) (arXiv:2410.14919); Diff-Instruct 4.53 (arXiv:2305.18455); DMD2 2.13 (conditional) as a
    library has it, whose settings for CIFAR-10 these are: DMD2's own are for ImageNet (arXiv:2405.14867).
    """
    given = common.words(arg, "dmd2", "di", "sida", "sid", "cond")
    (kind, *others) = sorted(given & {"dmd2", "di", "sida"}) or ["dmd2"]
    if others or ("sid" in given and kind != "sida"):
        raise ValueError(f"one of dmd2, di, sida and sid,sida at a time; got {', '.join(sorted(given))}.")
    config = common.base()
    config.data = dict(name="tfds", dataset="cifar10", conditional="cond" in given)
    config.teacher = "edm_cifar10" + common.joined(given, "cond")
    config.models = {role: dict(like="teacher") for role in ("teacher", "generator", "fake")}
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)
    adam = dict(name="adam", learning_rate=1e-5, b1=0.0, b2=0.999, eps=1e-8)
    encoded = "enc/8x8_block3"  # the encoder's last features, 8x8x256
    if "smoke" in given:
        encoded = "enc/16x16_block0"
    if kind == "dmd2":
        config.objective = dict(name="edm_grid", sigma_data=0.5)
        config.method = dict(
            name="dmd", loss="dmd", weighted=True, floor=0.0, reduction="mean", sigma_init=80.0,
            levels=dict(name="karras_grid", first=20, last=980), order="generator_first", ratio=5,
        )  # fmt: skip
        config.method.adversarial = dict(
            tap=encoded, loss=dict(name="vanilla"), generator_weight=1e-3,  # ImageNet: 3e-3
            discriminator_weight=1e-2,
        )  # fmt: skip
        config.models.discriminator = dict(
            network=dict(name="discriminator", head="dmd2"), precond=dict(name="identity")
        )
        adam = dict(
            name="adamw", learning_rate=2e-6, b1=0.9, b2=0.999, weight_decay=0.01, clip=10.0,
            ramp_images=500.0 * 2048,  # a warm-up of 500 iterations
        )  # fmt: skip
        batch, images = 2048, 2048 * 200_000
        ema, ramp = 2048 * 6931.0, None  # 0.9999 an iteration
    elif kind == "di":
        config.method = dict(
            name="dmd", loss="dmd", weighted=False, form="product", reduction="sum", sigma_init=1.0,
            levels=dict(name="lognormal", mean=-1.2, std=1.2), order="fake_first", shared=("label",), ratio=1,
            score_dropout=True,
        )  # fmt: skip
        batch, images, ema, ramp = 128, 500_000_000, 500e3, 0.05
    else:
        config.init_from = "sid_cifar10" + common.joined(given, "cond") if "sid" in given else ""
        config.method = dict(
            name="dmd", loss="sid", alpha=1.0, floor=1e-5, reduction="sum", generator_scale=100.0,
            sigma_init=2.5, levels=dict(name="karras", t_max=800.0), order="fake_first", shared=(), ratio=1,
            warmup=100_000 // 256 + 1, fake_start="teacher",
        )  # fmt: skip
        config.method.adversarial = dict(
            tap=encoded, loss=dict(name="vanilla"), levels=None, weighting="score", clip=10.0, share=0.5,
            groups=16,  # of 16 images, those of a device and round
            generator_weight=0.01, discriminator_weight=0.5, begin=200_000 // 256 + 1,
        )  # fmt: skip
        batch, images, ema, ramp = 256, 300_000_000, 500e3, 0.05
    config.method.update(ema_half_life=ema, ema_ramp=ramp, accumulation=1)
    config.optimizers = dict(generator=adam, fake=dict(adam))
    if kind == "sida":
        config.optimizers.fake.clip_value = 1.0
    config.train.update(batch_size=batch, steps=images // batch, log_every=100, save_every=5000)
    common.cifar_panel(config)
    config.evaluation.teacher_samplers = common.usual_samplers()
    return common.smoke(config) if "smoke" in given else config
