"""FID's Inception: the file's names, resize protocols, its use as a feature net, and a torch twin."""

import hashlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fastdiff_jax import registry
from fastdiff_jax.interop import inception
from fastdiff_jax.metrics import features, resizing
from replays import metrics_inception
from weight_rule import state

SHAPES = inception.shapes()
SIZES = [(32, 299), (40, 17), (7, 7), (5, 11)]


def zeros(**changed):
    """The smallest state that is no division by zero: every feature is zero."""
    made = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return made | {name: value + 1 for name, value in made.items() if name.endswith("running_var")} | changed


# The file.


def test_has_the_published_numbers():
    assert sum(int(np.prod(shape)) for shape in SHAPES.values()) == 23_885_392
    units = [name for name in SHAPES if name.endswith("conv.weight")]
    assert len(units) == 94 and len(SHAPES) == 5 * 94 + 2
    assert SHAPES["fc.weight"] == (1008, 2048)
    assert SHAPES["Mixed_6c.branch7x7dbl_5.conv.weight"] == (192, 160, 1, 7)
    assert SHAPES["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)


def test_the_replay_knows_every_layer_of_the_trunk():
    assert metrics_inception.trunk_shape("features.0.weight") == (64, 3, 3, 3)
    assert metrics_inception.trunk_shape("features.17.weight") == (512, 256, 3, 3)
    assert metrics_inception.trunk_shape("features.28.bias") == (512,)
    assert metrics_inception.trunk_shape("lin2.model.1.weight") == (1, 256, 1, 1)


def test_kernels_turn_and_counters_are_left_out():
    kernel = np.arange(32 * 3 * 9, dtype=np.float32).reshape(32, 3, 3, 3)
    counter = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}
    params = inception.from_state(zeros(**{"Conv2d_1a_3x3.conv.weight": kernel}) | counter)
    np.testing.assert_array_equal(params["Conv2d_1a_3x3"]["kernel"], kernel.transpose(2, 3, 1, 0))
    chex.assert_shape(params["kernel"], (2048, 1008))
    assert params["Mixed_5b"]["branch_pool"]["var"].min() == 1


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("fc.bias"), r"lacks 1 names \(fc.bias\)"),
        (lambda s: s.update({"AuxLogits.fc.bias": np.zeros(3)}), r"beyond it 1 names \(AuxLogits"),
        (lambda s: s.update({"fc.bias": np.zeros(1000, np.float32)}), r"\(1000,\), FID's .*\(1008,\)"),
        (lambda s: s.update({"fc.bias": np.full(1008, np.nan)}), "fc.bias is not finite"),
    ],
)
def test_other_files_are_refused(change, words):
    given = zeros()
    change(given)
    with pytest.raises(ValueError, match=words):
        inception.from_state(given)


# Resizing.


@pytest.mark.parametrize("source, target", SIZES)
@pytest.mark.parametrize("name", ["half_pixel", "corner", "bicubic", "triangle"])
def test_weights_are_averages_and_keep_what_fits(name, source, target):
    weights = getattr(resizing, name)(source, target)
    chex.assert_shape(weights, (target, source))
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    if source == target:
        np.testing.assert_allclose(weights, np.eye(source), atol=1e-12)


def test_places_of_the_two_bilinear_protocols():
    ramp = np.arange(10.0)
    np.testing.assert_allclose(resizing.corner(10, 30) @ ramp, np.minimum(np.arange(30) / 3, 9), atol=1e-12)
    centres = np.clip((np.arange(30) + 0.5) / 3 - 0.5, 0, 9)
    np.testing.assert_allclose(resizing.half_pixel(10, 30) @ ramp, centres, atol=1e-12)
    assert np.count_nonzero(resizing.corner(100, 10), axis=1).max() == 1  # no antialias
    assert np.count_nonzero(resizing.triangle(100, 10), axis=1).min() > 9


