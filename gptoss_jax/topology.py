"""Accelerators that are not here: a mesh for their compilers, without a device.

`jax.jit(f).lower(<shapes placed on such a mesh>).compile()` runs the real TPU or GPU compiler. TPU
names need libtpu, GPU names JAX's CUDA plugin; neither needs hardware or a driver. What is compiled
so can be inspected (`memory_analysis`, `as_text`), not run.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptoss_jax.errors import UserError


class NoCompilerError(UserError):
    """The accelerator's compiler is not installed."""


# GpuTargetConfigProto fields of the devices known here, as OpenXLA publishes them:
# xla/backends/gpu/target_config/specs (h100_sxm, h200, a100_sxm_80).
_GPUS = {
    "h100": {
        "capability": "major: 9 minor: 0",
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "memory_bandwidth": 3_352_320_000_000,
        "device_memory_size": 84_942_979_072,
        "l2_cache_size": 52_428_800,
        "shared_memory_per_block_optin": 232_448,
        "shared_memory_per_core": 233_472,
        "description": "NVIDIA H100 80GB HBM3",
    },
    "h200": {
        "capability": "major: 9 minor: 0",
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "memory_bandwidth": 4_800_000_000_000,
        "device_memory_size": 151_397_597_184,
        "l2_cache_size": 52_428_800,
        "shared_memory_per_block_optin": 232_448,
        "shared_memory_per_core": 233_472,
        "description": "NVIDIA H200 141GB HBM3e",
    },
    "a100-80": {
        "capability": "major: 8 minor: 0",
        "core_count": 108,
        "fpus_per_core": 64,
        "clock_rate_ghz": 1.41,
        "memory_bandwidth": 2_039_040_000_000,
        "device_memory_size": 85_100_068_864,
        "l2_cache_size": 41_943_040,
        "shared_memory_per_block_optin": 166_912,
        "shared_memory_per_core": 167_936,
        "description": "NVIDIA A100-SXM4-80GB",
    },
}
# Packages with a platform's compiler in them, of which one is enough; the extra `compile` has both.
_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_memory_per_block_optin}
  shared_memory_per_core: {shared_memory_per_core}
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  core_count: {core_count} fpus_per_core: {fpus_per_core}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {memory_bandwidth} l2_cache_size: {l2_cache_size}
  clock_rate_ghz: {clock_rate_ghz} device_memory_size: {device_memory_size}
  cuda_compute_capability {{ {capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{description}"
"""


def mesh_of(name: str, num_devices: int = 1) -> Mesh:
    """A mesh of the first devices of a topology, one axis "data".

    Args:
      name: a TPU slice ("v5e:1x1", "v6e:2x2", "v5p:1x1x1", "tpu7x:1x1x1") or GPUs ("h100:1",
        "h200:1", "a100-80:1").
      num_devices: how many of its devices.

    Raises:
      NoCompilerError: its compiler is not installed.
      UserError: the compiler knows no such topology, or it has fewer devices.
    """
    devices = devices_of(name)
    if len(devices) < num_devices:
        raise UserError(f"{name} has {len(devices)} devices, not {num_devices}")
    return jax.make_mesh((num_devices,), ("data",), devices=devices[:num_devices])


def devices_of(name: str):
    """The devices of a topology; raises as `mesh_of` does."""
    kind, _, shape = name.partition(":")
    on_gpu = kind in _GPUS
    packages = _PACKAGES["gpu" if on_gpu else "tpu"]
    if not any(importlib.util.find_spec(package) for package in packages):
        raise NoCompilerError(f"no compiler for {name}; pip install '.[compile]'")
    try:
        topology = _gpu(kind, shape) if on_gpu else _tpu(name, shape)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {name!r} is none that its compiler knows ({reason})") from None
    return topology.devices


def _gpu(kind: str, shape: str):
    target = _GPU_TARGET.format(**_GPUS[kind])
    return topologies.get_topology_desc(
        "", "cuda", target_config=target, topology=f"1x1x{int(shape)}"
    )


def _tpu(name: str, shape: str):
    # Asks no metadata server which slice this machine belongs to: it belongs to none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # libtpu's lock guards a device; there is none.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A host of one chip, which libtpu 0.0.42 does not take for granted.
    single = set(shape.split("x")) == {"1"}
    bounds = {"chips_per_host_bounds": [1, 1, 1]} if single else {}
    return topologies.get_topology_desc(name, "tpu", **bounds)


def on_mesh(tree, mesh: Mesh):
    """The shapes of a tree of arrays or shapes, replicated on a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
