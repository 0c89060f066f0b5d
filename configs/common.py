"""Fragments that experiments share: training, evaluation, the data sets' usual networks, and the smoke size."""

from ml_collections import ConfigDict

# sha256 of the digits feature net, which configs/classifier_digits.py trained.
DIGITS_NET = "f8b0a68abfb57ceb5eee6aef0a129cb69e844fbb6b1e59f9a53076086c326db5"


def words(arg: str, *known: str) -> set[str]:
    """The comma-separated words of a config's argument. Raises: ValueError naming the known ones."""
    given = {word for word in arg.split(",") if word}
    unknown = sorted(given - {*known, "full", "smoke"})
    if unknown:
        raise ValueError(
            f"argument {arg!r}: unknown {', '.join(unknown)}; known: {', '.join(('full', 'smoke', *known))}"
        )
    return given


def joined(given: set[str], *wanted: str) -> str:
    """The suffix of a config reference that passes on those of `wanted` that were given: ":16,smoke"."""
    passed = [word for word in (*wanted, "smoke") if word in given]
    return ":" + ",".join(passed) if passed else ""


def few_levels() -> dict:
    """SFD's noise levels: they end above zero, and higher than EDM's (arXiv:2409.19681)."""
    return dict(name="polynomial", sigma_min=0.006, sigma_max=80.0, rho=7.0, zero=False)


def calls(given: set[str], default: int) -> int:
    """The number of network calls among a config's words. Raises: ValueError for more than one."""
    numbers = sorted(word for word in given if word.isdigit())
    if len(numbers) > 1:
        raise ValueError(f"a student makes one number of calls; got {', '.join(numbers)}.")
    return int(numbers[0]) if numbers else default


def base() -> ConfigDict:
    """Sections that every experiment has; data, models, method and optimizers are its own."""
    config = ConfigDict()
    config.seed = 0
    config.teacher = (
        ""  # config of the teacher, "edm_digits" or "edm_digits:smoke"; trained first if need be
    )
    config.init_from = ""  # config whose finished weights training starts from
    config.schedule = dict(name="polynomial", sigma_min=0.002, sigma_max=80.0, rho=7.0)
    config.mesh = dict(data=-1, fsdp=1)  # -1: all devices that are left
    config.train = dict(
        batch_size=128,
        steps=1000,
        log_every=25,
        save_every=250,
        keep=2,
        milestones=0,
        patience=3,
        writers=("jsonl",),
    )
    config.evaluation = evaluation()
    return config


def evaluation(**changes) -> ConfigDict:
    """How a finished run is measured: kind of report, panel of measures, images, sampling seeds."""
    panel = dict(name="images", features=dict(px=dict(name="pixels")), manifold="", nearest=True)
    settings = dict(
        kind="samples", panel=panel, num=1024, batch_size=512, seeds=(0, 1, 2), teacher_samplers={}
    )
    return ConfigDict(settings | changes)


def samplers(*requests: tuple[str, int]) -> dict:
    """Named samplers by report name: samplers(("euler", 2)) -> {"euler 2": {"name": "euler", "nfe": 2}}."""
    return {f"{name} {nfe}": dict(name=name, nfe=nfe) for name, nfe in requests}


def usual_samplers() -> dict:
    """The teacher at its best, and training-free at the cost of a student."""
    few = [*[("euler", n) for n in (1, 2, 3, 4, 5)], *[("dpmpp_2m", n) for n in (3, 4, 5)]]
    return samplers(("heun", 35), *few)


def study(teacher: str) -> ConfigDict:
    """Sections of a study of a trained teacher's samplers; `study` itself is its own."""
    config = ConfigDict()
    config.teacher = teacher
    config.mesh = dict(data=-1, fsdp=1)
    config.evaluation = evaluation(seeds=(0,))
    return config


FDM = ("vp", "ve", "edm", "plain", "scale", "warmup")  # words of an FDM config: a base process, and a part


def fdm(config: ConfigDict, given: set[str], edm: dict, multiplier: dict, warmup: dict) -> str:
    """Sets precond, objective and schedule of an FDM teacher or its baseline. Returns: "vp", "ve" or "edm".

    Of the words, at most one names the base process, edm by default, and at most one a part of FDM: "scale"
    only the input scale, "warmup" only the warm-up of the loss weights, "plain" neither.

    Args:
      edm: sigma_data, p_mean and p_std of the base process edm.
      multiplier, warmup: by base process; ve has no multiplier.
    Raises: ValueError for more than one base process or part.
    """
    bases, parts = sorted(given & set(FDM[:3])), sorted(given & set(FDM[3:]))
    if len(bases) > 1 or len(parts) > 1:
        raise ValueError(f"one base process and one part of FDM at most; got {', '.join(bases + parts)}.")
    base, part = (bases or ["edm"])[0], (parts or ["both"])[0]
    precond = dict(name=base) | (dict(sigma_data=edm["sigma_data"]) if base == "edm" else {})
    if part in ("both", "scale"):
        precond["input_scale"] = dict(name=base) | ({} if base == "ve" else dict(multiplier=multiplier[base]))
    config.models.student.precond = precond
    config.objective = dict(name=base, warmup=warmup[base] if part in ("both", "warmup") else 0)
    config.objective.update(edm if base == "edm" else {})
    config.schedule.sigma_min = 0.02 if base == "ve" else 0.002
    return base


def smoke(config: ConfigDict) -> ConfigDict:
    """The same experiment in seconds, narrow and short: proves that it runs, not that it is good."""
    config.train.update(batch_size=16, steps=6, log_every=2, save_every=3)
    config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    if config.data.name == "tfds":  # no need to decode tens of thousands of images
        config.data.update(max_reference=2000, in_memory=False)
    if config.evaluation.teacher_samplers:
        config.evaluation.teacher_samplers = samplers(("heun", 35), ("euler", 1))
    for model in config.models.values():
        if "network" in model and model.network.get("name") == "song":
            model.network.update(
                model_channels=16, channel_mult=(1, 1), num_blocks=1, attn_resolutions=()
            )
    return config


def digits_panel(config: ConfigDict) -> None:
    """Adds the digits' feature net: distances in its 64 hidden units (ft), precision and recall there."""
    config.evaluation.panel.features.ft = dict(
        name="classifier", weights="digits", sha256=DIGITS_NET
    )
    config.evaluation.panel.manifold = "ft"


def lab_data(dim: int) -> dict:
    """Eight equal modes, far apart, with a standard deviation near that of images in every coordinate."""
    size = dict(radius=1.0, scale=0.1) if dim == 2 else dict(radius=4.0, scale=0.3)
    return dict(name="toys", modes=8, dim=dim, **size)


def phase_samplers() -> dict:
    """Samplers of CLD: splitting, Euler-Maruyama and the flow; all end in a call that denoises."""
    return samplers(("sscs", 20), ("sscs", 50), ("sscs", 150), ("em", 50), ("ode", 51), ("ode", 101))


def lab_network() -> dict:
    """A small MLP denoiser with EDM's preconditioning."""
    return dict(
        network=dict(name="mlp", hidden=(128, 128, 128)), precond=dict(name="edm", sigma_data=0.7)
    )
