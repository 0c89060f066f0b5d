"""LPIPS: the distance by hand, its networks, the converter and its refusals, and its place in SFD's loss."""

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastdiff_jax import precond
from fastdiff_jax.interop import lpips, torch_state
from fastdiff_jax.losses import perceptual
from fastdiff_jax.methods import sfd
from fastdiff_jax.metrics import features
from fastdiff_jax.networks import alexnet, layers, vgg
from fastdiff_jax.runtime import assemble, commands, convert, experiment
from fastdiff_jax.runtime import perceptual as loading
from fastdiff_jax.types import Model, Network, Parts

CHANNELS = (2, 3, 3, 4, 4)  # of a VGG in miniature


# --- the distance ---


def shown(key, size=6):
    return jax.random.uniform(jax.random.key(key), (2, size, size, 3), minval=-1.0)


def activations(images):
    """Two taps in closed form: the images themselves, and pairs of them at half the size."""
    return {"a": images, "b": jnp.concatenate([images, images**2], -1)[:, ::2, ::2]}


HEADS = {"a": jnp.array([0.5, 0.0, 2.0]), "b": jnp.linspace(0.1, 0.6, 6)}


def by_hand(x, y):
    """The formula in numpy, pixel by pixel, for the standard variant."""
    shift, scale = np.array([-0.03, -0.088, -0.188]), np.array([0.458, 0.448, 0.45])
    first, second = (activations(np.asarray(v - shift) / scale) for v in (x, y))
    total = np.zeros(len(x))
    for tap, head in HEADS.items():
        p, q = np.asarray(first[tap]), np.asarray(second[tap])
        for n, i, j in np.ndindex(p.shape[:3]):
            u, v = (h[n, i, j] / (np.sqrt(np.sum(h[n, i, j] ** 2)) + 1e-10) for h in (p, q))
            total[n] += np.dot(np.asarray(head), (u - v) ** 2) / (p.shape[1] * p.shape[2])
    return total


def test_the_distance_is_its_formula(x64):
    x, y = (np.asarray(shown(key), np.float64) for key in (0, 1))
    found = perceptual.distance(activations, HEADS, x, y)
    np.testing.assert_allclose(found, by_hand(x, y), rtol=1e-6)  # heads are float32
    np.testing.assert_allclose(perceptual.distance(activations, HEADS, y, x), found, rtol=1e-12)
    terms = perceptual.by_tap(activations, HEADS, x, y)
    assert set(terms) == set(HEADS)
    np.testing.assert_allclose(sum(terms.values()), found, rtol=1e-12)


def test_equal_images_are_at_zero_with_a_gradient_of_zero():
    """Also where all channels of a pixel are zero, and the norm has no slope."""
    x = shown(0)
    dead = lambda images: {"a": jax.nn.relu(images) * (images[..., :1] > 0), "b": images.repeat(2, -1)}
    assert np.any(np.all(dead(x)["a"] == 0, -1))
    moved = jax.jit(jax.value_and_grad(lambda x, y: perceptual.distance(dead, HEADS, x, y).sum()))
    value, grad = moved(x, x)
    assert value == 0 and np.all(grad == 0)
    value, grad = moved(x, shown(1))
    assert value > 0
    chex.assert_tree_all_finite(grad)


def test_variants_differ_in_size_and_range():
    seen = []

    def watch(images):
        seen.append(images)
        return {"a": images}

    for size, variants in ((6, {"standard": 6, "sfd": 224, "cm": 224}), (256, {"sfd": 224, "cm": 256})):
        for variant, side in variants.items():
            seen.clear()
            x = jnp.full((1, size, size, 3), 0.5)
            perceptual.distance(watch, {"a": HEADS["a"]}, x, x, variant)
            mapped = 0.5 if variant == "sfd" else 0.75
            expected = (mapped - np.array(perceptual.MEAN)) / np.array(perceptual.DEVIATION)
            assert seen[0].shape == (1, side, side, 3)
            np.testing.assert_allclose(seen[0], np.broadcast_to(expected, seen[0].shape), rtol=1e-5)


