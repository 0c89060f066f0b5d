"""FDM teacher of AFHQv2 at 64x64: the official networks at their official settings."""

from configs import common


def get_config(arg="full"):
    """Unconditional, FDM on EDM; `:vp` and `:ve` for other base processes. For accelerators.

    Reads data/afhqv2-64x64.zip, EDM's own form. `,plain` is without FDM, `,scale` and `,warmup` have one part
    of it. Published at 200 million images and 79 network calls, with FDM and without: FID 1.93 and 2.37, `:vp`
    2.39 and 2.61, `:ve` 47.30 and 57.48 (README of sail-sg/FDM, the code of arXiv:2306.06991).
    In that table neither `:ve` has converged.
    """
    given = common.words(arg, *common.FDM)
    config = common.base()
    common.faces64(config, "afhqv2-64x64", "ncsnpp" if "ve" in given else "ddpmpp", dropout=0.25)
    common.fdm(
        config, given,
        edm=dict(sigma_data=0.5, p_mean=-1.2, p_std=1.2),
        multiplier=dict(edm=2.0, vp=2.0),
        warmup=dict(edm=400, vp=400, ve=400),
    )  # fmt: skip
    return common.smoke(config) if "smoke" in given else config
