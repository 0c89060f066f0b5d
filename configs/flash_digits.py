"""Flash Diffusion on scikit-learn's digits: few calls by a LoRA delta of the discrete_digits teacher."""

from configs import common

STAGES = 4
SCALE = 1.1  # of guidance: where discrete_digits is nearest to the data at 64 calls, see docs/flash.md


def get_config(arg="full"):
    """Student of 1, 2 and 4 calls. `:full_weights` trains all weights in the delta's stead.

    Half an hour on one busy CPU core, and ten minutes for the teacher. Ours, and why, see docs/flash.md: no
    distribution matching, L1 in place of LPIPS, one scale of guidance.
    """
    given = common.words(arg, "full_weights")
    config = common.base()
    config.data = dict(name="digits")
    config.teacher = "discrete_digits" + common.joined(given)
    common.flash_student(config, 8, given, SCALE)
    if "full_weights" in given:
        del config.models.student.lora
    config.method.grid = 32
    config.method.distance = dict(name="l1")
    config.method.stages.update(steps=(400,) * STAGES, matching=(0.0,) * STAGES)  # official: 0, .3, .5, .7
    config.optimizers.student.learning_rate = 2e-3
    config.method.samplers = {
        f"student, noise kept {n}": dict(name="lcm", nfe=n, renoise=False) for n in (2, 4)
    }
    config.train.update(batch_size=32, steps=1600, save_every=400)
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    config.evaluation.teacher_samplers = {
        **common.guided_samplers(SCALE, 64, 32, 8, 4, 2),
        **common.samplers(*[("dpmpp_2m", n) for n in (32, 8, 4, 2)]),
    }
    if "smoke" in given:  # every stage is a program, which takes longer to compile than to run
        config.method.stages = {name: (column[0], column[-1]) for name, column in config.method.stages.items()}
        config.method.stages.steps = (2, 4)
        config.method.grid = 8
    return common.smoke(config) if "smoke" in given else config
