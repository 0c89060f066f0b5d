"""What comes before the first jax computation: XLA flags, compilation cache, other processes."""

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jaxlib

# The empty list turns the YNNPACK convolution fusion off, back to Eigen: convolutions of few channels
# run about twice as fast on the CPU (243 against 138 GFLOP/s forward at 64 channels, 187 against 81 in
# the gradient). An unknown flag aborts the process, hence the version. Not with several host devices: with
# two, sampled images came out wrong in some rows (jaxlib 0.10.2), while with one they are right.
_FLAG, _VALUE, _KNOWN_TO = "--xla_cpu_experimental_ynn_fusion_type", "", (0, 10)


def setup() -> None:
    """Prepares jax for this process; calling it again changes nothing.

    What the user has set in the environment stays: XLA_FLAGS, JAX_COMPILATION_CACHE_DIR and the
    JAX_PERSISTENT_CACHE_* thresholds, JAX_PLATFORMS.
    """
    flags = xla_flags(os.environ, tuple(jaxlib.version.__version_info__[:2]), cpu_only())
    if flags is not None:
        os.environ["XLA_FLAGS"] = flags
    _cache()
    if (settings := launched(os.environ)) is not None and not jax.distributed.is_initialized():
        if cpu_only() and "JAX_CPU_COLLECTIVES_IMPLEMENTATION" not in os.environ:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**settings)


def xla_flags(environment: Mapping[str, str], version: tuple[int, int], cpu: bool) -> str | None:
    """The XLA_FLAGS to set, or None to leave them: not one CPU device, another jaxlib, or the user has decided.

    FASTDIFF_PLAIN_XLA=1 keeps XLA's own default, for a comparison.
    """
    present = environment.get("XLA_FLAGS", "")
    plain = environment.get("FASTDIFF_PLAIN_XLA")
    devices = re.findall(r"--xla_force_host_platform_device_count=(\d+)", present)
    devices += [environment["JAX_NUM_CPU_DEVICES"]] if environment.get("JAX_NUM_CPU_DEVICES") else []
    several = any(int(count) > 1 for count in devices)
    if plain or not cpu or several or version != _KNOWN_TO or _FLAG in present:
        return None
    return f"{present} {_FLAG}={_VALUE}".strip()


def cpu_only() -> bool:
    """Whether jax will run on the CPU: asked for, or without an accelerator plugin. Starts nothing."""
    asked = jax.config.jax_platforms
    if asked:
        return asked == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def launched(environment: Mapping[str, str]) -> dict | None:
    """Arguments of `jax.distributed.initialize` if a launcher has started several processes, or None.

    Seen are JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID where jax cannot find
    them out), Slurm steps and Open MPI jobs of several tasks, and TPU slices of several hosts.
    """
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        return {key: int(environment[name]) for key, name in names.items() if environment.get(name)}
    slurm = int(environment.get("SLURM_NTASKS", 1)) if "SLURM_STEP_NODELIST" in environment else 1
    mpi = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    slices = "MEGASCALE_COORDINATOR_ADDRESS" in environment
    return {} if slices or max(slurm, mpi, len(hosts.split(","))) > 1 else None


def _cache() -> None:
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = home / "fastdiff_jax" / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home costs compile time, nothing else
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # Small programs as well: a run compiles dozens, and reading one back takes a tenth of compiling it.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
