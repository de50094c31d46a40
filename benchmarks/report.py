"""Result files: rows, the figures derived from them, JSON and Markdown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1
SAME_SOURCE = ("source_hash", "device", "torch", "cudnn")  # what rows of one file have in common
PRECISION_TITLES = {
    "ieee": "float32, IEEE",
    "tf32": "float32, TF32 allowed",
    "fp16": "float16",
    "bf16": "bfloat16",
}


@dataclass
class Row:
    """One case in one precision and layout. Times are microseconds per call; None is "not measured"."""

    case: str
    precision: str  # what the user asked for: ieee, tf32, fp16, bf16
    layout: str  # nchw or nhwc (channels_last)
    ours_precision: str = ""  # what our kernel computed in, as its plan says
    kernel: str = ""  # the plan line
    ours_us: float | None = None
    baseline_us: float | None = None
    ours_range_us: tuple[float, float] | None = None  # fastest and slowest sample
    baseline_range_us: tuple[float, float] | None = None
    forced_us: dict[str, float] = field(default_factory=dict)  # other kernels of ours, by name
    floor_us: float | None = None
    macs: int = 0
    ours_frobenius: float | None = None  # ||output - float64|| / ||float64||
    ours_scaled_max: float | None = None  # max |output - float64| / sum |x| |w|
    baseline_frobenius: float | None = None
    baseline_scaled_max: float | None = None
    images: list[int] = field(default_factory=list)  # images of the batch compared with float64
    poisoned: bool = False  # our output was computed into NaN-filled memory
    buffers: int = 1  # sets of input, weight and output that the timed calls rotate through
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # derived by `derive`
    speedup: float | None = None  # baseline over ours, same layout
    speedup_best: float | None = None  # baseline in its better layout over ours
    floor_share: float | None = None  # floor over ours

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case, self.precision, self.layout

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        known = {f.name for f in fields(cls)}
        row = cls(**{name: value for name, value in values.items() if name in known})
        for name in ("ours_range_us", "baseline_range_us"):
            value = getattr(row, name)
            setattr(row, name, None if value is None else tuple(value))
        return row


@dataclass
class Results:
    """All that one result file holds."""

    meta: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    overhead_us: dict[str, dict[str, float]] = field(default_factory=dict)  # by mode, by entry point

    @classmethod
    def load(cls, path: Path) -> Results:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ValueError(f"{path} has format {values.get('format')}, this program reads {FORMAT}")
        return cls(values["meta"], [Row.from_json(row) for row in values["rows"]], values["overhead_us"])

    def save(self, directory: Path) -> Path:
        """Writes <gpu>.json and <gpu>.md; returns the former's path. A reader never sees half a file."""
        derive(self.rows)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{slug(self.meta['device'])}.json"
        rows = ",\n  ".join(json.dumps(_rounded(asdict(row))) for row in self.rows)
        lines = [
            f'"format": {FORMAT}',
            f'"meta": {json.dumps(self.meta)}',
            f'"overhead_us": {json.dumps(_rounded(self.overhead_us))}',
            f'"rows": [\n  {rows}\n ]',
        ]
        _replace(path, "{\n " + ",\n ".join(lines) + "\n}\n")  # a line per row: changes are seen in a diff
        # Of the rounded numbers, so that it can be made again.
        _replace(path.with_suffix(".md"), markdown(Results.load(path)))
        return path


def _rounded(value: Any) -> Any:
    """The value with its floats, however deep, at six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def slug(device: str) -> str:
    """File name for a GPU: its model, as in 'NVIDIA H100 80GB HBM3' -> 'h100'."""
    words = [word.lower() for word in re.split(r"[\s\-_/]+", device) if word]
    words = [word for word in words if word not in ("nvidia", "geforce", "tesla")]
    for i, word in enumerate(words):
        if any(c.isdigit() for c in word):
            family = words[i - 1] if i and words[i - 1] in ("rtx", "gtx") else ""
            return family + word
    return "-".join(words) or "unknown"


def geometric_mean(values: Iterable[float]) -> float | None:
    """The geometric mean, None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def derive(rows: Sequence[Row]) -> None:
    """Fills in speedups and shares of the floor from the times of all rows."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.baseline_us is not None:
            times.setdefault((row.case, row.precision), {})[row.layout] = row.baseline_us
    for row in rows:
        layouts = times.get((row.case, row.precision), {})
        row.speedup = row.speedup_best = row.floor_share = None
        if row.ours_us is None:
            continue
        if row.baseline_us is not None:
            row.speedup = row.baseline_us / row.ours_us
        if len(layouts) == 2:
            row.speedup_best = min(layouts.values()) / row.ours_us
        if row.floor_us is not None:
            row.floor_share = row.floor_us / row.ours_us


def check_same_source(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises ValueError when a file and a run, given by their meta, are of different sources, GPUs or versions."""
    for name in SAME_SOURCE:
        if old.get(name) != new.get(name):
            raise ValueError(f"cannot merge: {name} is {old.get(name)} in the file and {new.get(name)} in this run")


