"""The command line of launch/reference_stats.py: mean and covariance of a data set's features, as an npz."""

from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from fastdiff_jax.metrics import features, frechet, references
from fastdiff_jax.runtime import command_line, experiment, files, progress, protocols
from fastdiff_jax.runtime import mesh as meshes
from fastdiff_jax.runtime.assemble import data_set


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, see `command_line`."""

    def command():
        values, config, reference = command_line.parse(arguments, define)
        out = values.out or f"{experiment.name_of(reference)}_{column_of(config, values.column)}.npz"
        write(config, values.column, Path(out))
        return 0

    return command_line.guarded(command)


def define(values: flags.FlagValues) -> None:
    """Defines the flags of launch/reference_stats.py."""
    given = dict(flag_values=values)
    flags.DEFINE_string("column", None, "Column of the config's panel; the first net's by default.", **given)
    flags.DEFINE_string("out", None, "File to write, .npz; <config>_<column>.npz by default.", **given)


def column_of(config: ConfigDict, column: str | None) -> str:
    """The feature column asked for. Raises: ValueError if the config's panel has none of that name."""
    known = config.evaluation.panel.get("features", {})
    column = column or next((name for name in known if known[name].name != "pixels"), None)
    if column not in known:
        raise ValueError(f"the panel has no feature column {column!r}; known: {', '.join(known) or 'none'}.")
    return column


def write(config: ConfigDict, column: str | None, out: Path) -> None:
    """Writes `mu` and `sigma` of the reference set in one column's features, and what they are of.

    All devices share the images; the sums are in host float64, see `frechet.merge`.

    Raises: ValueError for another ending of the file, a place that cannot be written, or an unknown column.
    """
    if out.suffix != ".npz" or out.is_dir():
        raise ValueError(f"--out names a file that ends in .npz; got {str(out)!r}.")
    experiment.check_writable(out.parent, "--out")
    column = column_of(config, column)
    data, mesh = data_set(config), meshes.make(config.mesh)
    request = config.evaluation.panel.features[column].to_dict()
    request.pop("reference", None)  # this is what makes one
    net = features.build(request, data.shape)
    batches = features.stream(net, data.decode, shardings=(meshes.whole(mesh), meshes.rows(mesh)))
    images = data.reference["image"]

    def counted(bar):
        for batch in batches(images):
            yield batch["features"]
            bar.update(len(batch["features"]))

    with progress.count(len(images), "img") as bar:
        total = frechet.gathered(counted(bar))
    about = {"data": protocols.origin(data), "features": features.identity(net), "count": total.count}
    if jax.process_index() == 0:
        files.write(out, references.serialise(frechet.statistics(total), about))
        progress.say(
            f"{total.count} images of {data.name} in {net.name}, {net.dim} dimensions: {out}. In a config:\n"
            f'features.{column}.reference = "{out}"'
        )