def test_resizing_is_bilinear_between_the_centres_of_pixels():
    """A linear ramp stays one inside, and is flat beyond the outermost centres."""
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 8, 8, 3))
    row = perceptual.prepared(ramp, perceptual.Variant(below=np.inf, remap=False))[0, 5, :, 0]
    row = row * perceptual.DEVIATION[0] + perceptual.MEAN[0]
    places = (np.arange(224) + 0.5) * 8 / 224 - 0.5
    np.testing.assert_allclose(row, np.clip(places, 0, 7), atol=1e-4)


@pytest.mark.parametrize("arguments, words", [
    ((shown(0), shown(0)[:1]), r"images of one shape; got \(2, 6, 6, 3\) and \(1, 6, 6, 3\)"),
    ((shown(0)[..., :1],) * 2, r"colour images \(B,H,W,3\); got \(2, 6, 6, 1\)"),
    ((shown(0), shown(0).at[1, 2, 3].set(jnp.nan)), "needs finite images; 1 of the second are not"),
    ((shown(0), shown(0), "sdf"), "no LPIPS variant 'sdf'; known: standard, sfd, cm"),
])  # fmt: skip
def test_bad_images_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        perceptual.distance(activations, HEADS, *arguments)


def test_heads_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"head a \(6,\) fits no activations; the network has a \(3,\), b"):
        perceptual.distance(activations, {"a": HEADS["b"]}, shown(0), shown(1))


# --- the networks ---


def small(pooling="average"):
    return vgg.build(dict(channels=CHANNELS, pooling=pooling), (16, 16, 3), 0)


def test_vgg_has_thirteen_convolutions_and_five_taps():
    network = vgg.build({}, (32, 32, 3), 0)
    x = jnp.zeros((1, 32, 48, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 14_714_688  # VGG16 without its classifier
    assert [index for _, index in vgg.convolutions()] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert [name for name, _ in vgg.convolutions()] == list(shapes)
    _, taps = jax.eval_shape(lambda p, x: network.apply(p, x, x[:, 0, 0, 0], {}, taps=vgg.TAPS), shapes, x)
    sizes = {tap: h.shape[1:] for tap, h in taps.items()}
    assert sizes == dict(zip(vgg.TAPS, [(32, 48, 64), (16, 24, 128), (8, 12, 256), (4, 6, 512), (2, 3, 512)]))


@pytest.mark.parametrize("pooling, reduce", [("max", np.max), ("average", np.mean)])
def test_pools_are_the_reductions_of_their_blocks(pooling, reduce):
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 2))
    expected = [[reduce(x[0, i : i + 2, j : j + 2], (0, 1)) for j in (0, 2)] for i in (0, 2)]
    np.testing.assert_allclose(vgg.POOLING[pooling](jnp.asarray(x))[0], expected, rtol=1e-5, atol=1e-7)


def test_both_ways_to_convolve_agree(x64):
    """In double precision it is done by products, which the golden values were compared with."""
    x, kernel = (jax.random.normal(jax.random.key(k), s) for k, s in ((0, (2, 5, 7, 3)), (1, (3, 3, 3, 4))))
    assert x.dtype == jnp.float64
    chex.assert_trees_all_close(vgg._by_products(x, kernel, 1), layers.correlate(x, kernel, 1), rtol=1e-12)


def test_the_pooling_between_alexnet_s_layers_is_a_maximum_over_three():
    x = np.random.default_rng(0).normal(size=(1, 8, 7, 2)).astype(np.float32)
    pooled = alexnet._pooled(jnp.asarray(x))[0]
    expected = [[x[0, i : i + 3, j : j + 3].max((0, 1)) for j in (0, 2, 4)] for i in (0, 2, 4)]
    np.testing.assert_array_equal(pooled, expected)


