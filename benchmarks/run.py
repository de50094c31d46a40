"""Times and checks the benchmark cases against cuDNN, and writes results/<gpu>.json and .md.

    python benchmarks/run.py [--cases kb57,kb75] [--precisions ieee,tf32,fp16,bf16] [--layouts nchw,nhwc]
                             [--kernels auto,generic,depthwise,thin,thin_simt,tile_simt,tile_mma,tile_wgmma,
                              col2im,implicit_gemm,halo_gemm,pixel_gemm,scatter_gemm,phase_gemm]
                             [--output DIR] [--source-hash H] [--merge] [--quick]

For each case, precision and layout the errors of both libraries against float64, and the check that all of the output
was written, come before any time. The files are written after every case and at an interrupt, which loses nothing.
The exit code is 1 when a result is wrong, 130 after an interrupt.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import convt_ext
from convt_ext._layers import LAYOUTS
from convt_ext._timing import Call, Timing, rotation, time_graph, time_wall
from convt_ext.doctor import environment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import overhead
from benchmarks.accuracy import Reference, broken_promises, errors, make_inputs, poisoned_output, reference
from benchmarks.cases import CASES, Case, select
from benchmarks.report import Results, Row, derive, geometric_mean, merge, slug
from benchmarks.roofline import DTYPES, RATES, floor_us

PRECISIONS = tuple(DTYPES)
KERNELS = (
    "auto",
    "generic",
    "depthwise",
    "thin",
    "thin_simt",
    "tile_simt",
    "tile_mma",
    "tile_wgmma",
    "col2im",
    "implicit_gemm",
    "halo_gemm",
    "pixel_gemm",
    "scatter_gemm",
    "phase_gemm",
)
QUICK_BUDGET_MS = 10.0

Operator = Callable[..., Tensor]


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An argument type: comma-separated names out of `known`."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if not names or not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, got {text!r}")
        return list(dict.fromkeys(names))

    return parse


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times and checks the benchmark cases against cuDNN.")
    cases = [case.name for case in CASES]
    add = parser.add_argument
    add("--cases", type=some_of(cases), default=cases, help="comma-separated names (default: all)")
    add("--precisions", type=some_of(PRECISIONS), default=list(PRECISIONS), help="some of ieee,tf32,fp16,bf16")
    add("--layouts", type=some_of(list(LAYOUTS)), default=list(LAYOUTS), help="some of nchw,nhwc")
    add(
        "--kernels",
        type=some_of(KERNELS),
        default=["auto", "generic"],
        help="kernels to time, in the first layout, besides the one that the plan picks (default: generic)",
    )
    add("--output", type=Path, help="folder of the result files (default: benchmarks/results, of a dry run build)")
    add("--source-hash", default="unknown", help="hash of the measured sources, as make source-hash prints it")
    add(
        "--budget-ms", type=float, default=60.0, help="GPU time per measurement of at least three samples (default: 60)"
    )
    add("--quick", action="store_true", help=f"at most {QUICK_BUDGET_MS:.0f} ms per measurement, no other kernels")
    add("--merge", action="store_true", help="replace only the rows of this run in the existing result file")
    add(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run of this program on wall times of ATen"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.budget_ms = min(options.budget_ms, QUICK_BUDGET_MS)
        options.kernels = ["auto"]
    if options.output is None:
        root = Path(__file__).resolve().parents[1]
        options.output = root / ("build" if options.device == "cpu" else "benchmarks/results")
    if "CONVT_KERNEL" in os.environ:
        parser.error("CONVT_KERNEL is set, and would force a kernel on every row: unset it")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu makes a dry run")
    return options


def describe(device: torch.device, source_hash: str) -> dict[str, Any]:
    """What was measured, on what, with what."""
    meta = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source_hash": source_hash,
        **environment(device),
        "complete": False,
    }
    if device.type == "cpu":
        return meta | {"l2_mb": 0, "rates": None}
    properties = torch.cuda.get_device_properties(device)
    rates = RATES.get(properties.name)
    return meta | {"l2_mb": properties.L2_cache_size / 2**20, "rates": asdict(rates) if rates else None}


def computed_precision(plan: str, asked: str) -> str:
    """What a plan computes in: its own word for float32 on tensor cores; IEEE for float32 elsewhere, CPU included."""
    if DTYPES[asked] != torch.float32:
        return asked
    said = re.search(r" precision=(\w+)", plan)
    return said[1] if said else "ieee"


@contextmanager
def forced_kernel(name: str) -> Iterator[None]:
    """Has the library use this kernel and no other."""
    os.environ["CONVT_KERNEL"] = name
    try:
        yield
    finally:
        del os.environ["CONVT_KERNEL"]


class Bench:
    """Measures rows on one device."""

    def __init__(self, device: torch.device, budget_ms: float, forced: Sequence[str], l2_bytes: int) -> None:
        self.device = device
        self.budget_ms = budget_ms
        self.forced = forced  # kernels to time besides the plan's
        self.l2_bytes = l2_bytes
        self.rates = RATES.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None

    def time(self, calls: Sequence[Call]) -> Timing:
        if self.device.type == "cuda":
            return time_graph(calls, self.budget_ms)
        return time_wall(calls, self.budget_ms)

    def release(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measure(
        self, case: Case, precision: str, layout: str, x: Tensor, weight: Tensor, ref: Reference, with_forced: bool
    ) -> Row:
        """One row: errors first, then times. What goes wrong is recorded in it."""
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        x = x.contiguous(memory_format=LAYOUTS[layout])
        weight = weight.contiguous(memory_format=LAYOUTS[layout])
        row = Row(case.name, precision, layout, macs=case.macs(), images=ref.images)
        row.floor_us = floor_us(case, precision, self.rates) if self.rates else None
        row.buffers = rotation(case.bytes(x.dtype), self.l2_bytes) if self.l2_bytes else 1
        sets = [(x, weight), *((x.clone(), weight.clone()) for _ in range(row.buffers - 1))]

        def calls(operator: Operator) -> list[Call]:
            return [partial(operator, a, b, None, *case.arguments()) for a, b in sets]

        ours, baseline = calls(torch.ops.convt.conv_transpose2d), calls(F.conv_transpose2d)
        with self._recording(row.failures, "ours"):
            row.kernel = convt_ext.plan(x, weight, None, *case.arguments())
            row.ours_precision = computed_precision(row.kernel, precision)
            self._check_ours(row, ours[0], ref)
            timing = self.time(ours)
            row.ours_us, row.ours_range_us = timing.median_us, (timing.min_us, timing.max_us)
        with self._recording(row.notes, "baseline"):
            found = errors(baseline[0](), ref)
            row.baseline_frobenius, row.baseline_scaled_max = found.frobenius, found.scaled_max
            timing = self.time(baseline)
            row.baseline_us, row.baseline_range_us = timing.median_us, (timing.min_us, timing.max_us)
        for name in self.forced if with_forced else ():
            with self._recording(row.notes, name), forced_kernel(name):
                used = convt_ext.plan(x, weight, None, *case.arguments()).split(" ")[0]
                if used == name:
                    row.forced_us[name] = self.time(ours).median_us
                else:
                    row.notes.append(f"{name} was asked for and {used} ran: not timed")
        return row

    def _check_ours(self, row: Row, call: Call, ref: Reference) -> None:
        output, row.poisoned = poisoned_output(call)
        if not bool(torch.isfinite(output).all()):
            row.failures.append("the output has elements that are not finite, or that were not written")
        found = errors(output, ref)
        row.ours_frobenius, row.ours_scaled_max = found.frobenius, found.scaled_max
        if (row.precision, row.ours_precision) == ("ieee", "tf32"):
            row.failures.append("the plan computes in TF32 where torch does not allow it")
        # ATen may round half-precision sums more than once.
        row.failures += broken_promises(found, row.ours_precision, slack=4.0 if self.device.type == "cpu" else 1.0)

    @contextmanager
    def _recording(self, messages: list[str], what: str) -> Iterator[None]:
        """Turns a refusal or a lack of memory into a message; an error that breaks the CUDA context goes on up."""
        try:
            yield
        except RuntimeError as error:
            messages.append(f"{what}: {str(error).splitlines()[0]}")
            if self.device.type == "cuda":
                torch.cuda.synchronize()


def progress(row: Row, done: int, total: int, baseline: str) -> str:
    """One line about a row."""

    def text(value: float | None, form: str, width: int) -> str:
        return ("-" if value is None else format(value, form)).rjust(width)

    derive([row])
    return (
        f"[{done:3}/{total}] {row.case:13} {row.precision} {row.layout}"
        f"  ours {text(row.ours_us, '.1f', 9)} us  {baseline} {text(row.baseline_us, '.1f', 9)} us"
        f"  {text(row.speedup, '.2f', 6)}x  floor {text(row.floor_share, '.0%', 4)}"
        f"  err {text(row.ours_frobenius, '.1e', 7)} / {text(row.baseline_frobenius, '.1e', 7)}"
        f"  {row.kernel.split(' ')[0]}{'  FAILED' if row.failures else ''}"
    )


def table_keys(cases: Sequence[str], precisions: Sequence[str], layouts: Sequence[str]) -> list[tuple[str, str, str]]:
    """Keys of rows in table order."""
    return [(case, precision, layout) for precision in precisions for case in cases for layout in layouts]


def run(options: argparse.Namespace, keep: Callable[[Row], None]) -> None:
    """Measures all rows asked for, case by case, and hands each to `keep`."""
    device = torch.device(options.device)
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    bench = Bench(device, options.budget_ms, [name for name in options.kernels if name != "auto"], l2_bytes)
    if device.type == "cpu" and bench.forced:
        print("kernels are not timed on the CPU, where aten computes", flush=True)
        bench.forced = []
    for case in select(options.cases):
        inputs: dict[torch.dtype, tuple[Tensor, Tensor, Reference]] = {}
        for precision in options.precisions:
            dtype = DTYPES[precision]
            if dtype not in inputs:
                inputs.clear()
                bench.release()
                x, weight = make_inputs(case, dtype, device)
                inputs[dtype] = x, weight, reference(case, x, weight)
                bench.release()
            x, weight, ref = inputs[dtype]
            for layout in options.layouts:
                row = bench.measure(case, precision, layout, x, weight, ref, with_forced=layout == options.layouts[0])
                bench.release()
                keep(row)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    results = Results(describe(device, options.source_hash))
    meta = results.meta
    meta["budget_ms"] = options.budget_ms
    table = table_keys([case.name for case in CASES], PRECISIONS, list(LAYOUTS))
    file = options.output / f"{slug(meta['device'])}.json"
    old: Results | None = None
    if options.merge and file.exists():
        old = Results.load(file)
        try:
            merge(old, results, table)  # refused now rather than after the run
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
    total = len(options.cases) * len(options.precisions) * len(options.layouts)
    started = time.perf_counter()

    def save() -> None:
        results.rows.sort(key=lambda row: table.index(row.key))
        meta["complete"] = {row.key for row in results.rows} == set(table)
        meta["seconds"] = round(time.perf_counter() - started, 1)
        (merge(old, results, table) if old else results).save(options.output)

    def keep(row: Row) -> None:
        if results.rows and row.case not in {kept.case for kept in results.rows}:
            save()
        results.rows.append(row)
        print(progress(row, len(results.rows), total, meta["baseline"]), flush=True)
        for message in row.failures:
            print(f"          {message}", flush=True)

    print(f"convt_ext {meta['version']} on {meta['device']}, torch {meta['torch']}, cuDNN {meta['cudnn']}", flush=True)
    try:
        results.overhead_us = overhead.measure(device, batches=5 if options.quick else 60)
        torch.backends.cudnn.benchmark = True
        with torch.inference_mode():
            run(options, keep)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        save()
        print(f"{len(results.rows)} of {total} rows are in {file}", flush=True)
    for precision, layout in dict.fromkeys((row.precision, row.layout) for row in results.rows):
        rows = [row for row in results.rows if (row.precision, row.layout) == (precision, layout)]
        means = [
            geometric_mean(value for value in values if value is not None)
            for values in ((row.speedup for row in rows), (row.speedup_best for row in rows))
        ]
        same, best = ("-" if mean is None else f"{mean:.2f}x" for mean in means)
        print(f"geometric mean, {precision} {layout}: {same} over the same layout, {best} over the better one")
    failed = sum(bool(row.failures) for row in results.rows)
    print(f"{failed} rows failed; {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
