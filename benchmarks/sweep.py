"""Compares the launch that the plan chooses with others that have estimates: results/<gpu>-sweep.json and .md.

    python benchmarks/sweep.py [--cases kb57,kb75] [--precisions ieee,tf32,fp16,bf16] [--layouts nchw,nhwc]
                               [--launches 24] [--output DIR] [--source-hash H] [--merge]

For each case, precision and layout, the launches of thin, thin_simt, tile_mma, tile_wgmma, col2im, implicit_gemm,
halo_gemm, pixel_gemm, scatter_gemm and phase_gemm with the least estimates are checked against float64, then timed, and
so is the chosen launch if it is of another kernel. A row holds the chosen launch, the fastest one, and the ratio of
their times.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import convt_ext
from convt_ext._layers import LAYOUTS
from convt_ext._timing import rotation, time_graph

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy import Reference, broken_promises, errors, make_inputs, reference
from benchmarks.cases import CASES, Case, select
from benchmarks.report import check_same_source, geometric_mean, partial_remark, slug
from benchmarks.roofline import DTYPES
from benchmarks.run import KERNELS, PRECISIONS, computed_precision, describe, forced_kernel, some_of, table_keys

SWEPT_KERNELS = tuple(name for name in KERNELS if name not in ("auto", "generic", "depthwise", "tile_simt"))
SWEPT = ("ieee", "tf32", "fp16")  # precisions, unless others are asked for: bfloat16 runs the launches of float16


@dataclass
class SweepRow:
    """One case in one precision and layout; times in microseconds per call."""

    case: str
    precision: str
    layout: str
    chosen: str  # plan lines
    chosen_us: float
    best: str
    best_us: float
    timed: int  # launches
    wrong: list[str]  # launches whose error is above the promise

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case, self.precision, self.layout

    @property
    def ratio(self) -> float:
        return self.chosen_us / self.best_us


def markdown(rows: Sequence[SweepRow], meta: dict[str, object]) -> str:
    """The table of a sweep."""
    lines = [
        f"# Launches of convt_ext {meta['version']} on {meta['device']}",
        "",
        *partial_remark(meta),
        f"- {meta['date']}, source hash `{meta['source_hash']}`, torch {meta['torch']}",
        "",
        "The launch that the plan chooses against the fastest of those with the least estimates, us per call.",
        "",
    ]
    for precision in dict.fromkeys(row.precision for row in rows):
        ratios = [row.ratio for row in rows if row.precision == precision]
        lines.append(
            f"- {precision}: geometric mean of the ratios {geometric_mean(ratios):.3f}, largest {max(ratios):.3f}"
        )
    lines += [""] if rows else []
    lines += [
        "| case | precision | layout | chosen us | best us | ratio | launches | chosen | best |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        best = "the same" if row.best == row.chosen else f"`{row.best}`"
        lines.append(
            f"| {row.case} | {row.precision} | {row.layout.upper()} | {row.chosen_us:.1f} | {row.best_us:.1f}"
            f" | {row.ratio:.3f} | {row.timed} | `{row.chosen}` | {best} |"
        )
    for row in rows:
        lines += [f"\nWRONG: {row.case} {row.precision} {row.layout}: `{launch}`" for launch in row.wrong]
    return "\n".join(lines) + "\n"


def sweep_row(
    case: Case,
    precision: str,
    layout: str,
    inputs: tuple[torch.Tensor, torch.Tensor, Reference],
    launches: int,
    budget_ms: float,
) -> SweepRow:
    """Times the launches of one row."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    x, weight = (tensor.contiguous(memory_format=LAYOUTS[layout]) for tensor in inputs[:2])
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    sets = [(x, weight)]
    sets += [(x.clone(), weight.clone()) for _ in range(rotation(case.bytes(x.dtype), cache) - 1)]
    calls = [partial(torch.ops.convt.conv_transpose2d, a, b, None, *case.arguments()) for a, b in sets]
    times: dict[str, float] = {}
    wrong = []

    def time_launch(line: str) -> None:
        if broken_promises(errors(calls[0](), inputs[2]), computed_precision(line, precision)):
            wrong.append(line)
            return
        times[line] = time_graph(calls, budget_ms).median_us
        # What graphs allocate stays reserved.
        if torch.cuda.memory_reserved() > torch.cuda.get_device_properties(0).total_memory // 4:
            torch.cuda.empty_cache()

    chosen = convt_ext.plan(x, weight, None, *case.arguments())
    if chosen.split(" ")[0] not in SWEPT_KERNELS:
        time_launch(chosen)
    for kernel in SWEPT_KERNELS:
        for rank in range(launches):
            with forced_kernel(f"{kernel}:{rank}"):
                try:
                    line = convt_ext.plan(x, weight, None, *case.arguments())
                except RuntimeError:  # fewer launches than that, or a kernel that this GPU has not
                    break
                time_launch(line)
    times.setdefault(chosen, math.inf)  # where it is wrong
    best = min(times, key=lambda line: times[line])
    return SweepRow(case.name, precision, layout, chosen, times[chosen], best, times[best], len(times), wrong)


