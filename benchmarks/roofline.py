"""The least time a problem can take: bytes over the memory's rate, or operations over the arithmetic's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.cases import Case

DTYPES: Mapping[str, torch.dtype] = {
    "ieee": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
LAUNCH_US = 2.0  # no kernel is expected to finish sooner


@dataclass(frozen=True)
class Rates:
    """Measured rates of one GPU."""

    read: float  # bytes per second
    write: float  # bytes per second
    flops: Mapping[str, float]  # operations per second, by precision


# Streaming kernels for the memory; cuBLAS on large products for the tensor cores (power-limited); for ieee the rate of
# plain FP32 multiply-adds, which a kernel that splits its operands for the tensor cores may pass.
RATES: Mapping[str, Rates] = {
    "NVIDIA H100 80GB HBM3": Rates(
        read=3.19e12,
        write=3.29e12,
        flops={"ieee": 65e12, "tf32": 377e12, "fp16": 646e12, "bf16": 696e12},
    ),
}


def floor_us(case: Case, precision: str, rates: Rates) -> float:
    """Floor in microseconds: the larger of memory time and arithmetic time, and at least LAUNCH_US.

    The operations are those of the equivalent matrix product. Where padding crops much of the output (4x4 images, say)
    a kernel that skips the cropped products has a quarter fewer to do: there the floor is a yardstick, not a bound.
    """
    dtype = DTYPES[precision]
    memory = case.read_bytes(dtype) / rates.read + case.write_bytes(dtype) / rates.write
    arithmetic = 2 * case.gemm_macs() / rates.flops[precision]
    return max(LAUNCH_US, 1e6 * memory, 1e6 * arithmetic)
