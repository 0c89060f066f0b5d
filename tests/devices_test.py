"""Several devices and several processes give what one device gives; each case is a program of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toy_run import run, toy_method

ROOT = Path(__file__).parents[1]

# Trains in one mesh; moves a half-trained run from mesh to mesh. The rule splits leaves above 1 kB.
EIGHT = """
import json, sys
from pathlib import Path
import jax
from fastdiff_jax.runtime import backend
backend.setup()
import numpy as np
from toy_run import Batches, STEPS, run, toy_method
from fastdiff_jax.runtime import checkpoint, mesh

folder, rules, results = Path(sys.argv[1]), ((r"", mesh.largest(above=1024)),), {}

def summary(outcome, workdir):
    kernel = outcome.state.params["first"]["kernel"]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss": [row["loss"] for row in rows],
        "kernel": np.asarray(kernel).tolist(),
        "shard": kernel.sharding.shard_shape(kernel.shape),
        "moment": outcome.state.opt[0].mu["first"]["kernel"].sharding.shard_shape(kernel.shape),
        "held": mesh.bytes_per_device(outcome.state, jax.tree.map(lambda leaf: leaf.sharding, outcome.state)),
    }

def trained(name, sizes, **options):
    outcome = run(folder / name, sizes=sizes, rules=rules, method=toy_method(width=32), **options)
    return summary(outcome, folder / name)

for name, (data, fsdp) in {"dp": (8, 1), "fsdp": (1, 8), "hybrid": (2, 4)}.items():
    results[name] = trained(name, {"data": data, "fsdp": fsdp})
    (folder / name / "product.json").unlink()

class Stop(Exception):
    pass

def stop(number):
    if number == 9:
        raise Stop

for name, sizes in (("moved", {"data": 1, "fsdp": 8}), ("to_one", {"data": 2, "fsdp": 4})):
    try:
        trained(name, sizes, batches=Batches(hook=stop))
    except Stop:
        pass
results["moved"] = trained("moved", {"data": 4, "fsdp": 2})

try:
    trained("odd", {"data": 8, "fsdp": 1}, batch_size=100)
except ValueError as error:
    results["odd"] = str(error)

generate = toy_method().samplers["one"].generate
frozen = {"anchor": np.zeros((4, 4, 1), np.float32)}
params = toy_method().init(jax.random.key(0), frozen).params
keys = jax.random.split(jax.random.key(1), 16)
together = generate(params, frozen, keys, {})
apart = jax.pmap(generate, in_axes=(None, None, 0, 0))(params, frozen, keys.reshape(8, 2), {})
results["pmap"] = float(np.abs(np.asarray(apart).reshape(together.shape) - together).max())
print(json.dumps(results))
"""

# One process of two with one device each, or the only one; stops at SIGTERM to process 1 if asked.
PROCESS = """
import json, os, signal, sys, time
from pathlib import Path
from fastdiff_jax.runtime import backend
backend.setup()
import jax
import numpy as np
from toy_run import BATCH, Batches, run, toy_method

workdir, terminate = Path(sys.argv[1]), sys.argv[2] == "terminate"

def hook(number):
    if terminate:
        time.sleep(0.1)  # the word goes from process to process while the steps go on
        if number == 4 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

batches = Batches(BATCH, (jax.process_index(), jax.process_count()), hook)
steps = 60 if terminate else 12
outcome = run(workdir, batches=batches, method=toy_method(width=32), steps=steps, config={"toy": 1})
kernel = np.asarray(jax.device_get(outcome.state.params["first"]["kernel"])).tolist()
print(json.dumps({"kernel": kernel, "step": outcome.step, "finished": outcome.finished,
                  "processes": jax.process_count(), "devices": jax.device_count()}))
"""


def start(program: str, *arguments: str, **variables: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results_of(process: subprocess.Popen) -> dict:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def in_two_processes(workdir: Path, what: str = "all") -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    launcher = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    both = [start(PROCESS, str(workdir), what, JAX_PROCESS_ID=str(i), **launcher) for i in range(2)]
    try:
        return [results_of(process) for process in both]
    finally:
        for process in both:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def eight(folder):
    """Results on eight devices."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    return results_of(start(EIGHT, str(folder), XLA_FLAGS=flags))


@pytest.fixture(scope="module")
def one(folder):
    """Results on one device, in this process."""
    outcome = run(folder / "one", method=toy_method(width=32))
    rows = [json.loads(line) for line in (folder / "one/metrics.jsonl").read_text().splitlines()]
    return {"kernel": outcome.state.params["first"]["kernel"], "loss": [row["loss"] for row in rows]}


@pytest.mark.parametrize("name", ["dp", "fsdp", "hybrid", "moved"])
def test_every_mesh_trains_the_same(eight, one, name):
    np.testing.assert_allclose(eight[name]["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(eight[name]["kernel"], one["kernel"], atol=2e-5)


def test_weights_and_moments_are_really_split(eight):
    assert eight["dp"]["shard"] == [16, 32]
    assert eight["fsdp"]["shard"] == eight["fsdp"]["moment"] == [16, 4]
    assert eight["hybrid"]["shard"] == [16, 8]
    assert eight["moved"]["shard"] == [16, 16]
    assert eight["fsdp"]["held"] < eight["hybrid"]["held"] < eight["dp"]["held"]


def test_a_run_of_eight_devices_continues_on_one(eight, one, folder):
    saved = folder / "to_one" / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == ["4", "8"]
    outcome = run(folder / "to_one", method=toy_method(width=32))
    np.testing.assert_allclose(outcome.state.params["first"]["kernel"], one["kernel"], atol=2e-5)


def test_a_batch_that_does_not_divide_is_refused(eight):
    assert eight["odd"] == "batch_size 100 does not divide over 8 devices; use a multiple of 8."


def test_a_sampler_runs_under_pmap_on_eight_devices(eight):
    assert eight["pmap"] < 1e-6


def test_two_processes_train_what_one_trains(folder, one):
    first, second = in_two_processes(folder / "two")
    assert (first["processes"], first["devices"], first["finished"]) == (2, 2, True)
    np.testing.assert_array_equal(first["kernel"], second["kernel"])
    np.testing.assert_allclose(first["kernel"], one["kernel"], atol=2e-5)
    rows = [json.loads(line) for line in (folder / "two/metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["loss"] for row in rows], one["loss"], rtol=1e-5)
    # What two processes have saved, one reads: the weights are finished, so it trains no more.
    alone = results_of(start(PROCESS, str(folder / "two"), "all"))
    assert alone["processes"] == 1
    np.testing.assert_array_equal(alone["kernel"], first["kernel"])


def test_two_processes_stop_together_when_one_is_told_to(folder):
    both = in_two_processes(folder / "told", "terminate")
    assert [outcome["finished"] for outcome in both] == [False, False]
    assert both[0]["step"] == both[1]["step"] < 60
    assert both[0]["kernel"] == both[1]["kernel"]
    assert (folder / "told/checkpoints" / str(both[0]["step"])).is_dir()
