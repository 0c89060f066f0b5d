"""Files of torch: TorchScript's data without its code, old files, and what no state dict needs."""

import zipfile

import numpy as np
import pytest

import snapshots
from fastdiff_jax.interop import torch_state


def written(folder, content, name="net.pt"):
    path = folder / name
    path.write_bytes(content)
    return path


def scripted(**changes):
    """What torch.jit.save makes of a module in a module."""
    _, storages = snapshots.state()
    arrays = (snapshots.WEIGHT, snapshots.BIAS)
    weight, bias = (snapshots.view(s, a, parameter=False) for s, a in zip(storages, arrays, strict=True))
    inner = snapshots.script("Conv", weight=weight, bias=bias, stride=2)
    net = snapshots.script("Net", training=False, conv=inner, **changes)
    return snapshots.archive(net, storages, scripted=True)


def test_torchscript_gives_its_tensors_and_runs_no_code(tmp_path):
    found = torch_state.read(written(tmp_path, scripted()))
    assert list(found) == ["conv.weight", "conv.bias"]
    np.testing.assert_array_equal(found["conv.weight"], snapshots.WEIGHT, strict=True)
    np.testing.assert_array_equal(found["conv.bias"], snapshots.BIAS, strict=True)


def test_its_classes_are_names_only_in_torchscript(tmp_path):
    named, storages = snapshots.state()
    content = snapshots.archive(snapshots.script("Net", w=named["a.bias"]), storages)
    with pytest.raises(ValueError, match="the name __torch__.nets.Net, which no state"):
        torch_state.read(written(tmp_path, content))


@pytest.mark.parametrize("form", ["zip", "old"])
def test_state_dicts_are_read_in_both_formats(tmp_path, form):
    named, storages = snapshots.state()
    content = (snapshots.archive if form == "zip" else snapshots.legacy)(named, storages)
    found = torch_state.read(written(tmp_path, content))
    assert list(found) == ["a.weight", "a.bias", "b"]
    np.testing.assert_array_equal(found["a.weight"], snapshots.WEIGHT, strict=True)
    np.testing.assert_array_equal(found["b"], snapshots.WEIGHT.ravel().reshape(3, 4).T, strict=True)


@pytest.mark.parametrize("change, words", [
    (dict(key="7"), "no numbers of the storage '7'"),
    (dict(numbers=np.ones(13, np.float32)), "48 bytes for the 13 numbers"),
    (dict(numbers=snapshots.WEIGHT.astype(np.float64).ravel()), "48 bytes for the 12 numbers"),
])  # fmt: skip
def test_storages_that_are_not_there_are_refused(tmp_path, change, words):
    _, storages = snapshots.state()
    wrong = storages[0]._replace(**change)
    content = snapshots.archive({"a": snapshots.view(wrong, snapshots.WEIGHT)}, storages)
    with pytest.raises(ValueError, match=words):
        torch_state.read(written(tmp_path, content))


@pytest.mark.parametrize("kind", ["BF16", "F8_NEW"])
def test_types_that_numpy_has_not_are_named(tmp_path, monkeypatch, kind):
    def load(content):
        raise KeyError(kind)  # what safetensors does

    monkeypatch.setattr(torch_state.safetensors.numpy, "load", load)
    with pytest.raises(ValueError, match=f"net.safetensors holds numbers of type {kind}; save float32"):
        torch_state.read(written(tmp_path, b"", "net.safetensors"))


def test_one_key_is_one_storage(tmp_path):
    _, storages = snapshots.state()
    other = storages[0]._replace(numbers=np.ones(3, np.float32))
    named = {name: snapshots.view(s, np.ones(3, np.float32)) for name, s in (("a", storages[0]), ("b", other))}
    with pytest.raises(ValueError, match="two storages of the key '0'"):
        torch_state.read(written(tmp_path, snapshots.archive(named, storages)))


def test_compressed_numbers_are_refused(tmp_path):
    named, storages = snapshots.state()
    content = snapshots.archive(named, storages, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="the compressed entry net/byteorder, which torch does not write"):
        torch_state.read(written(tmp_path, content))


def test_zips_are_checked_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    path = written(tmp_path, snapshots._zip({"net/data.pkl": b"N.", "net/../../evil": b""}))
    words = "nothing of it was run: its entry .* points out of it.*; save the"
    with pytest.raises(ValueError, match=words) as caught:
        torch_state.read(path)
    assert "\n" not in str(caught.value)