@pytest.mark.parametrize("protocol, white", [("fid", 1), ("tf1", 127 / 128), ("clean", 127 / 128)])
def test_scales_of_the_protocols(protocol, white):
    images = jnp.stack([jnp.zeros((8, 8, 1)), jnp.full((8, 8, 1), 255.0)])
    made = resizing.network_input(images, protocol)
    chex.assert_shape(made, (2, 299, 299, 3))
    np.testing.assert_allclose(made[0], -1, atol=1e-6)
    np.testing.assert_allclose(made[1], white, atol=1e-6)


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(ValueError, match="no resize protocol 'tf2'; known: fid, tf1, clean"):
        resizing.network_input(jnp.zeros((1, 8, 8, 3)), "tf2")
    with pytest.raises(ValueError, match=r"as grey; got the shape \(1, 8, 8, 2\)"):
        resizing.network_input(jnp.zeros((1, 8, 8, 2)), "fid")
    network = registry.load("networks", "inception")({}, (299, 299, 3), 0)
    with pytest.raises(ValueError, match="of 75x75 or more"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


# As a feature net.


def request(path, **changed):
    return {"name": "inception", "weights": str(path), **changed}


@pytest.mark.parametrize(
    "asked, shape, words",
    [
        (request("none.pth"), (8, 8, 3), "no Inception weights 'none.pth'; name pytorch-fid's"),
        (request("none.pth", protocol="tf2"), (8, 8, 3), "no protocol 'tf2'; known: fid"),
        (request("none.pth", size=3), (8, 8, 3), "no setting size; known: weights, protocol"),
        (request("none.pth"), (2,), r"take images .*has \(2,\)"),
        (request(__file__, sha256="abc"), (8, 8, 1), "asked for sha256 abc, the file has"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(asked, shape, words):
    with pytest.raises(ValueError, match=words):
        features.build(asked, shape)


@pytest.mark.slow
def test_weights_by_file_make_a_feature_net(tmp_path):
    """2048 features of stored images, by every device; weights that are not the published ones say so."""
    content = safetensors.numpy.save(zeros(**{"fc.bias": np.ones(1008, np.float32)}))
    (tmp_path / "i.safetensors").write_bytes(content)
    net = features.build(request(tmp_path / "i.safetensors", protocol="fid"), (8, 8, 1))
    assert (net.dim, net.sha256, net.judges) == (2048, hashlib.sha256(content).hexdigest(), False)
    assert features.identity(net)["resize"] == "fid" and "unknown weights" in net.name
    batches = features.stream(net, None, batch_size=2)
    stored = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    found = list(batches(stored))
    assert [batch["features"].shape for batch in found] == [(2, 2048), (1, 2048)]
    assert not any(batch["features"].any() or batch["logits"].any() for batch in found)  # without bias
    with pytest.raises(ValueError, match="stored images, uint8; got float64"):
        next(batches(stored / 255))


# The torch twin.


class Pools:
    """torch's functions with the pools of FID's graph: averages of what is inside, and a maximum at the end."""

    def __init__(self, functional):
        self.functional, self.last = functional, False

    def __getattr__(self, name):
        return getattr(self.functional, name)

    def avg_pool2d(self, x, kernel_size, stride, padding):
        if self.last:
            return self.functional.max_pool2d(x, kernel_size, stride=stride, padding=padding)
        return self.functional.avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)


@pytest.mark.slow
def test_equals_the_torch_twin(monkeypatch):
    """Features and logits to 1e-4 of the largest, on shared weights with non-trivial batch statistics."""
    blocks = pytest.importorskip("torchvision").models.inception
    import torch

    weights, pools, taken = state(SHAPES, 7), Pools(blocks.F), {}
    monkeypatch.setattr(blocks, "F", pools)
    net = blocks.Inception3(1008, aux_logits=False, transform_input=False, init_weights=False).eval()
    counters = {name: value for name, value in net.state_dict().items() if name.endswith("batches_tracked")}
    net.load_state_dict({name: torch.tensor(value) for name, value in weights.items()} | counters)
    net.Mixed_7c.register_forward_pre_hook(lambda *given: setattr(pools, "last", True))
    net.avgpool.register_forward_hook(lambda module, given, made: taken.update(pool=made.flatten(1).numpy()))
    inputs = np.random.default_rng(0).uniform(-1, 1, (2, 299, 299, 3)).astype(np.float32)
    with torch.no_grad():
        taken["logits"] = net(torch.tensor(inputs.transpose(0, 3, 1, 2))).numpy()
    network = registry.load("networks", "inception")({}, (299, 299, 3), 0)
    params = inception.from_state(weights)
    logits, taps = jax.jit(network.apply, static_argnames="taps")(params, inputs, jnp.zeros(2), taps=("pool",))
    for name, ours in {"pool": taps["pool"], "logits": logits}.items():
        error, largest = np.abs(ours - taken[name]).max(), np.abs(taken[name]).max()
        print(f"{name}: {error:.2e} of {largest:.3f}")
        assert error < 1e-4 * largest
