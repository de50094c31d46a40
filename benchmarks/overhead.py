"""Host time of one eager call on a small problem: ours beside torch's.

    python benchmarks/overhead.py [--device cuda|cpu]

On a GPU the calls are asynchronous and the queue never fills, so this is the time that Python, the dispatcher, the
checks, the allocation and the launch take. On the CPU it includes the computation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

import convt_ext

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "grad": nullcontext,
}
ENTRY_POINTS: dict[str, Callable[..., Tensor]] = {
    "torch.ops.convt": torch.ops.convt.conv_transpose2d,
    "convt_ext": convt_ext.conv_transpose2d,
    "torch.nn.functional": F.conv_transpose2d,
}


def _batch_us(call: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        call(x, weight, bias, 2, 1)
    elapsed = time.perf_counter() - begin
    if x.is_cuda:
        torch.cuda.synchronize()
    return 1e6 * elapsed / calls


def measure(device: torch.device, batches: int = 60, calls: int = 50) -> dict[str, dict[str, float]]:
    """Median microseconds per call, by mode and by entry point.

    The GPU is waited for after each batch: its queue holds many more launches than the `calls` of one.
    """
    x = torch.randn(1, 8, 8, 8, device=device)
    weight = torch.randn(8, 8, 4, 4, device=device)
    bias = torch.randn(8, device=device)
    result = {}
    for mode, context in MODES.items():
        weight.requires_grad_(mode == "grad")
        samples: dict[str, list[float]] = {name: [] for name in ENTRY_POINTS}
        with context():
            for batch in range(batches + 2):
                for name, call in ENTRY_POINTS.items():  # in turn, so that drift meets all of them alike
                    us = _batch_us(call, x, weight, bias, calls)
                    if batch >= 2:  # warm
                        samples[name].append(us)
        result[mode] = {name: statistics.median(times) for name, times in samples.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Host time of one eager call, ours beside torch's.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    times = measure(device)
    print(f"{'us per call, ' + device.type:20}" + "".join(f"{name:>22}" for name in ENTRY_POINTS))
    for mode, by_name in times.items():
        print(f"{mode:20}" + "".join(f"{by_name[name]:22.2f}" for name in ENTRY_POINTS))


if __name__ == "__main__":
    main()
