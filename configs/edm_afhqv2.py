"""EDM teacher of AFHQv2 at 64x64: the official networks at their official settings."""

from configs import common


def get_config(arg="full"):
    """Unconditional DDPM++ of 61.8M parameters, 200 million images. For accelerators.

    `:ve` is NCSN++, of 62.8M (released checkpoints have these names; the training is EDM's for both).
    Reads data/afhqv2-64x64.zip, EDM's own form. Published: FID 1.96 at 79 NFE, NCSN++ 2.16
    (arXiv:2206.00364, Table 2).
    `:fid` measures FID as published, see edm_cifar10.
    """
    given = common.words(arg, "fid", "vp", "ve")
    config = common.base()
    common.faces64(config, "afhqv2-64x64", common.architecture(given), dropout=0.25)
    config.objective = dict(name="edm", p_mean=-1.2, p_std=1.2, sigma_data=0.5)
    common.published_measures(config, given)
    return common.smoke(config) if "smoke" in given else config
