"""Study of SFD on digits: students of one to five network calls against training-free samplers."""

from configs import common


def get_config(arg="full"):
    """SFD at 2 to 5 calls, SFD-v, the second stage, and SFD at a fraction of its iterations.

    All on the edm_digits teacher, from the same noise, the training-free samplers on the schedules that their
    authors advise.
    """
    given = common.words(arg)
    smoke = common.joined(given)
    config = common.study("edm_digits" + smoke)
    uneven, logsnr = dict(name="polynomial", zero=False), dict(name="logsnr", zero=False)
    solvers = {
        "ddim": dict(name="ddim", schedule=uneven, history=4, target="noise"),
        "dpm++ 3M": dict(name="dpmpp_3m", schedule=logsnr, history=4),
        "ipndm 4": dict(name="ipndm_4", schedule=uneven, history=4),
        "unipc 3": dict(name="unipc_3", schedule=logsnr, nfe=(2, 3, 4, 5, 10)),
        "ipndm 4, gits": dict(name="ipndm_4", schedule=dict(name="gits"), history=4, nfe=(2, 3, 4, 5, 10)),
        "heun": dict(name="heun", schedule=uneven, nfe=(2, 4, 10)),
        "heun (EDM)": dict(name="heun", schedule=dict(name="polynomial"), nfe=(3, 5, 35)),
    }
    students = {
        "SFD": dict(config=tuple("sfd_digits" + common.joined(given | {n}, n) for n in "2345")),
        "SFD-v": dict(config="sfdv_digits" + smoke),
        "SFD-v, second stage": dict(config="sfd2_digits" + smoke),
    }
    # What quality costs: the same student after other numbers of iterations.
    for steps in (64, 128, 256, 1024):
        one = "sfd_digits" + common.joined(given | {"2"}, "2")
        students[f"SFD, {steps} iterations"] = dict(config=one, changes=dict(train=dict(steps=steps)))
    config.study = dict(
        solvers=solvers, students=students, nfe=(1, 2, 3, 4, 5, 10), reference=dict(name="heun", nfe=511)
    )
    config.evaluation.update(num=1797, batch_size=600)
    common.digits_panel(config)
    if "smoke" in given:
        few = ("ddim", "dpm++ 3M", "ipndm 4, gits")
        config.study.solvers = {name: {**solvers[name], "nfe": (2, 3)} for name in few}
        config.study.students = {
            "SFD": dict(config=students["SFD"]["config"][:1]),
            **{row: students[row] for row in ("SFD-v", "SFD-v, second stage")},
        }
        config.study.reference.nfe = 19
        config.evaluation.update(num=64, batch_size=32)
    return config
