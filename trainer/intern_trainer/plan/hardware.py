"""What a plan knows of devices and of how they are joined. Bytes and FLOPs a second, each with its source.

A ceiling is what well-written kernels reach, not what a data sheet says. Those of the H100 were measured; of the other
devices the same shares of their data sheets are taken, unless said otherwise.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from intern_trainer.errors import ConfigError
from intern_trainer.observe.mfu import peak_flops

MATMUL_CEILING = 798 / 989
"""Of the peak: a bf16 product of 8192^3 on an H100 ran at 798 TFLOP/s."""
MEMORY_CEILING = 3.0 / 3.35
"""Of the data sheet's bandwidth: a copy on an H100 moved 3.0 TB/s, reading and writing."""
LINK_CEILING = 0.75
"""Of a link's line rate, what NCCL's large collectives move over it: 340 of NVLink's 450 GB/s, 300 of 400 GB/s of eight
NICs."""

PINNED_COPY = 20e9
"""Bytes a second from a device to pinned host memory: PCIe 4 x16, 32 GB/s by its line rate. Not measured."""

PLAIN_CORE = 50e9
"""FLOP/s of one CPU core in fp32 products: 16 lanes at about 3 GHz, where products reach their peak. An order of
magnitude, to compare recipes with."""


@dataclass(frozen=True)
class Device:
    """One accelerator, and its share of the links.

    Attributes:
        memory: bytes that a process may use. bandwidth: of its memory, by the data sheet.
        link: to the other devices of its node, in one direction. nic: of its node's network, its share.
        context: bytes that the driver, the libraries and the communicator hold beside PyTorch's tensors.
    """

    name: str
    memory: float
    bandwidth: float
    link: float
    nic: float
    context: float
    cores: int = 0

    def peak(self, precision: str) -> float:
        """Dense FLOP/s by the data sheet, the denominator of MFU."""
        if self.cores:
            return self.cores * PLAIN_CORE
        known = peak_flops(self.name, precision) or peak_flops(self.name, "bf16")
        assert known is not None, f"{self.name} is in the table of devices and not in that of peaks"
        return known

    def product_rate(self, precision: str) -> float:
        """FLOP/s that matrix products reach."""
        return self.peak(precision) * (1.0 if self.cores else MATMUL_CEILING)

    @property
    def copy_rate(self) -> float:
        """Bytes a second that element-wise work reads and writes."""
        return self.bandwidth * (1.0 if self.cores else MEMORY_CEILING)


GIB = 2**30
_NVIDIA = 2.5e9
"""CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers on an H100 (reference cost model: `CUDA/NCCL 2.5 GB`)."""

DEVICES = {
    # memory as torch reports it; HBM3 3.35 TB/s; NVLink 4, 450 GB/s a direction; one 400 Gb/s NIC a GPU (NVIDIA's DGX
    # H100 data sheet)
    "H100": Device("H100", 79.1 * GIB, 3.35e12, 450e9, 50e9, _NVIDIA),
    # the same chip; 141 GB of HBM3e, 4.8 TB/s (NVIDIA H200 data sheet)
    "H200": Device("H200", 139.8 * GIB, 4.8e12, 450e9, 50e9, _NVIDIA),
    # the SXM form with 80 GB, HBM2e 2.04 TB/s; NVLink 3, 300 GB/s; 200 Gb/s a GPU (DGX A100 data sheet)
    "A100": Device("A100", 79.1 * GIB, 2.039e12, 300e9, 25e9, _NVIDIA),
    # 48 GB of GDDR6, 864 GB/s; PCIe 4 x16, no NVLink; two GPUs share a 200 Gb/s NIC (NVIDIA L40S data sheet and its
    # OVX reference server)
    "L40S": Device("L40S", 44.5 * GIB, 0.864e12, 32e9, 12.5e9, _NVIDIA),
    # HGX B200: 180 GB of HBM3e at 7.7 TB/s; NVLink 5, 900 GB/s; 400 Gb/s a GPU (NVIDIA's DGX B200 data sheet)
    "B200": Device("B200", 178.0 * GIB, 7.7e12, 900e9, 50e9, _NVIDIA),
}


@dataclass(frozen=True)
class Cluster:
    """So many devices in nodes, and what is assumed of them.

    Attributes:
        efficiency: of the roofline's speed, what a step reaches: kernels below their ceilings, launches, jitter.
        overlap: share of the computation during which communication may hide behind it.
        mtbf_hours: mean time between failures of one device, its share of the node included.
        disk: bytes a second that one node writes (and reads) of a checkpoint.
        host: bytes of a node's own memory (DGX H100's data sheet: 2 TB).
        restart_seconds: from a failure to the first step, reading the checkpoint aside.
        reserve: share of the memory that is left free: fragmentation, and what is not foreseen.
    """

    device: Device
    devices: int
    per_node: int
    efficiency: float = 0.75
    overlap: float = 0.8
    mtbf_hours: float = 50_000.0
    disk: float = 2e9
    host: float = 2e12
    restart_seconds: float = 300.0
    reserve: float = 0.07

    @property
    def nodes(self) -> int:
        return -(-self.devices // self.per_node)

    @property
    def budget(self) -> float:
        """Bytes a plan may fill on a device."""
        return self.device.memory * (1 - self.reserve)

    @property
    def ranks_of_a_node(self) -> int:
        return self.devices if self.device.cores else min(self.per_node, self.devices)

    @property
    def node_memory(self) -> float:
        """Bytes of host memory; that of CPU devices, which all are of this machine, is what they compute in."""
        return self.device.memory * self.devices if self.device.cores else self.host

    @property
    def to_host(self) -> float:
        """Bytes a second that a rank copies to host memory."""
        return self.device.bandwidth / 2 if self.device.cores else PINNED_COPY

    def bandwidth(self, ranks: int) -> float:
        """Bytes a second on the wire of each rank in a collective of `ranks` neighbours: over nodes a ring uses all
        NICs of a node, one for each of its devices."""
        inside = self.device.link
        if ranks > self.per_node:
            return LINK_CEILING * min(inside, self.device.nic * min(self.per_node, self.devices))
        return LINK_CEILING * inside

    def between(self, distance: int) -> float:
        """Bytes a second from a rank to the one that is `distance` ranks away."""
        device = self.device
        return LINK_CEILING * (device.link if distance < self.per_node else min(device.link, device.nic))


def cpu(ranks: int) -> Device:
    """This machine's share of one of `ranks` processes. Memory bandwidth is that of one channel of DDR4, shared."""
    cores = max(1, (os.cpu_count() or 1) // ranks)
    return Device("cpu", psutil.virtual_memory().total / ranks, 20e9 / ranks, 5e9, 5e9, 0.0, cores)


def find_device(name: str, ranks: int) -> Device:
    """The device `name`, whatever its capitals; `cpu` is this machine, shared by `ranks` processes.

    Raises:
        ConfigError: no such device is known.
    """
    if name.lower() == "cpu":
        return cpu(ranks)
    if name.upper() not in DEVICES:
        raise ConfigError(f"--gpu {name}", "the table holds these devices", f"one of {', '.join([*DEVICES, 'cpu'])}")
    return DEVICES[name.upper()]
