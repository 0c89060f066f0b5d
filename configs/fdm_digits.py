"""FDM teacher of scikit-learn's digits."""

from configs import common


def get_config(arg="full"):
    """The network of edm_digits with FDM on EDM; `:vp` and `:ve` for other base processes.

    `,plain` is without FDM, `,scale` and `,warmup` have one part of it: same network, budget and samplers.
    `:ve` has an NCSN++, as published. The rate is constant after its ramp, as published, so that a part of
    the run is what a shorter run would be; checkpoints of ten parts stay, for configs/fdm_study_digits.py.
    Three minutes on one CPU core. ft by iPNDM-3 at ten calls: 1.01 with FDM, 0.75 without; docs/fdm.md has all.
    """
    given = common.words(arg, *common.FDM)
    config = common.base()
    config.data = dict(name="digits")
    network = dict(
        name="song", architecture="ncsnpp" if "ve" in given else "ddpmpp", model_channels=32,
        channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,), dropout=0.0, dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network))  # and what common.fdm gives it
    common.fdm(
        config, given,
        edm=dict(sigma_data=0.75, p_mean=-0.8, p_std=1.2),
        multiplier=dict(edm=2.0, vp=2.0),
        warmup=dict(edm=50, vp=50, ve=50),  # ours: as long as the learning rate's ramp
    )  # fmt: skip
    config.method = dict(
        name="teacher", ema_half_life=20e3, ema_ramp=0.1, label_dropout=0.0, accumulation=1
    )
    config.method.samplers = common.usual_samplers()
    adam = dict(name="adam", learning_rate=2e-3, b1=0.9, b2=0.99, ramp_images=6400.0)
    config.optimizers = dict(student=adam)  # ours
    config.train.update(batch_size=128, steps=1000, log_every=25, save_every=100, milestones=100)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    return common.smoke(config) if "smoke" in given else config