def merge(old: Results, new: Results, order: Sequence[tuple[str, str, str]]) -> Results:
    """The old file with the rows of a new run put in their places, in table order.

    Raises ValueError when the two were measured on different sources, GPUs or versions.
    """
    check_same_source(old.meta, new.meta)
    rows = {row.key: row for row in old.rows} | {row.key: row for row in new.rows}
    place = {key: i for i, key in enumerate(order)}
    merged = sorted(rows.values(), key=lambda row: place.get(row.key, len(place)))
    meta = new.meta | {"complete": set(place) <= set(rows)}
    return Results(meta, merged, new.overhead_us or old.overhead_us)


# Markdown


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _us(value: float | None) -> str:
    return _number(value, ".1f" if value is not None and value < 1000 else ".0f")


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _share(value: float | None) -> str:
    return _number(value, ".0%")


def error_cell(value: float | None) -> str:
    return _number(value, ".1e")


def table(header: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table whose first `left` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *lines)] + [""]


def _mean(rows: Iterable[Row], value: Callable[[Row], float | None]) -> float | None:
    values = [value(row) for row in rows]
    return geometric_mean(v for v in values if v is not None)


def _over_generic(row: Row) -> float | None:
    """How many times faster than the generic kernel a tiled one is."""
    generic = row.forced_us.get("generic")
    if generic is None or row.ours_us is None or row.kernel.split(" ")[0] == "generic":
        return None
    return generic / row.ours_us


def _at_least_as_fast(speedups: Iterable[float | None]) -> str:
    compared = [speedup for speedup in speedups if speedup is not None]
    return f"{sum(speedup >= 1 for speedup in compared)} of {len(compared)}"


def _summary(results: Results) -> list[str]:
    lines = []
    for precision, layout in dict.fromkeys((row.precision, row.layout) for row in results.rows):
        rows = [row for row in results.rows if (row.precision, row.layout) == (precision, layout)]
        lines.append(
            [
                PRECISION_TITLES.get(precision, precision),
                layout.upper(),
                _times(_mean(rows, lambda row: row.speedup)),
                _times(_mean(rows, lambda row: row.speedup_best)),
                _share(_mean(rows, lambda row: row.floor_share)),
                _at_least_as_fast([row.speedup for row in rows]),
                _at_least_as_fast([row.speedup_best for row in rows]),
                _times(_mean(rows, _over_generic)),
            ]
        )
    header = [
        "asked for",
        "layout",
        "over same layout",
        "over better layout",
        "share of floor",
        "rows at least as fast, same layout",
        "rows at least as fast, better layout",
        "over generic kernel",
    ]
    return [
        "## Geometric means",
        "",
        f"Speed-ups of this library over {results.meta['baseline']} in the same layout and over the better of its two"
        " layouts, then over our own plain kernel.",
        "",
        *table(header, lines, left=2),
    ]


def kernel_cell(row: Row) -> str:
    """The name of the kernel, and what it computed in where that is not what was asked for."""
    name = row.kernel.split(" ")[0] or "-"
    return name if row.ours_precision in ("", row.precision) else f"{name} ({row.ours_precision})"


def partial_remark(meta: Mapping[str, Any]) -> list[str]:
    """A paragraph on a file that lacks some of its rows."""
    if meta.get("complete", False):
        return []
    return ["A partial run: some cases, precisions or layouts are missing.", ""]


def precision_remark(rows: Sequence[Row]) -> list[str]:
    """A paragraph on rows that were computed in another precision than the one asked for, where there are any."""
    if not any(row.ours_precision == "ieee" != row.precision for row in rows):
        return []
    return ["A kernel with *(ieee)* beside it computes in IEEE float32, more accurately than what was asked for.", ""]