def test_images_that_a_pool_would_empty_are_refused():
    for network, least in ((small(), 16), (alexnet.build({}, (31, 31, 3), 0), 31)):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, least, least, 3)))
        with pytest.raises(ValueError, match=f"{least}x{least} or more; got {least - 1}x40: resize"):
            jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, least - 1, 40, 3)))


@pytest.mark.parametrize("config, words", [
    (dict(pooling="mean"), "no pooling 'mean'; known: max, average"),
    (dict(channels=(8, 8)), r"wants 5 channels; got \(8, 8\)"),
    (dict(depth=16), "no option 'depth'; known: channels, pooling"),
])  # fmt: skip
def test_bad_options_of_vgg_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        vgg.build(config, (32, 32, 3), 0)


# --- files of torch, written by hand ---


class Named:
    """A name of another library in a pickle; called, it becomes a call there."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Key:
    """A storage in a pickle."""

    def __init__(self, module, kind, key, count):
        self.module, self.kind, self.key, self.count = module, kind, key, count


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pickled(value):
    """Opcodes of a value, for names and storages that this process does not have."""
    if isinstance(value, Named):
        call = pickled(value.arguments) + b"R" if value.arguments else b""
        return f"c{value.module}\n{value.name}\n".encode() + call
    if isinstance(value, Key):
        kind = f"c{value.module}\n{value.kind}\n".encode()
        return b"(" + text("storage") + kind + text(value.key) + text("cpu") + pickled(value.count) + b"tQ"
    if isinstance(value, OrderedDict):
        items = b"".join(text(name) + pickled(entry) for name, entry in value.items())
        # Attributes, as state dicts have them: OrderedDict._metadata.
        return b"ccollections\nOrderedDict\n)R(" + items + b"u}(" + text("_metadata") + b"}ub"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    return text(value)


def tensor(array, key, kind="FloatStorage", **changes):
    shape = changes.get("shape", array.shape)
    strides = changes.get("strides", tuple(s // array.itemsize for s in array.strides))
    storage = Key(changes.get("module", "torch"), kind, key, changes.get("count", array.size))
    place = (storage, changes.get("offset", 0), shape, strides)
    return Named("torch._utils", "_rebuild_tensor_v2", *place, False, OrderedDict())


def body(state):
    return b"\x80\x02" + pickled(state) + b"."


def zipped(state, arrays, compression=zipfile.ZIP_STORED):
    """The format since torch 1.6."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("net/data.pkl", body(state))
        archive.writestr("net/byteorder", "little")
        for key, array in arrays.items():
            archive.writestr(f"net/data/{key}", array.tobytes())
        archive.writestr("net/version", "3\n")
    return buffer.getvalue()


def in_sequence(state, arrays):
    """The format before torch 1.6, which torchvision's VGG16 and the LPIPS heads are published in."""
    parts = [pickle.dumps(torch_state.MAGIC, 2), pickle.dumps(torch_state.PROTOCOL, 2),
             pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2),
             body(state).replace(b"tQ", b"NtQ"), pickle.dumps(list(arrays), 2)]  # fmt: skip
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in arrays.values()]
    return b"".join(parts)


def saved(path, state, form=zipped):
    arrays = {str(100 + i): np.asarray(array, np.float32) for i, array in enumerate(state.values())}
    tensors = OrderedDict((name, tensor(a, key)) for (key, a), name in zip(arrays.items(), state, strict=True))
    path.write_bytes(form(tensors, arrays))
    return path


def states(seed=0, channels=CHANNELS):
    """What torchvision and the heads' authors would have saved, for a VGG of a few channels."""
    random, inner, trunk = np.random.default_rng(seed), 3, {}
    widths = np.repeat(channels, vgg.DEPTHS)
    for width, (_, index) in zip(widths, vgg.convolutions(), strict=True):
        trunk[f"features.{index}.weight"] = random.normal(size=(width, inner, 3, 3)) / np.sqrt(inner)
        trunk[f"features.{index}.bias"] = random.normal(size=width)
        inner = width
    trunk["classifier.0.weight"] = random.normal(size=(5, 7))
    heads = {lpips.head_name(i): random.uniform(size=(1, width, 1, 1)) for i, width in enumerate(channels)}
    return trunk, heads


