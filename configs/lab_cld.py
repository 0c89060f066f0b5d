"""CLD on a known Gaussian mixture."""

from configs import common


def get_config(arg="full"):
    """MLP that sees position and velocity of eight modes in the plane; `:64d` for 64 dimensions."""
    given = common.words(arg, "64d")
    config = common.base()
    config.data = common.lab_data(64 if "64d" in given else 2)
    network = dict(name="mlp", hidden=(128, 128, 128))
    process = dict(beta0=4.0, beta1=0.0, mass=0.25, gamma=0.04, numerical_eps=1e-6)
    config.models = dict(
        student=dict(network=network, precond=dict(name="cld", noise="log", **process))
    )
    config.objective = dict(name="cld", weighting="reweightedv2")
    config.method = dict(name="teacher", ema_half_life=50e3, ema_ramp=0.05)
    config.method.samplers = common.phase_samplers()
    adam = dict(name="adam", learning_rate=2e-3, ramp_images=12800.0, decay="cosine", final=0.02)
    config.optimizers = dict(student=adam)
    config.train.update(batch_size=256, steps=3000, log_every=100, save_every=1000)
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    return common.smoke(config) if "smoke" in given else config