def _precision_table(precision: str, rows: Sequence[Row], baseline: str) -> list[str]:
    forced = list(dict.fromkeys(name for row in rows for name in row.forced_us))
    header = [
        "case",
        "layout",
        "kernel",
        "ours us",
        f"{baseline} us",
        "same layout",
        "better layout",
        "floor us",
        "share",
        "TFLOP/s",
        "error ours",
        f"error {baseline}",
        "max ours",
        f"max {baseline}",
        *(f"{name} us" for name in forced),
    ]
    lines = [
        [
            row.case,
            row.layout.upper(),
            kernel_cell(row),
            _us(row.ours_us),
            _us(row.baseline_us),
            _times(row.speedup),
            _times(row.speedup_best),
            _us(row.floor_us),
            _share(row.floor_share),
            _number(None if row.ours_us is None else 2e-6 * row.macs / row.ours_us, ".1f"),
            error_cell(row.ours_frobenius),
            error_cell(row.baseline_frobenius),
            error_cell(row.ours_scaled_max),
            error_cell(row.baseline_scaled_max),
            *(_us(row.forced_us.get(name)) for name in forced),
        ]
        for row in rows
    ]
    title = f"## {PRECISION_TITLES.get(precision, precision)}"
    return [title, "", *precision_remark(rows), *table(header, lines, left=3)]


def _losses(results: Results, baseline: str) -> list[str]:
    """The rows that lose to the better layout; those that lose to the same one are among them."""

    def least(row: Row) -> float:
        return min(value for value in (row.speedup, row.speedup_best) if value is not None)

    lost = sorted((row for row in results.rows if row.speedup is not None and least(row) < 1), key=least)
    slower = sum(row.speedup is not None and row.speedup < 1 for row in lost)
    title = ["## Rows slower than the baseline", ""]
    if not lost:
        return [*title, "None.", ""]
    remark = f"Slower than {baseline} in the better of its layouts: {len(lost)} rows; in the same layout too: {slower}."
    lines = [
        [
            row.case,
            row.precision,
            row.layout.upper(),
            _us(row.ours_us),
            _us(row.baseline_us),
            _times(row.speedup),
            _times(row.speedup_best),
        ]
        for row in lost
    ]
    header = ["case", "precision", "layout", "ours us", f"{baseline} us", "same layout", "better layout"]
    return [*title, remark, "", *table(header, lines, left=3)]


def _remarks(results: Results) -> list[str]:
    lines = []
    for row in results.rows:
        where = f"{row.case}, {row.precision}, {row.layout.upper()}"
        lines += [f"- **failed** {where}: {text}" for text in row.failures]
        lines += [f"- {where}: {text}" for text in row.notes]
    return ["## Failures and notes", "", *lines, ""] if lines else []


def _overhead(results: Results) -> list[str]:
    if not results.overhead_us:
        return []
    names = list(next(iter(results.overhead_us.values())))
    lines = [[mode, *(f"{times[name]:.1f}" for name in names)] for mode, times in results.overhead_us.items()]
    return [
        "## Call overhead",
        "",
        "Host time of one eager call on a small problem, microseconds, median.",
        "",
        *table(["mode", *names], lines),
    ]


def markdown(results: Results) -> str:
    """The report. Losses are shown like wins."""
    meta = results.meta
    baseline = str(meta["baseline"])
    rates = meta.get("rates")
    lines = [f"# convt_ext {meta['version']} on {meta['device']}", "", *partial_remark(meta)]
    lines += [
        f"- {meta['date']}, source hash `{meta['source_hash']}`",
        f"- driver {meta['driver']}, torch {meta['torch']}, CUDA {meta['cuda']}, cuDNN {meta['cudnn']}",
        f"- library built by nvcc {meta['nvcc']} for {meta['archs']}",
        "",
    ]
    if meta["timer"] == "graph":
        lines += [
            "Times are GPU times from replayed CUDA graphs, median, microseconds per call; buffers rotate where a case"
            f" would fit in the {meta['l2_mb']:.0f} MB L2 cache. {baseline} runs with `benchmark=True`.",
        ]
    else:
        lines += ["Times are wall times on the CPU, median, microseconds per call: a dry run of the program."]
    lines += [
        "*error* is the relative Frobenius error against float64, *max* the largest |error| / sum abs(x) abs(w), both"
        " over the images of the batch that each row of the JSON file names.",
        "",
    ]
    if rates:
        flops = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in rates["flops"].items())
        lines += [
            "*floor* is the larger of bytes over the streaming rate (input and weight read once at"
            f" {rates['read'] / 1e12:.2f} TB/s, output written once at {rates['write'] / 1e12:.2f} TB/s) and operations"
            f" over the arithmetic rate ({flops} TFLOP/s; ieee is plain FP32 multiply-adds, the others large cuBLAS"
            " products), and at least 2 us. Its operations include products that padding crops; TFLOP/s counts only"
            " those that land in the output.",
            "",
        ]
    else:
        lines += ["No floor: the rates of this device have not been measured.", ""]
    lines += _summary(results)
    for precision in dict.fromkeys(row.precision for row in results.rows):
        lines += _precision_table(precision, [row for row in results.rows if row.precision == precision], baseline)
    lines += _losses(results, baseline) + _overhead(results) + _remarks(results)
    return "\n".join(lines).rstrip("\n") + "\n"