@pytest.mark.parametrize("form", [zipped, in_sequence])
def test_both_formats_of_torch_are_read_to_the_bit(tmp_path, form):
    state = {"a": np.arange(12.0).reshape(3, 4), "b.c": np.array(2.5), "empty": np.zeros((0, 3))}
    found = torch_state.read(saved(tmp_path / "net.pth", state, form))
    assert list(found) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32), strict=True)


def test_views_parameters_and_other_types_are_read(tmp_path):
    long, half = np.arange(6), np.arange(8, dtype=np.float16)
    state = OrderedDict(
        # Some files hold tensors that were saved from a GPU.
        cuda=tensor(half, "1", "HalfStorage", module="torch.cuda"),
        transposed=tensor(long, "0", "LongStorage", shape=(2, 2), strides=(1, 2), offset=2),
        parameter=Named("torch._utils", "_rebuild_parameter", tensor(half, "1", "HalfStorage"), True, None),
    )
    (tmp_path / "net.pt").write_bytes(zipped(state, {"0": long, "1": half}))
    found = torch_state.read(tmp_path / "net.pt")
    np.testing.assert_array_equal(found["transposed"], np.array([[2, 4], [3, 5]]), strict=True)
    for name in ("parameter", "cuda"):
        np.testing.assert_array_equal(found[name], half, strict=True)


class Attack:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(path, content, words):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        torch_state.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "bare", "sequence"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, form):
    trace, attack = tmp_path / "was_here", pickle.dumps(Attack(tmp_path / "was_here"), 2)
    pickle.loads(attack)
    assert trace.is_dir()  # it does work
    trace.rmdir()
    content = attack
    if form == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("net/data.pkl", attack)
        content = buffer.getvalue()
    elif form == "sequence":
        head = [torch_state.MAGIC, torch_state.PROTOCOL, {"little_endian": True}]
        content = b"".join(pickle.dumps(value, 2) for value in head) + attack
    refused(tmp_path / "net.pth", content, "nothing of it was run: the name (posix|nt).mkdir, which no state")
    assert not trace.exists()


@pytest.mark.parametrize("module, name", [
    ("builtins", "eval"), ("torch._utils", "_rebuild_sparse_tensor"), ("torch", "load"),
    ("collections", "deque"), ("torch.storage", "_load_from_bytes"),
    ("fastdiff_jax.interop.torch_state", "read"),
])  # fmt: skip
def test_no_other_name_is_looked_up(tmp_path, module, name):
    refused(tmp_path / "net.pth", zipped(OrderedDict(a=Named(module, name)), {}), f"the name {module}.{name}")


