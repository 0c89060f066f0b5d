"""Reads hostile files in a process of its own, with little memory and a watch on what is run.

    python tests/reading_process.py files FOLDER          every file there
    python tests/reading_process.py mutate FOLDER COUNT   COUNT mutations of every file there, by layer

It prints JSON: what became of each file, or counts by layer, and by how much memory grew.
"""

import collections
import encodings.cp437  # noqa: F401  zipfile would import it when it meets a name that is not UTF-8
import json
import pickletools
import random
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image

import snapshots
from fastdiff_jax.data import edm_zip
from fastdiff_jax.interop import edm_pickle, torch_state

Image.init()  # it would import its formats when it meets the first image

MEMORY = 256 << 20  # bytes beyond what the imports take
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "exec", "compile", "import",
)  # fmt: skip


armed = []  # while a file is read


def watch(found):
    """Records every event that no reader has a reason for."""

    def hook(event, arguments):
        if armed and event in FORBIDDEN:
            found.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(hook)


def confine():
    """Limits the address space to what it is, and MEMORY."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def outcome(path):
    """"read", or the one line of the refusal."""
    armed.append(path)
    try:
        if path.suffix == ".pkl":
            _, network = edm_pickle.chosen(edm_pickle.read(path))
            edm_pickle.flatten(network)
        elif path.suffix == ".zip":
            images = edm_zip.Images(path)
            assert len(images.labels()) == len([images.image(index) for index in range(len(images))])
        else:
            torch_state.read(path)
        return "read"
    except ValueError as error:
        return str(error)
    finally:
        armed.clear()


def mutations(content, count, generator, donors):
    """Flipped, cut, spliced and edited versions of a file."""
    places = [place for place, _ in spots(content)]
    codes = [ord(opcode.code) for opcode in pickletools.opcodes]
    for number in range(count):
        made = bytearray(content)
        kind = number % 5
        if kind == 0:
            for _ in range(generator.randint(1, 4)):
                made[generator.randrange(len(made))] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del made[generator.randrange(len(made)) :]
        elif kind == 2:
            donor = generator.choice(donors)
            start = generator.randrange(len(donor))
            at = generator.choice(places)
            made[at : at + generator.randrange(40)] = donor[start : start + generator.randrange(1, 200)]
        elif kind == 3:
            made[generator.choice(places)] = generator.choice(codes)
        else:
            at = generator.choice(places)
            made[at:at] = bytes(generator.choice(codes) for _ in range(generator.randint(1, 6)))
        yield bytes(made)


def spots(content):
    """The opcodes of a pickle, or every byte of something else."""
    try:
        return [(place, opcode) for opcode, _, place in pickletools.genops(content)]
    except ValueError:
        return [(place, None) for place in range(len(content))]


def layers(canary, count, generator):
    """(layer, suffix, content) of mutated files; of inner layers the outer ones are whole."""
    named, storages = snapshots.state()
    storage = snapshots.Storage("94031087546192", snapshots.WEIGHT.ravel())
    attack = snapshots.pickle.dumps(snapshots.Attack(canary), 4)
    sources = {
        "outer": snapshots.dumped(snapshots.tiny(canary), 4),
        "storage": snapshots.legacy(storage, [storage]),
        "state": snapshots.dumped(named),
        "archive": snapshots.archive(named, storages),
        "script": snapshots.archive(snapshots.script("Net", w=named["a.bias"]), storages, scripted=True),
        "old": snapshots.legacy(named, storages),
        "data": snapshots._zip(images := snapshots.image_set()),
        "image": images["00000/img00000000.png"],
        "labels": images["dataset.json"],
    }
    donors = [attack, attack[2:-1], *sources.values()]
    for layer, content in sources.items():
        for made in mutations(content, count, generator, donors):
            if layer == "storage":
                yield layer, ".pkl", snapshots.dumped(snapshots.tiny(canary, made), 4)
            elif layer == "state":
                entries = {"net/data.pkl": made, "net/byteorder": b"little"}
                entries |= {f"net/data/{s.key}": s.numbers.tobytes() for s in storages}
                yield layer, ".pth", snapshots._zip(entries)
            elif layer in ("image", "labels"):
                name = "dataset.json" if layer == "labels" else "00000/img00000000.png"
                yield layer, ".zip", snapshots._zip(images | {name: made})
            elif layer == "data":
                yield layer, ".zip", made
            else:
                yield layer, ".pkl" if layer == "outer" else ".pth", made


def main(kind, folder, count="0"):
    folder, executed = Path(folder), []
    canary = folder / "was_here"
    watch(executed)
    outcome(folder / "absent.pkl")
    if kind == "files":
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".pkl", ".pth", ".zip"))
        before = peak()
        confine()
        said = {path.name: outcome(path) for path in paths}
    else:
        said, before = {}, peak()
        confine()
        for number, (layer, suffix, content) in enumerate(layers(canary, int(count), random.Random(0))):
            path = folder / f"mutated{suffix}"
            path.write_bytes(content)
            what = outcome(path)
            assert "\n" not in what and "MemoryError" not in what, (number, what)
            tally = said.setdefault(layer, collections.Counter())
            tally["read" if what == "read" else "refused"] += 1
    print(json.dumps({"said": said, "executed": executed, "grown": peak() - before}))


def peak():
    """Most memory so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
