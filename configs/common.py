"""Fragments that experiments share: training, evaluation, the data sets' usual networks, and the smoke size."""

from ml_collections import ConfigDict

# sha256 of the shipped feature nets by file stem, which configs/classifier_*.py trained.
NETS = {
    "digits": "f8b0a68abfb57ceb5eee6aef0a129cb69e844fbb6b1e59f9a53076086c326db5",
    "cifar10_32": "1f591186705ac56261024b5a6a024a447b487e7eae863d6cf242c66f4e1559dc",
    "cifar10_16": "d8da8ccbb5b80ccfe985f8c55d01e650a8ded471960050d8e56b567b71ef020c",
    "fashion_mnist_32": "41410d89be7a054c8f80d888b830fa227ad06e8a350b54d946c5a2dc87a556ef",
    "fashion_mnist_16": "9308cda5552e9181a2a2a01a3fc47925e8bf5d75d23902a52d50c42c9bb49d61",
}


def words(arg: str, *known: str) -> set[str]:
    """The comma-separated words of a config's argument. Raises: ValueError naming the known ones."""
    given = {word for word in arg.split(",") if word}
    unknown = sorted(given - {*known, "full", "smoke"})
    if unknown:
        raise ValueError(
            f"argument {arg!r}: unknown {', '.join(unknown)}; known: {', '.join(('full', 'smoke', *known))}"
        )
    return given


def alone(given: set[str], word: str, *others: str) -> None:
    """Raises ValueError if `word` stands beside one of the others, with which it has no meaning."""
    if beside := [other for other in others if other in given]:
        raise ValueError(f"{word} stands without {', '.join(beside)}; leave out one of them.")


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
        kind="samples", panel=panel, num=1024, batch_size=512, seeds=(0, 1, 2), teacher_samplers={},
        sigma_rel=(),  # widths of post-hoc averages that are measured beside the run's own, see `posthoc`
        protocol="seeds",  # or "edm": seeds by image, minimum of the repeats that `seeds` number
        split="",  # of the data, that a feature net is tested on; empty: what the reference holds back
    )
    return ConfigDict(settings | changes)


def fid(config: ConfigDict, weights: str, reference: str = "") -> None:
    """Adds FID, KID, Inception Score, precision and recall by EDM's protocol: 50,000 images three times.

    Args:
      weights: pytorch-fid's file of Inception.
      reference: npz of mu and sigma that others have published; empty: the data's own.
    """
    inception = dict(name="inception", weights=weights, protocol="tf1", sha256="", reference=reference)
    config.evaluation.panel.features.fid = inception
    of = dict(features="fid")
    config.evaluation.panel.measures = {
        "kid": dict(name="kid", subsets=100, size=1000, seed=2020, **of),
        "is": dict(name="inception_score", splits=10, **of),
        "pr": dict(name="precision_recall", k=3, strict=False, most=200_000, **of),  # SiD's
    }
    config.evaluation.update(num=50000, protocol="edm", seeds=(0, 1, 2))


def published_measures(config: ConfigDict, given: set[str]) -> None:
    """With the word fid: measures as published figures are, by pytorch-fid's file of Inception in data/.

    Published statistics are those of a whole training set, so nothing caps the reference then.
    """
    if "fid" in given:
        fid(config, "data/pt_inception-2015-12-05-6726825d.pth")
        if "max_reference" in config.data:
            config.data.max_reference = 0


def samplers(*requests: tuple[str, int]) -> dict:
    """Named samplers by report name: samplers(("euler", 2)) -> {"euler 2": {"name": "euler", "nfe": 2}}."""
    return {f"{name} {nfe}": dict(name=name, nfe=nfe) for name, nfe in requests}


def guided_samplers(scale: float, *counts: int, solver: str = "dpmpp_2m") -> dict:
    """A solver guided at one scale, for numbers of network calls, two a step: {"dpmpp_2m, guided 150% 8": ...}.

    Names have the scale in percent, as a config's keys have no dots.
    """
    return {
        f"{solver}, guided {scale:.0%} {nfe}": dict(name=solver, nfe=nfe, guidance=dict(scale=scale))
        for nfe in counts
    }


