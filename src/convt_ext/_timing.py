"""Time of an operator: on a GPU from replayed CUDA graphs, on the CPU from the wall clock; benchmarks/ uses it too."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Call = Callable[[], Tensor]

GRAPH_MS = 2.0  # a graph is made about this long, so that the gap between two replays does not count
MAX_CALLS = 512  # calls in one graph
MIN_SAMPLES = 3
MAX_SAMPLES = 50


@dataclass(frozen=True)
class Timing:
    """Time per call over the samples, in microseconds."""

    median_us: float
    min_us: float
    max_us: float
    samples: int
    calls: int  # calls in one sample

    @classmethod
    def of(cls, sample_us: Sequence[float], calls: int) -> Timing:
        per_call = [us / calls for us in sample_us]
        return cls(statistics.median(per_call), min(per_call), max(per_call), len(per_call), calls)


def rotation(working_set: int, cache: int, most: int = 64) -> int:
    """Number of buffer sets to rotate through so that none is still in the cache when its turn comes again."""
    return max(1, min(most, math.ceil(3 * cache / working_set)))


def samples_for(budget_ms: float, sample_ms: float) -> int:
    """Number of samples of this length that the budget allows, within MIN_SAMPLES and MAX_SAMPLES."""
    return max(MIN_SAMPLES, min(MAX_SAMPLES, int(budget_ms / max(sample_ms, 1e-3))))


def time_graph(calls: Sequence[Call], budget_ms: float, single_call_ms: float = 100.0) -> Timing:
    """GPU time per call, from replays of a graph that runs `calls` in turn.

    Outputs are allocated by the operator, inside the capture, and as many of them are alive at once as there are calls:
    outputs rotate like inputs. A call that takes longer than `single_call_ms` is timed by itself, once.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()  # loads modules, and lets cuDNN choose its algorithm
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        calls[-1]()
        end.record()
        end.synchronize()
        call_ms = max(begin.elapsed_time(end), 1e-3)
        if call_ms > single_call_ms:
            return Timing.of([1e3 * call_ms], 1)

        rounds = max(1, min(MAX_CALLS // len(calls), math.ceil(GRAPH_MS / (call_ms * len(calls)))))
        graph = torch.cuda.CUDAGraph()
        alive: deque[Tensor] = deque(maxlen=len(calls))
        graph.capture_begin()
        try:
            for _ in range(rounds):
                for call in calls:
                    alive.append(call())
        except RuntimeError:
            with suppress(RuntimeError):  # says only that the capture failed, not why
                graph.capture_end()
            raise
        graph.capture_end()

        # The replays are queued without waiting, so that the launch of each hides behind the one before; the first,
        # whose launch nothing hides, is not a sample.
        samples = samples_for(budget_ms, call_ms * len(calls) * rounds)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
        graph.replay()
        for event in events[:-1]:
            event.record()
            graph.replay()
        events[-1].record()
        events[-1].synchronize()
    torch.cuda.current_stream().wait_stream(stream)
    sample_us = [1e3 * a.elapsed_time(b) for a, b in pairwise(events)]
    return Timing.of(sample_us, len(calls) * rounds)


def time_wall(calls: Sequence[Call], budget_ms: float) -> Timing:
    """Wall time per call on the CPU."""
    calls[0]()
    begin = time.perf_counter()
    calls[-1]()
    first_ms = 1e3 * (time.perf_counter() - begin)
    sample_us = []
    for sample in range(samples_for(budget_ms, first_ms)):
        begin = time.perf_counter()
        calls[sample % len(calls)]()
        sample_us.append(1e6 * (time.perf_counter() - begin))
    return Timing.of(sample_us, 1)
