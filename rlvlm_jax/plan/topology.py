# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Slices and nodes by name, facts about their chips, and devices to compile for.

Names are those of the cloud providers: v5p-32 counts cores, two per chip; v5e-16 and v6e-64 count
chips; 8xH200 counts GPUs, eight per node.
"""

import importlib.util
import math
import re
from typing import Any, NamedTuple

from rlvlm_jax.errors import InputError

GIB = 2**30
GPUS_OF_NODE = 8
CHIPS_OF_HOST = {"v5e": 8, "v5p": 4, "v6e": 8}  # the most per host


class Chip(NamedTuple):
    """Peak rates of one chip; every device here is one chip.

    Attributes:
        flops: peak bfloat16 FLOP/s.
        memory: bytes that a program may use.
        bandwidth: bytes/s between memory and chip.
        link: bytes/s that a chip sends within its slice or node, while it receives as much.
        network: bytes/s that a chip sends between nodes.
        dollars: per chip-hour, on demand; list prices change, see `SOURCES`.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    dollars: float


class Topology(NamedTuple):
    """A TPU slice, or GPU nodes."""

    name: str
    kind: str  # key of CHIPS
    chips: int
    shape: str  # the compiler's name for it

    @property
    def chip(self) -> Chip:
        """Facts about its chips."""
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        """Whether these are TPUs."""
        return self.kind in TPU_SHAPES

    @property
    def nodes(self) -> int:
        """Parts that only a network connects."""
        return 1 if self.is_tpu else math.ceil(self.chips / GPUS_OF_NODE)

    @property
    def hosts(self) -> int:
        """The least number of hosts for these chips; each host runs one process."""
        return math.ceil(self.chips / CHIPS_OF_HOST.get(self.kind, GPUS_OF_NODE))


SOURCES = (
    "rates: cloud.google.com/tpu/docs (half of the bidirectional interconnect), NVIDIA data sheets "
    "(dense bfloat16, one direction of NVLink, 400 Gb/s network per GPU, A100 200); prices: lists "
    "of Google Cloud (TPUs, us regions) and AWS (p5en, p5, p4de) as of 2025, not checked since; "
    "--price sets another"
)
# TPU memory is what the compiler allows; GPU memory is what the driver leaves.
CHIPS = {
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 3e9, 1.20),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 6e9, 4.20),
    "v6e": Chip(918e12, 31.25 * GIB, 1640e9, 400e9, 6e9, 2.70),
    "H200": Chip(989e12, 139.0 * GIB, 4800e9, 450e9, 50e9, 7.91),
    "H100": Chip(989e12, 79.0 * GIB, 3352e9, 450e9, 50e9, 6.88),
    "A100": Chip(312e12, 79.0 * GIB, 2039e9, 300e9, 25e9, 3.43),
}
_FLAT = {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
TPU_SHAPES = {  # kind -> number in the name -> shape
    "v5e": _FLAT,
    "v5p": {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
    "v6e": _FLAT,
}
NAMES = (
    *(f"{kind}-{number}" for kind, shapes in TPU_SHAPES.items() for number in shapes),
    *("1xH200", "8xH200", "16xH200", "1xH100", "8xH100", "16xH100", "1xA100", "8xA100"),
)

# Facts about GPUs that the compiler needs, in the format of its GpuTargetConfigProto. Source:
# NVIDIA's data sheets and CUDA's device properties, as in openxla/xla, target_config/specs.
_GPU_FACTS = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: {units} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER = {
    "shared": 233472,
    "cores": 132,
    "units": 128,
    "cache": 52428800,
    "clock": 1.98,
    "optin": 232448,
    "major": 9,
}
_GPUS = {
    "H200": _HOPPER
    | {"bandwidth": 4800000000000, "memory": 151397597184, "name": "NVIDIA H200 141GB HBM3e"},
    "H100": _HOPPER
    | {"bandwidth": 3352320000000, "memory": 84942979072, "name": "NVIDIA H100 80GB HBM3"},
    "A100": {
        "shared": 167936,
        "cores": 108,
        "units": 64,
        "cache": 41943040,
        "clock": 1.41,
        "optin": 166912,
        "major": 8,
        "bandwidth": 2039040000000,
        "memory": 85100068864,
        "name": "NVIDIA A100-SXM4-80GB",
    },
}


def parse(name: str) -> Topology:
    """Returns the topology with this name.

    Raises:
        InputError: the name is unknown; the message lists the known names.
    """
    tpu, gpu = re.fullmatch(r"(\w+)-(\d+)", name), re.fullmatch(r"(\d+)x(\w+)", name)
    if tpu and int(tpu[2]) in TPU_SHAPES.get(tpu[1], ()):
        shape = TPU_SHAPES[tpu[1]][int(tpu[2])]
        chips = math.prod(map(int, shape.split("x")))
        return Topology(name, tpu[1], chips, f"{tpu[1]}:{shape}")
    if gpu and gpu[2] in _GPUS:
        chips = int(gpu[1])
        if 0 < chips <= GPUS_OF_NODE:
            return Topology(name, gpu[2], chips, f"1x1x{chips}")
        if chips and chips % GPUS_OF_NODE == 0:
            return Topology(name, gpu[2], chips, f"1x{chips // GPUS_OF_NODE}x{GPUS_OF_NODE}")
    raise InputError(
        f"--topology={name!r} is not known; use one of {', '.join(NAMES)} "
        "(GPUs: 1 to 8, or a multiple of 8)"
    )


def devices(topology: Topology) -> list[Any]:
    """Returns devices to compile for; they cannot run anything.

    Raises:
        InputError: their compiler is not installed.
    """
    from jax.experimental import topologies

    if topology.is_tpu:
        needed, packages = "libtpu", "libtpu"
    else:
        needed, packages = "jax_plugins.xla_cuda13", "jax-cuda13-plugin jax-cuda13-pjrt"
    try:
        spec = importlib.util.find_spec(needed)
    except ModuleNotFoundError:  # its parent package is missing
        spec = None
    if spec is None:
        raise InputError(
            f"--topology={topology.name} needs a compiler that is not installed; run pip install "
            f"--no-deps {packages} in the versions that match jax"
        )
    if topology.is_tpu:
        made = topologies.get_topology_desc(platform="tpu", topology_name=topology.shape)
    else:
        facts = _GPU_FACTS.format(**_GPUS[topology.kind])
        made = topologies.get_topology_desc(
            platform="cuda", target_config=facts, topology=topology.shape
        )
    return list(made.devices)
