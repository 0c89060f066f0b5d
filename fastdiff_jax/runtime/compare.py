"""The command line of launch/compare.py: results of several cards beside each other, if they compare at all."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from fastdiff_jax.data import stored
from fastdiff_jax.metrics.features import INCEPTION
from fastdiff_jax.runtime import command_line, files, progress, protocols, results

USAGE = "python launch/compare.py --cards CARD,CARD[,...]; a card is a card.json, a workdir, or published:NAME"
PREFIX = "published:"
UNKNOWN = (None, "")  # what others do not say of their numbers
RECORD = {  # of a protocol, with what types
    "sampling": str, "samples": int, "seeds": list, "quantiser": str, "data": dict, "features": dict,
    "reference": dict,
}  # fmt: skip
IMAGES = {"cifar10": 50_000, "ffhq": 70_000, "imagenet": 1_281_167}  # of whole training sets, that are known
SIZE = re.compile(r"-\d+x\d+$")  # of the names of EDM's data sets: cifar10-32x32


def published(name: str, data: str, side: int, nfe: int, fid: float) -> dict[str, Any]:
    """A card of a published FID under EDM's protocol: 50,000 images three times, the minimum."""
    origin = {"name": data, "fingerprint": "", "note": "", "shape": [side, side, 3]}
    protocol = {
        "sampling": protocols.EDM,
        "samples": 50000,
        "seeds": ["0-49999", "50000-99999", "100000-149999"],
        "quantiser": stored.encode.__doc__.splitlines()[0],
        "data": origin,
        "features": {"fid": {"weights": INCEPTION, "resize": "tf1", "sha256": ""}},
        "reference": {"fid": {"data": origin, "count": IMAGES.get(data)}},
    }
    row = {"name": f"{name} {nfe}", "nfe": nfe, "values": {"fid": {"mean": None, "std": None, "min": fid}}}
    return {"title": f"{PREFIX}{name}", "protocol": protocol, "results": [row]}


# Karras et al. 2022 (arXiv:2206.00364): its repository's table for the released networks.
PUBLISHED = {
    name: published(name, *about)
    for name, *about in (
        ("edm-cifar10-cond", "cifar10", 32, 35, 1.79),
        ("edm-cifar10-uncond", "cifar10", 32, 35, 1.97),
        ("edm-ffhq64", "ffhq", 64, 79, 2.39),
        ("edm-afhqv2", "afhqv2", 64, 79, 1.96),
        ("edm-imagenet64", "imagenet", 64, 511, 1.36),
    )
}


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code, see `command_line`."""

    def command():
        cards = [read(name) for name in parse(arguments)]
        progress.say("\n".join(table(cards)))
        return 0

    return command_line.guarded(command)


def parse(arguments: list[str]) -> list[str]:
    """The names of the cards. Raises: ValueError for what is wrong with the flags, Help if it is asked for."""
    values = flags.FlagValues()
    flags.DEFINE_list("cards", [], "Cards to compare, two or more.", flag_values=values)
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments[1:]):
        known = ", ".join(f"{PREFIX}{name}" for name in PUBLISHED)
        raise command_line.Help(f"{USAGE}\n  {known}")
    try:
        extra = values(arguments)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from None
    named = [*values.cards, *extra]  # --cards A B reads as well as --cards A,B
    if len(named) < 2:
        raise ValueError(f"a comparison is of two cards or more; got {len(named)}; usage: {USAGE}")
    return named


def read(name: str) -> dict[str, Any]:
    """A card by path, by the workdir that it is in, or published. Raises: ValueError if there is none."""
    if name.startswith(PREFIX):
        card = PUBLISHED.get(name.removeprefix(PREFIX))
        if card is None:
            raise ValueError(f"nothing is published as {name!r} here; known: {', '.join(PUBLISHED)}.")
        return card
    path = Path(name) / "card.json" if Path(name).is_dir() else Path(name)
    card = files.read_json(path)
    if not isinstance(card, dict) or "results" not in card:
        raise ValueError(f"there is no card {str(path)!r}; a finished run's workdir has one, card.json.")
    if "protocol" not in card:
        raise ValueError(f"the card {path} records no protocol, so nothing compares; use --mode eval anew.")
    if not complete(card):
        raise ValueError(
            f"the card {path} is damaged or of an older version; measure it again with --mode eval."
        )
    return card


def complete(card: Mapping[str, Any]) -> bool:
    """Whether a card has all that is compared and shown."""
    protocol, rows = card["protocol"], card["results"]
    if not (isinstance(card.get("title"), str) and isinstance(rows, list) and isinstance(protocol, dict)):
        return False
    if not all(isinstance(protocol.get(name), kind) for name, kind in RECORD.items()):
        return False
    measures = protocol.get("measures", {})
    origins = [protocol["data"], *(_part(one, "data") for one in protocol["reference"].values())]
    parts = (*protocol["features"].values(), *origins, measures)
    return (
        all(isinstance(part, dict) for part in parts)
        and all(isinstance(one.get(key, ""), str) for one in origins for key in ("name", "note"))
        and protocol["features"].keys() <= protocol["reference"].keys()
        and all(_is_row(row) for row in rows)
    )


def _part(of, name):
    """An optional part; None if it is not of the form."""
    found = of.get(name, {}) if isinstance(of, dict) else None
    return found if isinstance(found, dict) else None


def _is_row(row):
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or "nfe" not in row:
        return False
    values = row.get("values")
    return isinstance(values, dict) and all(
        value is None or (isinstance(value, dict) and {"mean", "std"} <= value.keys())
        for value in values.values()
    )


def table(cards: list[Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table of all rows, by the feature columns that the cards share, and of remarks.

    Further measures, such as KID, are columns where all cards have them by the same settings.

    Raises: ValueError if two cards follow different protocols, or share no column.
    """
    columns = [card["protocol"]["features"] for card in cards]
    shared = [column for column in columns[0] if all(column in others for others in columns)]
    for left, right in itertools.combinations(cards, 2):
        differing = list(differences(left["protocol"], right["protocol"], shared))
        if differing:
            raise ValueError(
                f"{left['title']} and {right['title']} do not compare, they differ in {'; '.join(differing)}."
            )
    if not shared:
        raise ValueError(f"{', '.join(card['title'] for card in cards)} share no column that can be compared.")
    shared, remarks = [*shared, *same(cards)], said(cards, shared)
    heads = ["card", "sampler", "NFE", *map(results.heading, shared)]
    lines = [heads, ["---"] * 2 + ["---:"] * (1 + len(shared))]
    for card in cards:
        for row in card["results"]:
            cells = [_value(row["values"].get(column)) for column in shared]
            if any(cells):
                cost = "" if row["nfe"] is None else str(row["nfe"])
                lines.append([card["title"], row["name"], cost, *cells])
    return [f"| {' | '.join(line)} |" for line in lines] + remarks


