"""Study of all solvers on the digits teacher."""

from configs import common


def get_config(arg="full"):
    """Samplers of all kinds at 3 to 35 network calls on the edm_digits teacher, on levels that authors advise.

    Levels run from 80 to 0.002, without a step onto zero but for EDM's own Heun and the scheduled sampler.
    """
    given = common.words(arg)
    config = common.study("edm_digits" + common.joined(given))
    uneven, logsnr = dict(name="polynomial", zero=False), dict(name="logsnr", zero=False)
    quadratic = dict(name="time", rho=2.0, zero=False)
    # One length of history, so that the tables of one target share their programs.
    noise, data = dict(schedule=uneven, history=4), dict(schedule=logsnr, history=4)
    even, odd = (4, 6, 8, 10, 20), (3, 5, 7, 9, 15, 35)
    solvers = {
        "euler": dict(noise, name="euler", target="noise"),
        "euler, logsnr": dict(data, name="euler"),
        "ipndm 2": dict(noise, name="ipndm_2"),
        "ipndm 3": dict(noise, name="ipndm_3"),
        "ipndm 4": dict(noise, name="ipndm_4"),
        "ipndm_v 2": dict(noise, name="ipndm_v_2"),
        "ipndm_v 3": dict(noise, name="ipndm_v_3"),
        "ipndm_v 4": dict(noise, name="ipndm_v_4"),
        "deis tab 2": dict(noise, name="deis_tab_2", schedule=quadratic),
        "deis tab 3": dict(noise, name="deis_tab_3", schedule=quadratic),
        "deis tab 4": dict(noise, name="deis_tab_4", schedule=quadratic),
        "dpm++ 2M": dict(data, name="dpmpp_2m"),
        "dpm++ 3M": dict(data, name="dpmpp_3m"),
        "dpm++ 2M, polynomial": dict(data, name="dpmpp_2m", schedule=uneven),
        "dpm++ 3M, thresholded": dict(data, name="dpmpp_3m", threshold=True),
        "dpm++ 3M, noise": dict(data, name="dpmpp_3m", target="noise"),
        "unipc 2": dict(name="unipc_2", schedule=logsnr),
        "unipc 3": dict(name="unipc_3", schedule=logsnr),
        "s-pndm": dict(name="s_pndm", schedule=uneven),
        "pndm": dict(name="pndm", schedule=uneven, nfe=(15, 20, 35)),
        "plms": dict(name="plms", schedule=uneven),
        "heun (EDM)": dict(name="heun", schedule=dict(name="polynomial"), nfe=odd),
        "heun": dict(name="heun", schedule=uneven, nfe=even),
        "dpm-2": dict(name="dpm_2", schedule=uneven, nfe=even),
        "dpm-2, afs": dict(name="dpm_2", schedule=uneven, afs=True, nfe=odd),
        "ipndm 4, afs": dict(noise, name="ipndm_4", afs=True),
        "dpm++ 2S": dict(name="dpmpp_2s", schedule=logsnr, nfe=even),
        "dpm++ 3S": dict(name="dpmpp_3s", schedule=logsnr),
        "dpm-solver fast": dict(name="dpm_solver_fast", schedule=logsnr),
        "runge-kutta 3": dict(name="rhork_3kutta", schedule=uneven, nfe=(3, 6, 9, 15)),
        "ddpm": dict(name="ddpm", schedule=uneven),
        "sde-dpm++ 2M": dict(name="sde_dpmpp_2m", schedule=logsnr),
        "dpm-2 a": dict(name="dpm_2_a", schedule=uneven, nfe=even),
        "dpm-2 a, then dpm-2": dict(
            name="scheduled", segments=(("dpm_2_a", 2), ("dpm_2", None)), schedule=dict(name="polynomial"),
            nfe=(7, 9, 15, 35),
        ),
    }  # fmt: skip
    config.study = dict(
        solvers=solvers, nfe=(3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 35), reference=dict(name="heun", nfe=511)
    )
    config.evaluation.update(num=1797, batch_size=600)
    common.feature_panel(config, "digits")
    if "smoke" in given:
        few = ("euler", "ipndm 4", "dpm++ 3M")
        config.study.solvers = {name: {**solvers[name], "nfe": (4, 5)} for name in few}
        config.study.reference.nfe = 19
        config.evaluation.update(num=64, batch_size=32)
    return config
