"""The report that ``python -m convt_ext`` prints: what is installed, what is in force, and whether it works."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import __version__, functional
from ._library import library_info, library_path

# The largest allowed error of an fp32-accumulated sum, relative to the sum of the products' magnitudes.
_SUM_ERROR = 1e-6
_TF32_ERROR = 2.0**-10  # where the factors of the products are rounded to TF32
_REASONS = {  # for the arithmetic of float32, by what the library read of torch's flag
    "allowed": "torch allows TF32 for convolutions",
    "disallowed": "torch does not allow TF32 for convolutions",
    "unreadable": "this torch does not tell whether it allows TF32 for convolutions",
}


@dataclass(frozen=True)
class _Probe:
    """One small problem of the self-check: shapes as in `conv_transpose2d`."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    geometry: dict[str, int]
    relu: bool = False  # behind it; it makes no error larger


_PROBES = (
    _Probe((2, 16, 9, 11), (16, 8, 4, 4), {"stride": 2, "padding": 1}),
    _Probe((1, 6, 7, 5), (6, 5, 3, 3), {"stride": 3, "dilation": 2, "output_padding": 1, "groups": 3}),
    _Probe((3, 8, 1, 33), (8, 1, 1, 16), {"stride": 8, "groups": 8}),
    _Probe((2, 16, 9, 11), (16, 8, 4, 4), {"stride": 2, "padding": 1}, relu=True),
)


def _sum_error(device: str, dtype: torch.dtype) -> float:
    """The allowed error of a sum, relative to the sum of the products' magnitudes."""
    if device == "cpu":
        # torch sums 16-bit types in 16 bits in places.
        return max(_SUM_ERROR, 4 * torch.finfo(dtype).eps) if dtype.itemsize == 2 else _SUM_ERROR
    return _TF32_ERROR if dtype == torch.float32 and library_info()["fp32"] == "tf32" else _SUM_ERROR


def _check(probe: _Probe, device: str, dtype: torch.dtype, layout: torch.memory_format) -> tuple[bool, float, str]:
    """Returns whether a probe is accurate, its error as a share of the allowed one, and the kernel that ran."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(probe.input, generator=generator).to(device, dtype).contiguous(memory_format=layout)
    weight = torch.randn(probe.weight, generator=generator).to(device, dtype)
    bias = torch.randn(probe.weight[1] * probe.geometry.get("groups", 1), generator=generator).to(device, dtype)
    operator: Callable[..., Tensor] = functional.conv_transpose2d
    if probe.relu:
        operator = partial(functional.conv_transpose2d_act, activation="relu")
    result = operator(x, weight, bias, **probe.geometry)

    exact = [tensor.cpu().double() for tensor in (x, weight, bias)]
    torch_operator: Callable[..., Tensor] = torch.nn.functional.conv_transpose2d
    reference = torch_operator(*exact, **probe.geometry)
    magnitude = torch_operator(*(tensor.abs() for tensor in exact), **probe.geometry)
    rounding = torch.finfo(dtype).eps / 2
    allowed = _sum_error(device, dtype) * magnitude + rounding * reference.abs() * 1.01
    expected = reference.relu() if probe.relu else reference
    share = float(((result.cpu().double() - expected).abs() / allowed).max())
    kernel = functional.plan(x, weight, bias, **probe.geometry).split()[0]
    return share <= 1.0, share, kernel


def _self_check(device: str) -> Iterator[tuple[bool, str]]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for layout in (torch.contiguous_format, torch.channels_last):
            results = [_check(probe, device, dtype, layout) for probe in _PROBES]
            passed = all(ok for ok, _, _ in results)
            worst = max(share for _, share, _ in results)
            kernels = ", ".join(sorted({kernel for _, _, kernel in results}))
            names = f"{str(dtype).removeprefix('torch.'):9} {str(layout).removeprefix('torch.'):17}"
            verdict = "pass" if passed else "FAIL"
            yield passed, f"  {verdict}  {device:6} {names} error {worst:5.2f} of the allowed   ({kernels})"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def environment(device: torch.device) -> dict[str, Any]:
    """What a measurement on this device names beside its times: hardware, versions, and what it is compared with."""
    info = library_info()
    meta = {
        "version": info["version"],
        "archs": info["archs"],
        "nvcc": info["nvcc"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "python": platform.python_version(),
    }
    if device.type == "cpu":
        return meta | {"device": "cpu", "driver": "none", "cudnn": "none", "baseline": "ATen", "timer": "wall"}
    properties = torch.cuda.get_device_properties(device)
    cudnn = torch.backends.cudnn.version() or 0
    return meta | {
        "device": properties.name,
        "driver": _driver(),
        "cudnn": f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}",
        "baseline": "cuDNN",
        "timer": "graph",
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def report() -> bool:
    """Prints the report to standard output.

    Returns:
        True if every self-check passed.
    """
    info = library_info()
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    print(f"convt_ext {__version__}   library {library_path()}")
    print(
        f"  built with nvcc {info['nvcc']} for GPU architectures {info['archs']}; torch ABI {info['torch_abi_target']}"
    )
    print(f"Python {platform.python_version()}   torch {torch.__version__} ({cuda})")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        print(f"GPU {index}: {torch.cuda.get_device_name(index)} (compute capability {major}.{minor})")
    if torch.cuda.device_count() == 0:
        print("GPU: none visible to torch; the operator runs on the CPU through aten")
    print(f"float32: {info['fp32'].upper()} on CUDA, because {_REASONS[info['tf32_flag']]}; always IEEE on the CPU")
    print("Self-check against float64:")
    passed = True
    for device in _devices():
        try:
            for ok, line in _self_check(device):
                passed &= ok
                print(line)
        except RuntimeError as error:
            passed = False
            print(f"  FAIL  {device:6} {error}")
    print("pass" if passed else "FAIL")
    return passed
