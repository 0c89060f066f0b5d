"""Study of one-step generators in the lab: SiD, SiDA, DMD2 and Diff-Instruct in one table."""

from configs import common


def get_config(arg="full"):
    """All start as lab_edm and have the mixture's own denoiser as their teacher; `:64d` for 64 dimensions.

    Beside them stand the samplers of lab_edm. A few minutes.
    """
    given = common.words(arg, "64d")
    config = common.study("lab_edm" + common.joined(given, "64d"))
    config.study = dict(
        solvers={
            "dpm++ 2M": dict(name="dpmpp_2m", nfe=(3, 5, 10)),
            "heun": dict(name="heun", nfe=(5, 35)),
        },
        students={
            "SiD": dict(config="lab_sid" + common.joined(given, "64d")),
            "SiDA": dict(config="lab_dmd" + common.joined(given | {"sida"}, "sida", "64d")),
            "DMD2": dict(config="lab_dmd" + common.joined(given, "64d")),
            "Diff-Instruct": dict(config="lab_dmd" + common.joined(given | {"di"}, "di", "64d")),
        },
        nfe=(1,),
        reference=dict(name="heun", nfe=511),
    )
    config.evaluation = common.evaluation(panel=dict(name="mixture"), num=8192, batch_size=8192)
    if "smoke" in given:
        config.study.solvers = {"dpm++ 2M": dict(name="dpmpp_2m", nfe=(3, 5))}
        config.study.reference.nfe = 19
        config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    return config