def test_damaged_and_impossible_files_are_refused(tmp_path):
    a, path = np.arange(6, dtype=np.float32), tmp_path / "net.pth"
    good, old = (form(OrderedDict(a=tensor(a, "0")), {"0": a}) for form in (zipped, in_sequence))
    make = lambda changes, held=a: zipped(OrderedDict(a=tensor(a, "0", **changes)), {"0": held})
    for content, words in (
        (make(dict(shape=(7,), strides=(1,))), r"a tensor \(7,\) beyond its storage of 6"),
        (make(dict(offset=1)), "beyond its storage"),
        (make(dict(shape=(10**6, 10**6), strides=(0, 0))), "beyond its storage"),  # would fill the memory
        (make(dict(strides=(-1,))), "something else than a storage"),
        (make({}, a[:5]), "20 bytes for the 6 numbers"),
        (make(dict(shape=(2, 3), strides=(1,))), "cannot be read|can be read"),
        (zipped(OrderedDict(a=tensor(a, "0")), {}), "'0'"),
        (zipped(OrderedDict(a=3), {}), "something else than tensors by name"),
        (zipped(tensor(a, "0"), {"0": a}), "something else than tensors by name"),
        (zipped(OrderedDict(a=tensor(a, "0")), {"0": a}, zipfile.ZIP_DEFLATED), "compressed"),
        (zipped(OrderedDict(a=tensor(a, "0", "QuantStorage")), {"0": a}), "the name torch.QuantStorage"),
        (good.replace(b"little", b"bigbig"), "is no state dict of torch"),
        (good[: len(good) // 2], "is no state dict of torch"),
        *((old[:cut], "is no state dict of torch") for cut in range(0, len(old) - 1, 7)),
        (b"", "is no state dict of torch"),
        (b"not a pickle at all", "is no state dict of torch"),
    ):
        refused(path, content, words)
    refused(tmp_path / "net.safetensors", b"nonsense" * 4, "is no safetensors file")
    with pytest.raises(ValueError, match="no file .*absent.pth' to convert"):
        torch_state.read(tmp_path / "absent.pth")


# --- the converter ---


def converted(folder, *changes, form=zipped):
    trunk, heads = states()
    out = folder / "lpips.safetensors"
    given = {
        "kind": "lpips", "vgg": saved(folder / "vgg16.pth", trunk, form),
        "heads": saved(folder / "heads.pth", heads, form), "out": out,
    } | dict(changes)  # fmt: skip
    return out, convert.main(["convert.py", *(f"--{name}={value}" for name, value in given.items())])


@pytest.mark.parametrize("form", [zipped, in_sequence])
def test_the_converter_makes_one_file_with_its_provenance(tmp_path, capsys, form):
    out, code = converted(tmp_path, form=form)
    content, said = out.read_bytes(), capsys.readouterr().out
    sha256 = hashlib.sha256(content).hexdigest()
    assert code == 0 and sha256 in said and "NOT those of LPIPS 0.1" in said
    params, about = features.read(out, sha256)
    assert about["network"] == {"name": "vgg", "channels": list(CHANNELS)}
    assert about["published_heads"] is False
    for role, name in (("vgg", "vgg16.pth"), ("heads", "heads.pth")):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert about["sources"][role] == {"file": name, "sha256": digest}
    trunk, heads = states()
    template = jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    chex.assert_trees_all_equal_shapes(params["trunk"], template)
    third = trunk["features.5.weight"].transpose(2, 3, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(params["trunk"]["conv2_1"]["kernel"], third)
    head = heads["lin1.model.1.weight"].ravel().astype(np.float32)
    np.testing.assert_array_equal(params["heads"]["relu2_2"], head)
    assert set(params["heads"]) == set(vgg.TAPS)


def test_published_heads_are_known_by_their_sums():
    heads = {tap: np.full(4, total / 4) for tap, total in zip(vgg.TAPS, lpips.PUBLISHED["vgg"])}
    assert lpips.published(heads)
    assert not lpips.published(heads | {"relu5_3": heads["relu5_3"] + 1e-4})


@pytest.mark.parametrize("changes, words", [
    ({"out": "lpips.pth"}, "--out names a file that ends in .safetensors"),
    ({"vgg": "absent.pth"}, "there is no file 'absent.pth' to convert"),
    ({"vgg": ""}, "no --vgg given; usage: python launch/convert.py"),
    ({"kind": "fid"}, "kind"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(tmp_path, capsys, changes, words):
    out, code = converted(tmp_path, *changes.items())
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and words in line and not out.exists()


def test_swapped_files_and_foreign_weights_are_refused():
    trunk, heads = states()
    for pair, words in (
        ((heads, trunk), "the vgg file lacks 26 names"),
        ((trunk, {**heads, "lin5.model.1.weight": np.ones(1)}), "has beyond LPIPS 1 names"),
        ((trunk, heads | {"lin2.model.1.weight": np.ones((1, 9, 1, 1))}), "activations relu3_3 have 3"),
        ((trunk, heads | {"lin0.model.1.weight": -np.ones((1, 2, 1, 1))}), "negative weights"),
        ((trunk | {"features.2.bias": np.full(2, np.nan)}, heads), "features.2.bias is not finite"),
        ((trunk | {"features.5.weight": np.ones((3, 9, 3, 3))}, heads), r"not \(O,2,k,k\)"),
    ):
        with pytest.raises(ValueError, match=words):
            lpips.from_states(*pair)


# --- in SFD's loss ---


def model(apply, **params):
    def called(params, x, c_noise, cond=None, *, dropout=None, taps=()):
        return apply(params, x, taps)

    return Model(Network(lambda key, x, cond=None: params, called), precond.identity())


LINEAR = model(lambda params, x, taps: params["w"] * x, w=jnp.zeros(()))
# A trunk in closed form: its one activation is every 56th pixel of what it is fed.
OBSERVER = model(
    lambda params, x, taps: (x, dict.fromkeys(taps, params["gain"] * x[:, ::56, ::56] + 1.0)), gain=jnp.ones(())
)
WEIGHTS = {"trunk": {"gain": jnp.float32(0.7)}, "heads": {"t": jnp.array([1.0, 2.0, 0.5])}}
LEVELS = {"name": "polynomial", "zero": False, "sigma_min": 0.5, "sigma_max": 20.0}
ASKED = {"weights": "lpips.safetensors", "sha256": "ab" * 32, "variant": "sfd"}


def method_of(request, shape=(4, 4, 3), seen=None, tx=None, **settings):
    models = {"student": LINEAR, "teacher": LINEAR} | ({"lpips": seen} if seen else {})
    parts = Parts(models, {"student": tx or optax.sgd(0.0)}, shape)
    given = dict(schedule=LEVELS, teacher={"name": "euler"}, stamps=4, extra=0, afs=False, lpips=request)
    return sfd.build(given | settings, parts)


def one_step(method, variant=4):
    """(latents, state, metrics) of a student w = 0.4 of a teacher w = 0.9."""
    batch = {"image": jnp.zeros((3, 4, 4, 3))}
    state = method.init(jax.random.key(0), {"teacher": {"w": jnp.float32(0.4)}})
    draws = method.draw(jax.random.key(1), batch, variant)
    frozen = {"teacher": {"w": jnp.float32(0.9)}, "lpips": WEIGHTS}
    return draws["latents"], *method.update(state, frozen, batch, draws, variant)


def test_the_last_step_and_no_other_has_lpips_times_the_values_of_an_image():
    plain, more = one_step(method_of(None))[2], one_step(method_of(ASKED, seen=OBSERVER))[2]
    assert set(more) - set(plain) == {"lpips"} and more["lpips"] > 1e-4
    for k in (1, 2):
        np.testing.assert_array_equal(more[f"loss_{k}"], plain[f"loss_{k}"])
    np.testing.assert_allclose(more["loss_3"] - plain["loss_3"], 48 * more["lpips"], rtol=1e-3)


def test_the_student_follows_the_gradient_of_lpips(x64):
    """One step of SGD from 20 to 0.5, with and without: the difference is the second term's gradient."""
    moved = []
    for request in (None, ASKED):
        z, state, _ = one_step(method_of(request, seen=OBSERVER, tx=optax.sgd(1e-3), stamps=2), 2)
        moved.append(state.params["w"])
    x, ratio = 20 * z, 0.5 / 20
    fed = lambda images: OBSERVER.network.apply(WEIGHTS["trunk"], images, None, taps=("t",))[1]

    def second(w):
        ends = [ratio * x + (1 - ratio) * v * x for v in (w, 0.9)]
        return 48 * perceptual.distance(fed, WEIGHTS["heads"], *ends, "sfd").mean()

    np.testing.assert_allclose(moved[0] - moved[1], 1e-3 * jax.grad(second)(0.4), rtol=1e-3)
    assert abs(moved[0] - moved[1]) > 1e-6


def test_the_report_is_told_what_the_loss_had():
    assert method_of(None).remarks == ("Loss: l1 alone, without LPIPS (lpips=None).",)
    (remark,) = method_of(ASKED, seen=OBSERVER).remarks
    assert "with LPIPS (variant sfd, weights with sha256 abababababab)" in remark


@pytest.mark.parametrize("request_, options, words", [
    ({}, {}, "asked for without weights; convert them by launch/convert.py"),
    (ASKED, dict(seen=None), "asked for without weights"),
    (ASKED | {"variant": "sdf"}, {}, "no LPIPS variant 'sdf'"),
    (ASKED | {"weihgts": ""}, {}, "lpips has no setting weihgts; known: weights, sha256, variant"),
    (ASKED, dict(shape=(4, 4, 1)), r"colour images \(B,H,W,3\); got \(1, 4, 4, 1\)"),
    (ASKED, dict(shape=(2,)), r"colour images"),
    (ASKED | {"variant": "standard"}, dict(seen=Model(small(), precond.identity())), "16x16 or more; got 4x4"),
    ("vgg", {}, "lpips is 'vgg'; give weights, sha256 and variant, or set lpips=None"),
])  # fmt: skip
def test_lpips_that_cannot_be_is_refused_before_training(request_, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        method_of(request_, **{"seen": OBSERVER} | options)
    assert "\n" not in str(caught.value)


# --- through a run's config ---


def run_of(path, sha256="", variant="sfd"):
    config = experiment.load("sfd2_cifar10:smoke")
    config.method.lpips = dict(weights=str(path), sha256=sha256, variant=variant)
    return assemble.assemble(config, outline=True)


def full_size(path):
    """A file of the real sizes, all zeros but for the provenance."""
    template = jax.eval_shape(vgg.build({}, (32, 32, 3), 0).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    trunk = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), template)
    heads = {tap: np.zeros(width, np.float32) for tap, width in zip(vgg.TAPS, vgg.DEFAULTS["channels"])}
    content = features.serialise({"trunk": trunk, "heads": heads}, {"network": {"name": "vgg"}})
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_a_run_takes_the_weights_by_their_hash_and_no_others(tmp_path):
    path = tmp_path / "lpips.safetensors"
    sha256 = full_size(path)
    job = run_of(path, sha256)
    assert set(commands.shipped(job)) == {"lpips"}
    network, x = job.parts.models["lpips"].network, jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    chex.assert_trees_all_equal_shapes(commands.shipped(job)["lpips"]["trunk"], shapes)
    with pytest.raises(ValueError, match=f"asked for sha256 {'0' * 64}, the file has {sha256}"):
        commands.shipped(run_of(path, "0" * 64))
    with pytest.raises(ValueError, match="there are no LPIPS weights"):
        commands.shipped(run_of(tmp_path / "absent.safetensors", sha256))
    with pytest.raises(ValueError, match="asked for without weights"):
        run_of("")
    with pytest.raises(ValueError, match="follows from method.lpips"):
        config = experiment.load("sfd2_cifar10:smoke")
        config.method.lpips, config.models.lpips = dict(weights="x"), {}
        loading.roles(config)


def test_weights_of_another_network_are_refused(tmp_path):
    out, _ = converted(tmp_path)
    with pytest.raises(ValueError, match="of the network .*'channels': .2, 3, 3, 4, 4.*convert the published"):
        commands.shipped(run_of(out, hashlib.sha256(out.read_bytes()).hexdigest()))


def test_the_variant_decides_the_pooling():
    for variant, pooling in (("sfd", "average"), ("standard", "max"), ("cm", "average")):
        config = experiment.load("sfd2_cifar10:smoke")
        config.method.lpips = dict(weights="x", sha256="", variant=variant)
        assert loading.roles(config)["lpips"].network.pooling == pooling
    assert json.dumps(sorted(loading.roles(experiment.load("sfd2_cifar10")))) == '["student", "teacher"]'
