"""Files of torch: TorchScript's data without its code, old files, and the checks of archives."""

import io
import zipfile

import numpy as np
import pytest

import snapshots
from fastdiff_jax.interop import archives, torch_state


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


def zipped(names, compression=zipfile.ZIP_STORED, size=10):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name in names:
            file.writestr(name, b"\0" * size)
    return buffer.getvalue()


@pytest.mark.parametrize("names, words", [
    (["/a"], "absolute"), (["../a"], "leads out"), (["a/../../b"], "leads out"), (["a:/b"], "absolute"),
    (["a" * 1001], "no usable name"), (["a", "a"], "is there twice"), (["a\tb"], "no usable name"),
])  # fmt: skip
def test_bad_names_in_archives_are_refused(tmp_path, names, words):
    with pytest.warns(UserWarning) if len(names) > 1 else io.BytesIO():
        content = zipped(names)
    with pytest.raises(zipfile.BadZipFile, match=words), archives.opened(written(tmp_path, content)):
        pass


@pytest.mark.parametrize("limits, words", [
    (dict(entries=3), "more than 3 entries"), (dict(small=99, ratio=2), "would unpack from"), ({}, None),
])  # fmt: skip
def test_limits_of_archives(tmp_path, limits, words):
    path = written(tmp_path, zipped("abcd", zipfile.ZIP_DEFLATED, 10_000))
    if words is None:
        with archives.opened(path) as archive:
            assert archive.namelist() == list("abcd")
            with pytest.raises(zipfile.BadZipFile, match="the compressed entry a"):
                archives.stored(archive, "a")
        return
    with pytest.raises(zipfile.BadZipFile, match=words), archives.opened(path, archives.Limits(**limits)):
        pass


def test_an_empty_file_is_no_archive(tmp_path):
    with pytest.raises(zipfile.BadZipFile, match="an empty file"), archives.opened(written(tmp_path, b"")):
        pass
