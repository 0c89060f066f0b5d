"""Ablation of SFD on digits: its ingredients switched one at a time."""

from configs import common


def get_config(arg="full"):
    """sfd_digits at 2 network calls with one setting changed, and SFD-v with and without its step condition.

    Every row trains as many iterations as the one that it is a change of.
    """
    given = common.words(arg)
    one = "sfd_digits" + common.joined(given | {"2"}, "2")
    several = "sfdv_digits" + common.joined(given)
    config = common.study("edm_digits" + common.joined(given))

    def changed(**method):
        return dict(config=one, changes=dict(method=method))

    students = {
        "SFD": dict(config=one),
        "teacher DDIM": changed(teacher=dict(name="ddim")),
        "teacher Heun": changed(teacher=dict(name="heun")),
        "teacher DPM-Solver++(3M)": changed(teacher=dict(name="dpmpp_3m")),
        "teacher iPNDM-4": changed(teacher=dict(name="ipndm_4")),
        "teacher thresholded": changed(teacher=dict(threshold=True)),
        "K = 0": changed(extra=0),
        "K = 1": changed(extra=1),
        "K = 7": changed(extra=7),
        "sigma_min 2e-3": changed(schedule=dict(sigma_min=0.002)),
        "sigma_min 2e-2": changed(schedule=dict(sigma_min=0.02)),
        "no analytical step": changed(afs=False, stamps=3),  # the same calls
        "L2": changed(loss="l2"),
        "local": changed(start="local"),
        "SFD-v": dict(config=several),
        "SFD-v, untold": dict(config=several, changes=dict(method=dict(conditioned=False))),
    }
    uneven, logsnr = dict(name="polynomial", zero=False), dict(name="logsnr", zero=False)
    solvers = {
        "ddim": dict(name="ddim", schedule=uneven, history=4, target="noise", nfe=(2, 3, 4, 5)),
        "dpm++ 3M": dict(name="dpmpp_3m", schedule=logsnr, history=4, nfe=(2, 3, 4, 5)),
        "ipndm 4": dict(name="ipndm_4", schedule=uneven, history=4, nfe=(2, 3, 4, 5)),
        "heun (EDM)": dict(name="heun", schedule=dict(name="polynomial"), nfe=(35,)),
    }
    config.study = dict(
        solvers=solvers, students=students, nfe=(2,), reference=dict(name="heun", nfe=511)
    )
    config.evaluation.update(num=1797, batch_size=600)
    common.digits_panel(config)
    if "smoke" in given:
        config.study.students = {row: students[row] for row in ("SFD", "L2")}
        config.study.solvers = {"ddim": {**solvers["ddim"], "nfe": (2, 3)}}
        config.study.reference.nfe = 19
        config.evaluation.update(num=64, batch_size=32)
    return config
