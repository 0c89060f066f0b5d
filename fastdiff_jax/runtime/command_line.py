"""The command line of launch/main.py: flags in, one clear line and an exit code out.

Exit codes: 0 done, 2 the request cannot be met (the line says why), 75 stopped by SIGTERM after saving: run the
same command again to go on.
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from fastdiff_jax.runtime import commands, experiment

MODES = ("train", "sample", "eval", "dry_run")
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h


def define(values: flags.FlagValues):
    """Defines the flags and returns the holder of --config."""
    config = config_flags.DEFINE_config_file("config", None, "Config file, configs/NAME.py[:ARGUMENT].", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the run; runs/<config name> by default.", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)
    flags.DEFINE_integer("num", 64, "Images to sample.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("seed", None, "Sampling seed; the config's by default.", flag_values=values)
    flags.DEFINE_list("labels", None, "Labels to sample, repeated in turn; the data's shares by default.", flag_values=values)
    flags.DEFINE_string("sampler", None, "Sampler by its name in the report; the first by default.", flag_values=values)
    flags.DEFINE_string("out", None, "File of the samples; <workdir>/samples.npz by default.", flag_values=values)
    return config


def parse(arguments: list[str]) -> tuple[flags.FlagValues, ConfigDict, str]:
    """Flags, config and the config's reference.

    Raises: ValueError with one line for whatever is wrong with them.
    """
    reference = _reference(arguments)
    if reference is None:
        raise ValueError(f"no --config given; configs: {', '.join(experiment.known())}.")
    config = experiment.load(reference)
    for argument in arguments:
        if argument.startswith("--config."):
            _check_key(config, argument.removeprefix("--config.").split("=")[0])
    values = flags.FlagValues()
    holder = define(values)
    try:
        values(arguments)
    except (flags.Error, TypeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return values, holder.value, reference


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    try:
        values, config, reference = parse(arguments)
        name = experiment.name_of(reference)
        workdir = Path(values.workdir) if values.workdir else Path("runs") / name
        run = experiment.Experiment(name, config, workdir)
        if values.mode == "dry_run":
            commands.dry_run(run)
        elif values.mode == "sample":
            labels = values.labels and [_integer(label) for label in values.labels]
            out = Path(values.out) if values.out else workdir / "samples.npz"
            commands.sample(run, values.num, out, values.seed, labels, values.sampler)
        elif values.mode == "eval":
            commands.measure(run)
        else:
            return 0 if commands.train(run) else INTERRUPTED
    except (ValueError, OSError) as error:
        if os.environ.get("FASTDIFF_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _reference(arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith(("--config=", "-config=")):
            return argument.split("=", 1)[1]
        if argument in ("--config", "-config"):
            return arguments[index + 1] if index + 1 < len(arguments) else None
    return None


def _check_key(config: ConfigDict, path: str) -> None:
    here = config
    for part in path.split("."):
        part = part.split("[")[0]
        if not isinstance(here, ConfigDict) or part not in here:
            keys = ", ".join(sorted(here)) if isinstance(here, ConfigDict) else "none below it"
            raise ValueError(f"the config has no key {path!r}: {part!r} is unknown; known there: {keys}.")
        here = here[part]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--labels takes class numbers such as 0,1,2; got {text!r}.") from None
