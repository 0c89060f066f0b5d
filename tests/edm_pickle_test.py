"""Snapshots of the EDM code: what is read, and hostile files in a process with little memory."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import snapshots
from fastdiff_jax import messages
from fastdiff_jax.interop import edm_networks, edm_pickle, pickles

HERE = Path(__file__).parent


def saved(folder, value, protocol=4):
    path = folder / "network-snapshot-000000.pkl"
    path.write_bytes(snapshots.dumped(value, protocol))
    return path


def read_apart(kind, folder, *more):
    """What tests/reading_process.py says."""
    command = [sys.executable, str(HERE / "reading_process.py"), kind, str(folder), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_snapshot_is_read_to_the_bit(tmp_path):
    found = edm_pickle.read(saved(tmp_path, snapshots.tiny()))
    assert list(found) == ["ema", "loss_fn", "augment_pipe", "dataset_kwargs"]
    assert found["dataset_kwargs"] == {"n": 3} and found["augment_pipe"] is None
    key, network = edm_pickle.chosen(found)
    assert (key, network.name, network.state["sigma_data"]) == ("ema", "EDMPrecond", 0.5)
    state = edm_pickle.flatten(network)
    assert list(state) == ["model.enc.one.weight", "model.map_layer0.bias"]  # the bias of None left out
    np.testing.assert_array_equal(state["model.enc.one.weight"], snapshots.WEIGHT, strict=True)
    np.testing.assert_array_equal(state["model.map_layer0.bias"], snapshots.BIAS, strict=True)
    inner = network.state["_modules"]["model"].state["_modules"]
    assert inner["enc"].state["_modules"]["one"].state["skip"] == 0.5  # a number of numpy


def test_turned_tensors_and_buffers_are_read(tmp_path):
    turned = snapshots.stored(snapshots.WEIGHT.T, shape=(2, 2), strides=(1, 2), offset=2)
    net = snapshots.module("N", {"w": turned})
    buffers = {"kept": snapshots.stored(snapshots.BIAS), "gone": snapshots.stored([1.0])}
    net.parts[1][0]["state"]["_buffers"] = buffers
    net.parts[1][0]["state"]["_non_persistent_buffers_set"] = {"gone"}
    path = saved(tmp_path, net)
    state = edm_pickle.flatten(edm_pickle.read(path)[""])
    flat = snapshots.WEIGHT.T.ravel()[2:6]
    np.testing.assert_array_equal(state["w"], [[flat[0], flat[2]], [flat[1], flat[3]]])
    assert set(state) == {"w", "kept"}


def test_the_network_is_chosen_by_a_rule_or_by_name(tmp_path):
    nets = {name: snapshots.module(name, {"w": snapshots.stored([1.0])}, {"m": snapshots.module("N")})
            for name in ("model", "G_ema", "fake_score")}  # fmt: skip
    found = edm_pickle.read(saved(tmp_path, {"settings": {"afs": True}, **nets}))
    assert edm_pickle.chosen(found)[0] == "G_ema"
    assert edm_pickle.chosen(found, "fake_score")[1].name == "fake_score"
    words = "no network 'psi'; networks there: model, G_ema, fake_score; other entries: settings; choose by"
    with pytest.raises(ValueError, match=words):
        edm_pickle.chosen(found, "psi")
    with pytest.raises(ValueError, match="no network of a usual name"):
        edm_pickle.chosen({"a": found["model"], "b": found["model"]})


@pytest.mark.parametrize("damage, words", [
    (dict(_modules={"a": 3}), "a int in _modules at a"),
    (dict(_parameters={"a": 3}), "a int in _parameters at a"),
    (dict(_parameters=[1]), "_parameters are no dict"),
    (dict(_parameters={"n" * 301: snapshots.stored([1.0])}), "a name of more than 300 characters"),
])  # fmt: skip
def test_states_of_something_else_are_refused(tmp_path, damage, words):
    net = snapshots.module("N")
    net.parts[1][0]["state"] |= damage
    with pytest.raises(ValueError, match=words):
        edm_pickle.flatten(edm_pickle.read(saved(tmp_path, net))[""])


def test_no_tuple_is_walked_to_say_what_is_wrong_with_it(tmp_path):
    (tmp_path / "a.pkl").write_bytes(snapshots.bombs("absent")["nested_argument"][1])
    with pytest.raises(ValueError, match="has img_resolution a tuple, which is not a whole number"):
        edm_networks.described(edm_pickle.read(tmp_path / "a.pkl")["ema"])
    assert messages.shown("a\x1b[31m\n" * 50, 10) == "a\\x1b[31m\\na\\x1b[..."


@pytest.mark.parametrize("value", [
    {"a": [1, (2.5, None), {"b", 3}], 4: b"c", None: True}, "text" * 100, [[]], {}, -(2**70), 2**31,
])  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_scan_accepts_what_plain_values_are_pickled_as(value, protocol):
    if protocol < 4 and isinstance(value, dict):
        value = {"a": [1, (2.5, None)]}  # sets are calls there, and before 3 bytes as well
    content = pickle.dumps(value, protocol) + b"more"
    found, end = pickles.load(content, {})
    assert found == value and content[end:] == b"more"


@pytest.mark.parametrize("content, words", [
    (b"\x80\x02]K\x01a.", None),
    (b"\x80\x02K\x01a.", "an empty stack"),
    (b"\x80\x02K\x01K\x02a.", "a plain in the place of a list"),
    (b"\x80\x02h\x00.", "the memo slot 0, which is empty"),
    (b"\x80\x02K\x01K\x02.", "a stack that is not one value"),
    (b"\x80\x02(.", "a stack that is not one value"),
    (b"\x80\x02t.", "a mark that was not set"),
    (b"\x80\x02}(K\x01u.", "a key without a value"),
    (b"\x80\x02}]K\x01s.", "a key that is a list"),
    (b"\x80\x04\x8f(]\x90.", "a key that is a list"),
    (b"\x80\x06N.", "another protocol"),
    (b"N\x80\x02.", "another protocol"),
    (b"cos\nsystem\n.", "the name os.system"),
    (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "the name os.system"),
    (b"ios\nsystem\n.", "the opcode INST"),
    (b"\x82\x01.", "the opcode EXT1"),
    (b"\xff.", "the opcode 0xff"),
    (b"N)R.", "a plain in the place of a name"),
    (b"NQ.", "the opcode BINPERSID"),
])  # fmt: skip
def test_the_scan_refuses_by_itself(content, words):
    if words is None:
        assert pickles.scan(content, {}) == len(content)
        return
    with pytest.raises(pickle.UnpicklingError, match=words):
        pickles.scan(content, {})


def test_the_unpickler_knows_no_other_names_by_itself():
    """Were the scan wrong, nothing would be run all the same."""
    with pytest.raises(pickle.UnpicklingError, match="the name posix.system"):
        pickles.Restricted(pickle.dumps(snapshots.Attack("absent")), {}).load()
    with pytest.raises(pickle.UnpicklingError, match="a reference to something outside"):
        pickles.Restricted(b"\x80\x02NQ.", {}).load()


def test_hostile_files_are_refused_in_one_line_with_little_memory(tmp_path):
    """os.system in both layers, claims of gigabytes, endless tuples, truncation, archives' bombs and names."""
    canary = tmp_path / "was_here"
    bombs = snapshots.bombs(canary)
    for name, (suffix, content) in bombs.items():
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    pickle.Unpickler(io.BytesIO(bombs["outer_bare"][1])).load()
    assert canary.exists()  # the attack works
    canary.unlink()
    told = read_apart("files", tmp_path)
    said = told["said"]
    assert len(said) == len(bombs) and told["executed"] == []
    assert not canary.exists()
    assert told["grown"] < 128 << 20, told["grown"]
    for name, what in said.items():
        assert "\n" not in what and "MemoryError" not in what, (name, what)
        # A file that asks for nothing harmful may be read: its source is dropped.
        assert what != "read" or name in ("nested_argument.pkl",), name
    for name, words in {
        "outer": "name posix.system", "inner": "name posix.system", "inner_behind": "name posix.system",
        "claim_bytes": "1099511627776 bytes where 0", "claim_memo": "memo slot", "key": "that is a tuple",
        "pairs": "a mapping that is made with", "deep": "open marks", "many": "more than 500000 opcodes",
        "shared": "held twice or too deep", "overlap": "tensors of many times", "cut_1000": "are left",
        "state_of_function": "a name in the place of a mapping", "copied_pairs": "a mapping that is made with",
        "colliding": "a key that is a whole number of more than 32 bits",
        "storage_again": "storages and tensors of many times its",
    }.items():  # fmt: skip
        assert words in said[f"{name}.pkl"]
    for name, words in {
        "zip_attack": "name posix.system", "old_attack": "name posix.system", "zip_absolute": "points out",
        "zip_drive": "points out", "zip_out": "points out", "zip_back": "points out", "zip_bomb": "claims",
        "copied_set": "calls with more than 500000", "copied_later": "calls with more than 500000",
        "colliding_set": "of more than 32 bits", "zip_many": "more than 20,000",
        "zip_overlap": "overlap", "zip_size": "overlap", "stride": "beyond",
    }.items():  # fmt: skip
        assert words in said[f"{name}.pth"]
    for name, words in {
        "data_up": "'../up.png' points out of it", "data_absolute": "points out of it", "data_bomb": "claims",
        "data_pixels": "more pixels than are read", "data_pickle": "is no PNG image",
        "data_json": "not of the form", "data_labels": "not of the form", "data_vectors": "neither class",
        "data_class": "a class number 4611686018427387904", "data_overlap": "overlap", "data_cut": "damaged",
        "data_many": "are no images",
    }.items():  # fmt: skip
        assert words in said[f"{name}.zip"]


def test_mutations_are_read_or_refused(tmp_path):
    """A thousand flips, cuts, splices and edited opcodes of every layer; many hold an attack.

    Layers: a snapshot, a storage in it, torch's archive, the pickle in it, TorchScript, the old format, and of
    a data set its zip, an image and the labels.
    """
    told = read_apart("mutate", tmp_path, "1000")
    assert told["executed"] == [] and not (tmp_path / "was_here").exists()
    assert told["grown"] < 128 << 20, told["grown"]
    layers = {"outer", "storage", "state", "archive", "script", "old", "data", "image", "labels"}
    assert set(told["said"]) == layers
    for layer, tally in told["said"].items():
        assert sum(tally.values()) == 1000 and tally["refused"] > 200, (layer, tally)
