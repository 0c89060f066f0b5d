"""The command line of launch/main.py: flags in, one clear line and an exit code out.

Exit codes: 0 done, 2 the request cannot be met (the line says why), 75 stopped by SIGTERM after saving, 130 by
the keyboard: run the same command again to go on.
"""

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from fastdiff_jax import messages
from fastdiff_jax.runtime import commands, experiment, progress, settings
from fastdiff_jax.runtime.experiment import Experiment

MODES = ("train", "sample", "eval", "dry_run")
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h
ABORTED = 130  # what shells report of Ctrl-C
USAGE = (
    "python launch/{name}.py --config configs/NAME.py[:ARGUMENT] [--config.KEY=VALUE ...] [flags]"
)


class Help(Exception):
    """The user asked what there is."""


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/main.py."""
    flags.DEFINE_string(
        "workdir", None, "Directory of the run; runs/<config name> by default.", flag_values=values
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)
    flags.DEFINE_integer("num", 64, "Images to sample.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "seed",
        None,
        "Sampling seed; the config's by default.",
        lower_bound=0,
        upper_bound=settings.MOST,
        flag_values=values,
    )
    flags.DEFINE_list(
        "labels",
        None,
        "Labels to sample, repeated in turn; the data's shares by default.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "sampler",
        None,
        "Sampler by its name in the report; the first by default.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out",
        None,
        "File of the samples, .npz; <workdir>/samples.npz by default.",
        flag_values=values,
    )


def define_benchmark(values: flags.FlagValues) -> None:
    """Defines the flags of launch/benchmark.py."""
    flags.DEFINE_integer("steps", 20, "Training steps to time.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "forward",
        None,
        "Only time the network's forward pass, --steps times, for so many images.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "input", False, "Only time the input pipeline, for --steps batches; the data must be there.",
        flag_values=values,
    )  # fmt: skip


def define_study(values: flags.FlagValues) -> None:
    """Defines the flags of launch/study.py."""
    flags.DEFINE_string(
        "workdir", None, "Directory of the study; runs/<config name> by default.", flag_values=values
    )


def parse(
    arguments: list[str], define: Callable = define, check: Callable = settings.check
) -> tuple[flags.FlagValues, ConfigDict, str]:
    """Flags, config and the config's reference.

    Raises: ValueError with one line for whatever is wrong with them, Help with the usage if that is asked for.
    """
    values = flags.FlagValues()
    define(values)
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments[1:]):
        raise Help(usage(Path(arguments[0]).stem, values))
    reference, rest = _split(arguments)
    config = experiment.load(reference)
    for argument in rest:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            _check_key(config, match[1])
    try:
        # The overrides alone: the file has been loaded, with errors of one line.
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        extra = values(rest)[1:]
    except (flags.Error, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(_explained(str(error), config)) from None
    if extra:
        raise ValueError(
            f"unknown argument {extra[0]!r}; settings are given as --flag=value or --config.key=value."
        )
    check(values.config)
    return values, values.config, reference


def asked(
    arguments: list[str], define: Callable = define, check: Callable = settings.check
) -> tuple[flags.FlagValues, Experiment]:
    """Flags, and the experiment in its work directory: --workdir, or runs/<config name>. Raises: as `parse`.

    A folder with finished weights in the place of a config is its own work directory.
    """
    values, config, reference = parse(arguments, define, check)
    name = experiment.name_of(reference)
    given = values.workdir if "workdir" in values else None
    workdir = Path(given) if given else experiment.workdir_of(reference, Path("runs"))
    return values, Experiment(name, config, workdir)


def usage(name: str, values: flags.FlagValues) -> str:
    """What --help prints."""
    rows = [f"  --{flag}: {values[flag].help}{_default(values[flag])}" for flag in sorted(values)]
    modes = [f"  modes: {', '.join(MODES)}"] if "mode" in values else []
    return "\n".join(
        [USAGE.format(name=name), *rows, *modes, f"  configs: {', '.join(experiment.known())}"]
    )


def _default(flag: flags.Flag) -> str:
    return "" if flag.default is None else f" (default: {str(flag.default_as_str).strip(chr(39))})"


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    return guarded(lambda: _run(arguments))


def benchmark(arguments: list[str]) -> int:
    """Runs launch/benchmark.py and returns its exit code."""
    from fastdiff_jax.runtime import benchmark as measurement
    from fastdiff_jax.runtime import feed
    from fastdiff_jax.runtime.assemble import assemble

    def work():
        values, run = asked(arguments, define_benchmark)
        if values.input:
            feed.measure(assemble(run.config), values.steps)
        elif values.forward:
            measurement.forward(run, values.forward, values.steps)
        else:
            measurement.run(run, values.steps)
        return 0

    return guarded(work)


def study(arguments: list[str]) -> int:
    """Runs launch/study.py and returns its exit code."""
    from fastdiff_jax.runtime import study as samplers
    from fastdiff_jax.runtime import teachers

    def work():
        _, run = asked(arguments, define_study, settings.check_study)
        measurement = teachers if settings.compares_teachers(run.config) else samplers
        return 0 if measurement.run(run) else INTERRUPTED

    return guarded(work)


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`; what it refuses becomes one line on standard error."""
    try:
        return work()
    except Help as text:
        progress.say(str(text))
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return ABORTED
    except (ValueError, OSError) as error:
        if os.environ.get("FASTDIFF_TRACEBACK"):
            raise
        print(f"error: {messages.line(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    values, run = asked(arguments)
    if values.mode == "train":
        return 0 if commands.train(run) else INTERRUPTED
    if values.mode == "sample":
        labels = (
            None if values.labels is None else [_integer(label) for label in values.labels or [""]]
        )
        out = Path(values.out) if values.out else run.workdir / "samples.npz"
        commands.sample(run, values.num, out, values.seed, labels, values.sampler)
    elif values.mode == "eval":
        commands.measure(run)
    else:
        commands.dry_run(run)
    return 0


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The value of --config, the last one as for every flag, and the arguments without it."""
    rest, reference, given = [], None, iter(arguments)
    for argument in given:
        if argument in ("--config", "-config"):
            reference = next(given, None)
        elif argument.startswith(("--config=", "-config=")):
            reference = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    if not reference:
        raise ValueError(f"no --config given; configs: {', '.join(experiment.known())}.")
    return reference, rest


def _check_key(config: ConfigDict, path: str) -> None:
    here = config
    for dotted, bracketed in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path.replace("].", "]")):
        part = dotted or bracketed.strip("'\"")
        if isinstance(here, ConfigDict):
            places = list(here)
        else:
            places = [str(i) for i in range(len(here))] if isinstance(here, (tuple, list)) else []
        if part not in places:
            keys = ", ".join(sorted(places)) or "none below it"
            raise ValueError(
                f"the config has no key {path!r}: {part!r} is unknown; known there: {keys}."
            )
        here = here[part] if isinstance(here, ConfigDict) else here[int(part)]
    if " " in path:
        raise ValueError(f"no flag can name {path!r}, as it has a space; set it in a config file.")


def _explained(message: str, config: ConfigDict) -> str:
    """absl's message; for a config key with what belongs there."""
    match = re.match(r"flag --config\.(\w[\w.]*)=", message)
    if match is None:
        return message
    value = functools.reduce(lambda here, part: here[part], match[1].split("."), config)
    kind = "section of keys" if isinstance(value, ConfigDict) else type(value).__name__
    example = "" if isinstance(value, ConfigDict) else f" such as {value!r}"
    return f"{message}; config.{match[1]} takes a {kind}{example}."


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--labels takes class numbers such as 0,1,2; got {text!r}.") from None
