"""FDM teacher of FFHQ at 64x64: the official networks at their official settings."""

from configs import common


def get_config(arg="full"):
    """Unconditional, FDM on EDM; `:vp` and `:ve` for other base processes. For accelerators.

    Reads data/ffhq-64x64.zip, EDM's own form. `,plain` is without FDM, `,scale` and `,warmup` have one part
    of it. Published at 200 million images, with FDM and without: FID 2.59 and 2.65, `:vp`
    2.43 and 2.69, `:ve` 3.04 and 38.97 (README of sail-sg/FDM, the code of arXiv:2306.06991).
    At 100 million images `:ve` has 88.42 and 94.14.
    """
    given = common.words(arg, *common.FDM)
    config = common.base()
    common.faces64(config, "ffhq-64x64", "ncsnpp" if "ve" in given else "ddpmpp", dropout=0.05)
    common.fdm(
        config, given,
        edm=dict(sigma_data=0.5, p_mean=-1.2, p_std=1.2),
        multiplier=dict(edm=1.0, vp=1.0),
        warmup=dict(edm=800, vp=400, ve=400),
    )  # fmt: skip
    return common.smoke(config) if "smoke" in given else config
