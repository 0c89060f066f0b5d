"""Study of one-step generators on digits: SiD, SiDA, DMD2 and Diff-Instruct in one table."""

from configs import common


def get_config(arg="full"):
    """All from the edm_digits teacher, beside its own samplers: distances, and what each training cost."""
    given = common.words(arg)
    config = common.study("edm_digits" + common.joined(given))
    config.study = dict(
        solvers={
            "dpm++ 2M": dict(name="dpmpp_2m", nfe=(3, 5, 10)),
            "heun": dict(name="heun", nfe=(5, 35)),
        },
        students={
            "SiD": dict(config="sid_digits" + common.joined(given)),
            "SiDA": dict(config="dmd_digits" + common.joined(given | {"sida"}, "sida")),
            "DMD2": dict(config="dmd_digits" + common.joined(given)),
            "Diff-Instruct": dict(config="dmd_digits" + common.joined(given | {"di"}, "di")),
        },
        nfe=(1,),
        reference=dict(name="heun", nfe=511),
    )
    config.evaluation.update(num=1797, batch_size=600, seeds=(0, 1, 2))
    common.feature_panel(config, "digits")
    if "smoke" in given:
        config.study.solvers = {"dpm++ 2M": dict(name="dpmpp_2m", nfe=(3, 5))}
        config.study.reference.nfe = 19
        config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    return config