def posthoc(config: ConfigDict, given: set[str]) -> None:
    """With the word posthoc: keeps averages of EDM2's two widths, of which any other can be made afterwards."""
    if "posthoc" in given:
        every = 2 if "smoke" in given else max(config.train.steps // 50, 1)
        config.train.posthoc = dict(every=every, sigma_rel=(0.05, 0.10), dtype="float32")


def usual_samplers(best: int = 35) -> dict:
    """The teacher at its best number of calls, and training-free at the cost of a student."""
    few = [*[("euler", n) for n in (1, 2, 3, 4, 5)], *[("dpmpp_2m", n) for n in (3, 4, 5)]]
    return samplers(("heun", best), *few)


def architecture(given: set[str]) -> str:
    """EDM's names for networks: vp is DDPM++, ve NCSN++, the default vp. Raises: ValueError for both."""
    if {"vp", "ve"} <= given:
        raise ValueError("vp and ve name the network, DDPM++ or NCSN++; give one of them.")
    return "ncsnpp" if "ve" in given else "ddpmpp"


def edm_zip(name: str, size: int, labels: int = 0) -> dict:
    """An image set in EDM's form at data/<name>.zip; launch/dataset.py makes it from images."""
    return dict(name="edm_zip", path=f"data/{name}.zip", size=size, channels=3, labels=labels,
                max_reference=0, in_memory=False)  # fmt: skip


def faces64(config: ConfigDict, name: str, architecture: str, dropout: float) -> None:
    """EDM's settings for FFHQ and AFHQv2 at 64x64 (arXiv:2206.00364, App. F), which FDM takes over.

    Args:
      name: of the zip; unlabelled.
      architecture: "ddpmpp" or "ncsnpp".
    """
    config.data = edm_zip(name, 64)
    network = dict(
        name="song", architecture=architecture, model_channels=128, channel_mult=(1, 2, 2, 2), num_blocks=4,
        attn_resolutions=(16,), dropout=dropout, augment_dim=9, dtype="float32",
    )  # fmt: skip
    config.models = dict(student=dict(network=network, precond=dict(name="edm", sigma_data=0.5)))
    config.augment = dict(name="edm", p=0.15)
    config.method = dict(name="teacher", ema_half_life=500e3, ema_ramp=0.05, label_dropout=0.0, accumulation=1)
    config.method.samplers = usual_samplers(79)
    config.optimizers = dict(student=dict(name="adam", learning_rate=2e-4, ramp_images=10e6))
    config.train.update(batch_size=256, steps=200_000_000 // 256, log_every=100, save_every=10000)
    config.evaluation.panel.features.px = dict(name="pixels", pool=8)  # 192 dimensions, not 12288
    config.evaluation.panel.nearest = False  # tens of thousands against each other
    config.evaluation.update(num=50000, batch_size=500)


def study(teacher: str) -> ConfigDict:
    """Sections of a study of a trained teacher's samplers; `study` itself is its own."""
    config = ConfigDict()
    config.teacher = teacher
    config.mesh = dict(data=-1, fsdp=1)
    config.evaluation = evaluation(seeds=(0,))
    return config


def sfd_study(teacher: str, stem: str, given: set[str], iterations: tuple[int, ...]) -> ConfigDict:
    """A study of SFD students beside training-free samplers.

    With the word cached also a student of 2 calls on trajectories that launch/record.py has recorded.

    Args:
      teacher: of all students.
      stem: what SFD's configs are named after: sfd_<stem>, sfdv_<stem> and sfd2_<stem>.
      given: words that all references get.
      iterations: numbers for which the student of 2 calls is trained again: what quality costs.
    """
    config = study(teacher)
    passed = sorted(given - {"cached", "full", "smoke"})
    one = f"sfd_{stem}" + joined(given, *passed)
    several = [f"sfd_{stem}" + joined(given | {n}, *passed, n) for n in "345"]
    students = {
        "SFD": dict(config=(one, *several)),
        "SFD-v": dict(config=f"sfdv_{stem}" + joined(given, *passed)),
        "SFD-v, second stage": dict(config=f"sfd2_{stem}" + joined(given, *passed)),
    }
    for steps in iterations:
        students[f"SFD, {steps} iterations"] = dict(config=one, changes=dict(train=dict(steps=steps)))
    recorded = {}
    if "cached" in given:
        recorded = {"SFD, recorded": dict(config=f"sfd_{stem}" + joined(given, *passed, "cached"))}
    config.study = dict(
        solvers=training_free(nfe=(1, 2, 3, 4, 5, 10)),
        students=students | recorded,
        nfe=(1, 2, 3, 4, 5, 10),
        reference=dict(name="heun", nfe=127),
    )
    config.evaluation.seeds = (0, 1, 2)
    if "smoke" in given:
        few = ("ddim", "dpm++ 3M", "ipndm 4, gits")
        config.study.solvers = {name: {**config.study.solvers[name], "nfe": (2, 3)} for name in few}
        config.study.students = {
            "SFD": dict(config=students["SFD"]["config"][:1]),
            **{row: students[row] for row in ("SFD-v", "SFD-v, second stage")},
            **recorded,
        }
        config.study.reference.nfe = 19
    return config


def training_free(nfe: tuple[int, ...]) -> dict:
    """Rows of a study that SFD is compared with, on the schedules that zju-pi/diff-sampler has for them.

    Unthresholded. Heun at 35 calls is EDM's sampler. UniPC of order 2: of order 3 it makes n - 1 steps of 2
    and 3 calls.
    """
    uneven, logsnr = dict(name="polynomial", zero=False), dict(name="logsnr", zero=False)
    several, even = tuple(n for n in nfe if n > 1), tuple(n for n in nfe if n % 2 == 0)
    return {
        "ddim": dict(name="ddim", schedule=uneven, history=4, target="noise", nfe=nfe),
        "dpm++ 3M": dict(name="dpmpp_3m", schedule=logsnr, history=4, nfe=nfe),
        "ipndm 3": dict(name="ipndm_3", schedule=uneven, history=4, nfe=nfe),
        "ipndm 4": dict(name="ipndm_4", schedule=uneven, history=4, nfe=nfe),
        "unipc 2": dict(name="unipc_2", schedule=logsnr, nfe=several),
        "ipndm 4, gits": dict(name="ipndm_4", schedule=dict(name="gits"), history=4, nfe=several),
        "heun": dict(name="heun", schedule=uneven, nfe=even),
        "heun (EDM)": dict(name="heun", schedule=dict(name="polynomial"), nfe=(3, 5, 35)),
    }


def sfd_ablation(
    teacher: str, one: str, several: str, given: set[str], steps: tuple[int, ...] = ()
) -> ConfigDict:
    """A study of SFD at 2 network calls with one ingredient switched a row, and of the step condition of SFD-v.

    Every row trains as many iterations as the one that it is a change of.

    Args:
      one, several: references of the students that are changed, SFD and SFD-v.
      given: "smoke" for a few rows.
      steps: that rows of SFD and of SFD-v train; the configs' own by default.
    """
    config = study(teacher)
    trained = dict(zip((one, several), steps))

    def changed(reference=one, **method):
        train = {"train": dict(steps=trained[reference])} if trained else {}
        return dict(config=reference, changes=train | ({"method": method} if method else {}))

    students = {
        "SFD": changed(),
        "teacher DDIM": changed(teacher=dict(name="ddim")),
        "teacher Heun": changed(teacher=dict(name="heun")),
        "teacher DPM-Solver++(3M)": changed(teacher=dict(name="dpmpp_3m")),
        "teacher iPNDM-4": changed(teacher=dict(name="ipndm_4")),
        "teacher thresholded": changed(teacher=dict(threshold=True)),
        "K = 1": changed(extra=0),
        "K = 2": changed(extra=1),
        "K = 8": changed(extra=7),
        "sigma_min 2e-3": changed(schedule=dict(sigma_min=0.002)),
        "sigma_min 2e-2": changed(schedule=dict(sigma_min=0.02)),
        "no analytical step": changed(afs=False, stamps=3),  # the same calls
        "L2": changed(loss="l2"),
        "local": changed(start="local"),
        "SFD-v": changed(several),
        "SFD-v, untold": changed(several, conditioned=False),
    }
    config.study = dict(
        solvers=training_free(nfe=(2,)), students=students, nfe=(2,),
        reference=dict(name="heun", nfe=127),
    )  # fmt: skip
    config.evaluation.seeds = (0, 1, 2)
    if "smoke" in given:
        config.study.students = {row: students[row] for row in ("SFD", "L2")}
        config.study.solvers = {"ddim": {**config.study.solvers["ddim"], "nfe": (2, 3)}}
        config.study.reference.nfe = 19
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


def fdm_study(
    stem: str, given: set[str], seeds: tuple[int, ...], parts: bool = True
) -> ConfigDict:
    """A study of the teachers of an FDM config: for edm, vp and ve without FDM, with it and with a part of it.

    Args:
      stem: of the config, whose words are those of `fdm`.
      given: words that are passed on to it; with "smoke" the study is of edm, two seeds and few samplers.
      seeds: of training.
      parts: whether the input scale alone and the warm-up alone are rows too, of the first seed.
    """
    small, passed = "smoke" in given, [word for word in ("16", "smoke") if word in given]
    seeds = seeds[:2] if small else seeds
    parts = {"": "plain", "FDM": None} | ({"c_in only": "scale", "warm-up only": "warmup"} if parts else {})
    teachers = {}
    for base in ("edm",) if small else ("edm", "vp", "ve"):
        for part, word in parts.items():
            named = [*passed, *([base] if base != "edm" else []), *([word] if word else [])]
            teachers[f"{base}, {part}" if part else base] = dict(
                config=stem + (":" + ",".join(named) if named else ""),
                seeds=seeds[:1] if word in ("scale", "warmup") else seeds,
                baseline=base if part else "",
            )
    config = ConfigDict()
    config.mesh = dict(data=-1, fsdp=1)
    config.evaluation = evaluation(seeds=(0,))
    config.evaluation.panel.nearest = False
    config.study = dict(
        teachers=teachers,
        # Of the solvers at ten calls the one that ranks teachers as Heun at 35 does, which is their own best.
        curve=dict(solver="ipndm 3", nfe=10),
        solvers={
            "heun": dict(name="heun", nfe=(7, 11, 19, 35)),
            "dpm++ 2M": dict(name="dpmpp_2m", nfe=(5, 10)),
            "ipndm 3": dict(name="ipndm_3", nfe=(5, 10)),
        },
    )
    if small:
        few = {"heun": dict(name="heun", nfe=(7,)), "ipndm 3": dict(name="ipndm_3", nfe=(10,))}
        config.study.solvers = few
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """The same experiment in seconds, narrow and short: proves that it runs, not that it is good."""
    config.train.update(batch_size=16, steps=6, log_every=2, save_every=3)
    if config.train.milestones:
        config.train.milestones = 3
    config.evaluation.update(num=64, batch_size=32, seeds=(0,))
    if config.data.name in ("tfds", "edm_zip"):  # no need to decode tens of thousands of images
        config.data.update(max_reference=2000, in_memory=False)
    if config.evaluation.teacher_samplers:
        asked = config.evaluation.teacher_samplers.to_dict().items()
        guided = {name: one for name, one in asked if "guidance" in one}
        config.evaluation.teacher_samplers = samplers(("heun", 35), ("euler", 1)) | guided
    if "accumulation" in config.method:  # the batch is small enough
        config.method.accumulation = 1
    for model in config.models.values():
        if "network" in model and model.network.get("name") in ("song", "adm"):
            model.network.update(
                model_channels=16, channel_mult=(1, 1), num_blocks=1, attn_resolutions=()
            )
    return config


# Tasks by name, for a teacher and its students alike.
TASKS = {
    "inpainting": dict(
        name="inpainting", boxes=0.5, smallest=0.25, largest=0.75, strokes=3, thickness=0.15
    ),
    "superres": dict(name="superres", factor=4),
    "edges": dict(name="edges", threshold=0.4),
    "reference": dict(
        name="reference", features="features", tap="features",
        holes=dict(boxes=1.0, smallest=0.5, largest=0.85),
    ),
}  # fmt: skip


def task_teacher(config: ConfigDict, side: int, prediction: str = "epsilon", **network) -> None:
    """Model, objective and samplers of a small discrete teacher, as discrete_digits is, for a task.

    Labels, and what else the task guides, are hidden in one image of ten.

    Args:
      side: of the images; the coarse half of the network has attention.
      prediction: what the network says, see `precond.discrete`.
      network: options of it besides its size: `concat`, `adapter`, `reference`.
    """
    size = dict(
        name="song", model_channels=40 if side == 8 else 32, channel_mult=(1, 2), num_blocks=1,
        attn_resolutions=(side // 2,), dropout=0.0, dtype="float32",
    )  # fmt: skip
    levels = dict(betas="scaled_linear", steps=1000, prediction=prediction)  # Stable Diffusion's
    config.models = dict(student=dict(network=size | network, precond=dict(name="discrete", **levels)))
    config.objective = dict(name="discrete", **levels)
    config.schedule = trailing_levels()
    config.method = dict(
        name="teacher", ema_half_life=20e3, ema_ramp=0.05, label_dropout=0.1, accumulation=1
    )
    config.method.samplers = task_samplers()
    adam = dict(
        name="adam", learning_rate=2e-3, b2=0.99, ramp_images=6400.0, decay="cosine", final=0.02
    )
    config.optimizers = dict(student=adam)  # ours


def trailing_levels() -> dict:
    """Levels of samplers on Stable Diffusion's labels."""
    return dict(name="timesteps", spacing="trailing", betas="scaled_linear", train_steps=1000)


def task_samplers() -> dict:
    """A task's teacher, unguided and guided, at many calls and at those of its students."""
    return samplers(("dpmpp_2m", 16), ("dpmpp_2m", 4)) | guided_samplers(1.5, 32, 8, 4)


def flash_student(config: ConfigDict, side: int, given: set[str], scale: float = 1.5) -> None:
    """Model, method and optimizers of a Flash student: a LoRA delta of a teacher such as `task_teacher`'s.

    Comments have the official values, Stable Diffusion 1.5's where they differ between networks.

    Args:
      side: of the images.
      scale: of guidance.
    """
    config.models = {role: dict(like="teacher") for role in ("teacher", "student")}
    rank = 5 if side == 8 else 4  # 8 % of the weights; official: attention only, rank 128, alpha as the rank
    rule = dict(rank=rank, alpha=float(rank), init="gaussian")
    # Attention is in three blocks only here. Of an adapter nothing is changed: it stays as it is.
    everywhere = ("attention", "convolutions", "embeddings")
    config.models.student.lora = dict(rules={name: dict(rule) for name in everywhere})
    coarse = side // 2
    config.models.discriminator = dict(  # of 98,753 parameters on 4x4 features
        network=dict(
            name="discriminator", head="dmd2", layers=((64, 4, 2, 1), (64, coarse // 2, coarse // 2, 0))
        ),
        precond=dict(name="identity"),
    )
    config.method = dict(
        name="flash", grid=16,  # official: 32; PixArt 16
        guidance=(scale, scale),  # official: 3 to 13
        distance=dict(name="l2"),  # official: LPIPS of the decoded latents
        renoise="exact",  # official: grid
        nfe=(1, 2, 4),
    )  # fmt: skip
    config.method.adversarial = dict(
        tap=f"dec/{coarse}x{coarse}_in1", loss=dict(name="lsgan"), labels=(10, 250, 500, 750)
    )
    stages = 4
    config.method.stages = dict(
        # Official: 2500 each.
        steps=(1, 1, 1, 3) if "smoke" in given else (300 if side == 8 else 200,) * stages,
        modes=((0.0, 0.0, 0.5, 0.5), (0.1, 0.3, 0.3, 0.3), (0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.2, 0.2)),
        distill=(1.0,) * stages,
        matching=(0.0, 0.3, 0.5, 0.7),
        adversarial=(0.0, 0.1, 0.2, 0.3),
    )
    if "smoke" in given:
        config.method.grid = 8
    adam = dict(name="adamw", b1=0.9, b2=0.999, weight_decay=0.01)
    # Official: 1e-5 for both, a constant rate.
    student = dict(adam, learning_rate=1e-3, decay="cosine", final=0.05)
    config.optimizers = dict(student=student, discriminator=dict(adam, learning_rate=1e-3))
    config.schedule = trailing_levels()
    size, steps = (64, 1200) if side == 8 else (32, 800)
    config.train.update(batch_size=size, steps=steps, log_every=20, save_every=200)
    config.evaluation.teacher_samplers = task_samplers()


def condition_net(config: ConfigDict) -> None:
    """Adds the model whose features a task's condition is: the net that `feature_panel` measures in."""
    net = config.evaluation.panel.features.ft
    config.models.features = dict(
        network=dict(name="classifier"), precond=dict(name="identity"), weights=net
    )


def tasks_digits(config: ConfigDict) -> None:
    """Data and measures of the digits; conditions are made of the 360 that nothing is trained on."""
    config.data = dict(name="digits")
    feature_panel(config, "digits")
    config.evaluation.update(num=1797, batch_size=600, seeds=(0, 1))


def tasks_fashion_mnist(config: ConfigDict) -> None:
    """Data and measures of Fashion-MNIST at 16x16; conditions are made of the test split."""
    config.data = dict(name="tfds", dataset="fashion_mnist", size=16, in_memory=True)
    fashion_panel(config, small=True)
    config.evaluation.panel.nearest = False
    config.evaluation.update(num=2000, batch_size=500, seeds=(0, 1), split="test")


def feature_panel(config: ConfigDict, net: str) -> None:
    """Adds a shipped feature net: distances in its 64 hidden units (ft), precision and recall there."""
    config.evaluation.panel.features.ft = dict(name="classifier", weights=net, sha256=NETS[net])
    config.evaluation.panel.manifold = "ft"


def tasks_cifar10(config: ConfigDict) -> None:
    """Data and measures of CIFAR-10 at 16x16; conditions are made of the test split."""
    config.data = dict(name="tfds", dataset="cifar10", size=16, in_memory=True)
    cifar_panel(config, small=True)
    config.evaluation.update(seeds=(0, 1), split="test")


def fashion_panel(config: ConfigDict, small: bool) -> None:
    """Measures of Fashion-MNIST: 256 dimensions of pixels at any size, and the feature net of that size."""
    feature_panel(config, "fashion_mnist_16" if small else "fashion_mnist_32")
    config.evaluation.panel.manifold = ""  # the balls of 60,000 images take minutes
    if not small:
        config.evaluation.panel.features.px = dict(name="pixels", pool=2)


def cifar_panel(config: ConfigDict, small: bool = False) -> None:
    """Measures of CIFAR-10: 192 dimensions of pixels at any size, and the feature net of that size."""
    feature_panel(config, "cifar10_16" if small else "cifar10_32")
    config.evaluation.panel.features.px = dict(name="pixels", pool=2 if small else 4)
    config.evaluation.panel.update(manifold="", nearest=False)  # against 50,000 images both take minutes
    config.evaluation.update(num=2000 if small else 50000, batch_size=500)


def fewer_samplers() -> dict:
    """`usual_samplers` where a call takes a core seconds: the teacher at its best, and three of few calls."""
    return samplers(("heun", 35), ("euler", 1), ("euler", 2), ("dpmpp_2m", 3))


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