def same(cards: list[Mapping[str, Any]]) -> list[str]:
    """Columns of further measures that all cards have by the same settings."""
    first, *others = (card["protocol"].get("measures", {}) for card in cards)
    return [name for name, about in first.items() if all(other.get(name) == about for other in others)]


def said(cards: list[Mapping[str, Any]], columns: list[str]) -> list[str]:
    """What the reader must know beside a table: references that nothing but a file's name speaks for, measures
    that are left out as their settings differ.
    """
    lines = []
    for card, column in itertools.product(cards, columns):
        about = card["protocol"]["reference"][column]
        if "file" in about and "data" not in about:
            lines.append(
                f"{card['title']}: reference by the user's word, column {column} is against the file "
                f"{about['file']} (sha256 {str(about.get('sha256', ''))[:12]}), which does not say of what."
            )
    first, *others = (card["protocol"].get("measures", {}) for card in cards)
    for name in first:
        if all(name in other for other in others) and any(other[name] != first[name] for other in others):
            lines.append(f"{name} is left out: the cards have it by different settings.")
    return ["", *lines] if lines else []


def differences(left: Mapping[str, Any], right: Mapping[str, Any], columns: list[str]) -> Iterator[str]:
    """What differs between two protocols, in words: "samples (50000 against 10000)".

    What one side does not say, as others' files say nothing of their data, is not held against it. Seeds may
    differ between sets of equal size, not between repeats of which the minimum counts.
    """
    for key in ("sampling", "samples", "quantiser"):
        yield from _difference(key, left[key], right[key])
    yield from _difference("task", left.get("task"), right.get("task"))
    if left["sampling"] == right["sampling"] == protocols.EDM:
        yield from _difference("seeds", *(", ".join(map(str, side["seeds"])) for side in (left, right)))
    yield from _data("data", left["data"], right["data"])
    for column in columns:
        mine, theirs = (side["features"][column] for side in (left, right))
        yield from _difference(f"{column}: resize", mine.get("resize"), theirs.get("resize"))
        known = [side.get("weights") or side.get("net") for side in (mine, theirs)]
        if known[0] != known[1]:
            yield f"{column}: weights ({known[0]} against {known[1]})"
        elif known[0] != INCEPTION:  # whose published files are several, of the same numbers
            yield from _difference(f"{column}: weights", mine.get("sha256"), theirs.get("sha256"))
        mine, theirs = (side["reference"][column] for side in (left, right))
        yield from _data(f"{column}: reference", mine.get("data", {}), theirs.get("data", {}))
        yield from _difference(f"{column}: reference count", mine.get("count"), theirs.get("count"))
        if "data" not in mine or "data" not in theirs:  # files of others, which are known by their content only
            yield from _difference(f"{column}: reference file", mine.get("sha256"), theirs.get("sha256"))


def _data(what, left, right):
    """The first difference of two data sets; a note is always one."""
    notes = [side.get("note", "") for side in (left, right)]
    names = [f"{side.get('name', 'unknown data')}{f' ({note})' if note else ''}"
             for side, note in zip((left, right), notes, strict=True)]  # fmt: skip
    bare = [SIZE.sub("", side.get("name", "")) for side in (left, right)]
    if (all(bare) and bare[0] != bare[1]) or notes[0] != notes[1]:
        yield f"{what} ({names[0]} against {names[1]})"
    else:
        yield from _difference(f"{what} shape", left.get("shape"), right.get("shape"))
        yield from _difference(f"{what} fingerprint", left.get("fingerprint"), right.get("fingerprint"))


def _difference(what, left, right):
    if left != right and left not in UNKNOWN and right not in UNKNOWN:
        shown = [text if len(text) <= 60 else f"{text[:60]}..." for text in map(str, (left, right))]
        yield f"{what} ({shown[0]} against {shown[1]})"


def _value(found):
    if found is None:
        return ""
    value = found.get("min", found["mean"])
    if value is None:
        return "not finite"
    several = found["std"] and "min" not in found
    return results.number(value) + (f" ± {results.number(found['std'])}" if several else "")
