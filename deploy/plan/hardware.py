"""What devices and links can do: a table from public data sheets, which a file can lay over. No torch."""

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator with its share of the machine: what it has, and which part of that a run gets out of it.

    The shares and waits below are round assumptions, the same for all GPUs; ``d2v tune --calibrate`` measures them.
    """

    tflops: float
    """Dense bf16 matrix products, 1e12 FLOP/s at their peak."""
    fp32_tflops: float
    """The same in fp32, without TF32, which runs leave off."""
    memory_gb: float
    """1e9 bytes."""
    memory_gb_per_s: float
    """Bandwidth of that memory."""
    link_gb_per_s: float
    """To all others of the machine together, in one direction."""
    network_gbit_per_s: float
    """Network of one device's share of the machine."""
    host_gb_per_s: float
    """To the host's memory, in one direction."""
    host_memory_gb: float = 1_000
    """Memory of one machine beside its devices', 1e9 bytes: for what ``parallel.offload`` moves there."""
    matmul_share: float = 0.6
    """Of ``tflops`` that matrix products of training reach."""
    memory_share: float = 0.8
    """Of ``memory_gb_per_s`` that elementwise operators reach."""
    link_share: float = 0.8
    """Of both links' bandwidth that large collectives reach."""
    usable_share: float = 0.92
    """Of both memories; the rest is for contexts, workspaces and fragments, on the host for processes and loaders."""
    link_wait: float = 15e-6
    """Seconds before a collective inside a machine moves data."""
    network_wait: float = 40e-6
    """The same between machines."""
    block_wait: float = 0.2e-3
    """Seconds of every block's forward and backward pass that are not arithmetic or memory traffic."""
    hook_wait: float = 0.3e-3
    """What stage 3's fetching and freeing of weights adds to every block."""
    microbatch_wait: float = 2e-3
    """The same of the other parts of a microbatch."""
    step_wait: float = 10e-3
    """The same of every step."""
    is_cpu: bool = False
    """Whether a device is a share of the machine's processors, which have kernels of their own."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is bool:
                if not isinstance(value, bool):
                    raise RunError(f"hardware: {field.name}: must be true or false, got {value}")
                continue
            waits = field.name.endswith("_wait")
            if not (isinstance(value, int | float) and (value >= 0 if waits else value > 0) and value < float("inf")):
                raise RunError(
                    f"hardware: {field.name}: must be a number {'from' if waits else 'above'} 0, got {value}"
                )
            if field.name.endswith("_share") and value > 1:
                raise RunError(f"hardware: {field.name}: is a share, at most 1, got {value}")

    def peak(self, dtype: str) -> float:
        """FLOP/s in a precision."""
        return 1e12 * (self.tflops if dtype == "bf16" else self.fp32_tflops)


# NVIDIA A100 Tensor Core GPU data sheet (SXM): bf16 312, fp32 19.5, HBM 1,555 and
# 2,039 GB/s, NVLink 600 GB/s both ways, PCIe 4 x16; DGX A100 has one HDR port (200 Gb/s) per GPU,
# 1 TB of system memory with 8 GPUs of 40 GB and 2 TB with 8 of 80 GB.
_A100 = Device(
    tflops=312,
    fp32_tflops=19.5,
    memory_gb=40,
    memory_gb_per_s=1_555,
    link_gb_per_s=300,
    network_gbit_per_s=200,
    host_gb_per_s=25,
)
# NVIDIA H100 data sheet (SXM): bf16 989 dense, fp32 67, HBM3 3.35 TB/s, NVLink 900 GB/s both ways,
# PCIe 5 x16; DGX H100 has one NDR port (400 Gb/s) per GPU, 2 TB of system memory.
_H100 = Device(
    tflops=989,
    fp32_tflops=67,
    memory_gb=80,
    memory_gb_per_s=3_350,
    link_gb_per_s=450,
    network_gbit_per_s=400,
    host_gb_per_s=50,
    host_memory_gb=2_000,
)
DEVICES = {
    "A100-40": _A100,
    "A100-80": dataclasses.replace(_A100, memory_gb=80, memory_gb_per_s=2_039, host_memory_gb=2_000),
    "H100": _H100,
    # NVIDIA H200 data sheet (SXM): as H100 with 141 GB of HBM3e at 4.8 TB/s.
    "H200": dataclasses.replace(_H100, memory_gb=141, memory_gb_per_s=4_800),
    # NVIDIA DGX B200 data sheet, one of 8 GPUs: bf16 2,250 dense, fp32 75, 1,440 GB and 64 TB/s of HBM3e in
    # all, NVLink 14.4 TB/s both ways in all, one port of 400 Gb/s per GPU.
    "B200": Device(
        tflops=2_250,
        fp32_tflops=75,
        memory_gb=180,
        memory_gb_per_s=8_000,
        link_gb_per_s=900,
        network_gbit_per_s=400,
        host_gb_per_s=50,
        host_memory_gb=2_000,  # as of the others: machines differ
    ),
    # AMD Instinct MI300X data sheet: bf16 1,307 dense, fp32 matrix 163, 192 GB of HBM3 at 5.3 TB/s, seven
    # Infinity Fabric links of 128 GB/s both ways, PCIe 5 x16; 400 Gb/s each.
    "MI300X": Device(
        tflops=1_307,
        fp32_tflops=163,
        memory_gb=192,
        memory_gb_per_s=5_300,
        link_gb_per_s=448,
        network_gbit_per_s=400,
        host_gb_per_s=50,
        host_memory_gb=2_000,  # as of the others: machines differ
        matmul_share=0.45,
    ),
    # One thread of the 2 x86 cores (AMD EPYC, AVX-512) that this package was developed on: matrix products (207 and 87
    # GFLOP/s at a width of 768) and GELU (8 to 16 GB/s) as measured on 2026-11-25; links (gloo over loopback) and waits
    # are guesses.
    "cpu": Device(
        tflops=0.2,
        fp32_tflops=0.1,
        memory_gb=10,
        memory_gb_per_s=10,
        link_gb_per_s=1,
        network_gbit_per_s=8,
        host_gb_per_s=10,
        usable_share=1.0,
        link_wait=1e-3,
        network_wait=1e-3,
        block_wait=0.5e-3,
        hook_wait=1e-3,
        microbatch_wait=3e-3,
        step_wait=5e-3,
        is_cpu=True,
    ),
}


@dataclass(frozen=True)
class Cluster:
    """Equal machines of equal devices."""

    num_nodes: int
    per_node: int
    """Devices of a machine."""
    name: str
    """Of the device."""
    device: Device

    @property
    def size(self) -> int:
        """Devices of all machines."""
        return self.num_nodes * self.per_node

    def __str__(self) -> str:
        return f"{self.num_nodes}x{self.per_node}x{self.name}"


def read_cluster(text: str, devices: dict[str, Device]) -> Cluster:
    """``4x8xH200``: machines, devices each, and which; the first number may be left out if it is 1.

    Raises:
        RunError: if it is something else.
    """
    match = re.fullmatch(r"(?:(\d{1,5})x)?(\d{1,3})x([A-Za-z][\w-]*)", text)
    if match is None or 0 in (int(match[1] or 1), int(match[2])):
        raise RunError(f"--cluster: {text!r} is not NODESxDEVICESxNAME, such as 4x8xH200 or 2xcpu")
    known = {name.lower(): name for name in devices}
    if match[3].lower() not in known:
        close = difflib.get_close_matches(match[3].lower(), known, n=1)
        hint = f"did you mean {known[close[0]]}?" if close else f"known: {', '.join(devices)}"
        raise RunError(f"--cluster: unknown device {match[3]!r}; {hint} (--hardware FILE adds others)")
    name = known[match[3].lower()]
    return Cluster(int(match[1] or 1), int(match[2]), name, devices[name])


def read_devices(path: Path | None) -> dict[str, Device]:
    """The table, with a YAML or JSON file laid over it: ``{H100: {network_gbit_per_s: 200}, my-gpu: {...}}``.

    A new name may say ``like: H100`` and give what differs; without it, it has to give everything that has no default.

    Raises:
        RunError: if the file is unreadable or names unknown fields.
    """
    devices = dict(DEVICES)
    if path is None:
        return devices
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise RunError(f"--hardware {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(f"--hardware {path}: neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict) or not all(isinstance(values, dict) for values in loaded.values()):
        raise RunError(f"--hardware {path}: expected devices by name, each with its fields")
    for name, values in loaded.items():
        devices[str(name)] = _device(str(name), values, devices, path)
    return devices


def _device(name: str, values: dict[str, Any], devices: dict[str, Device], path: Path) -> Device:
    values = dict(values)
    model = values.pop("like", name)
    base = {} if model not in devices else dataclasses.asdict(devices[model])
    if model not in devices and model != name:
        raise RunError(f"--hardware {path}: {name}.like: unknown device {model!r}; known: {', '.join(devices)}")
    known = [field.name for field in dataclasses.fields(Device)]
    for field in values:
        if field not in known:
            close = difflib.get_close_matches(str(field), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise RunError(f"--hardware {path}: unknown field {name}.{field}; {hint}")
    try:
        return Device(**(base | values))
    except TypeError as error:
        raise RunError(f"--hardware {path}: {name}: {error}".replace("Device.__init__() ", "")) from error
    except RunError as error:
        raise RunError(f"--hardware {path}: {name}: {error}") from error