def earlier_rows(file: Path, meta: dict[str, object]) -> list[SweepRow]:
    """The rows of a file that is there already; ValueError where they are of other sources than this run."""
    if not file.exists():
        return []
    values = json.loads(file.read_text(encoding="utf-8"))
    check_same_source(values["meta"], meta)
    return [SweepRow(**row) for row in values["rows"]]


def save(rows: dict[tuple[str, str, str], SweepRow], meta: dict[str, object], file: Path) -> None:
    """Writes both files, with the rows in table order; they are complete with all rows of a run without options."""
    names, layouts = [case.name for case in CASES], list(LAYOUTS)
    meta = meta | {"complete": set(table_keys(names, SWEPT, layouts)) <= set(rows)}
    order = table_keys(names, PRECISIONS, layouts)
    sorted_rows = sorted(rows.values(), key=lambda row: order.index(row.key))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"meta": meta, "rows": [asdict(row) for row in sorted_rows]}, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(sorted_rows, meta))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares the plan's choice with other launches.")
    cases = [case.name for case in CASES]
    add = parser.add_argument
    add("--cases", type=some_of(cases), default=cases, help="comma-separated names (default: all)")
    add(
        "--precisions",
        type=some_of(PRECISIONS),
        default=list(SWEPT),
        help="some of ieee,tf32,fp16,bf16 (default: ieee,tf32,fp16)",
    )
    add("--layouts", type=some_of(list(LAYOUTS)), default=list(LAYOUTS), help="some of nchw,nhwc")
    add("--launches", type=int, default=24, help="launches of each kernel (default: 24)")
    add("--budget-ms", type=float, default=5.0, help="GPU time per launch of at least three samples (default: 5)")
    add("--output", type=Path, default=Path(__file__).resolve().parent / "results", help="folder of the result files")
    add("--source-hash", default="unknown", help="hash of the measured sources, as make source-hash prints it")
    add("--merge", action="store_true", help="replace only the rows of this run in the existing result file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    device = torch.device("cuda")
    meta = describe(device, options.source_hash)
    file = options.output / f"{slug(meta['device'])}-sweep.json"
    try:
        earlier = earlier_rows(file, meta) if options.merge else []
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    rows = {row.key: row for row in earlier}
    wrong = 0
    with torch.inference_mode():
        for case in select(options.cases):
            inputs: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor, Reference]] = {}
            for precision in options.precisions:
                dtype = DTYPES[precision]
                if dtype not in inputs:
                    inputs.clear()
                    x, weight = make_inputs(case, dtype, device)
                    inputs[dtype] = x, weight, reference(case, x, weight)
                for layout in options.layouts:
                    row = sweep_row(case, precision, layout, inputs[dtype], options.launches, options.budget_ms)
                    torch.cuda.empty_cache()
                    rows[row.key] = row
                    wrong += len(row.wrong)
                    print(
                        f"{case.name:13} {precision} {layout}  chosen {row.chosen_us:9.1f} us"
                        f"  best {row.best_us:9.1f} us  {row.ratio:6.3f}  {len(row.wrong)} wrong",
                        flush=True,
                    )
            save(rows, meta, file)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
