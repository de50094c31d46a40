"""Rewrites the tables of docs/accuracy.md from a result file.

    python benchmarks/docs_tables.py [--results benchmarks/results/h100.json] [--page docs/accuracy.md]

What stands between a line `<!-- table: NAME -->` and the next `<!-- end -->` is replaced: `source` says what was
measured, `summary` holds the largest errors of each precision, and `ieee`, `tf32`, `fp16` and `bf16` those of each row.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import PRECISION_TITLES, Results, Row, error_cell, kernel_cell, precision_remark, table

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def source(results: Results) -> list[str]:
    meta = results.meta
    return [
        f"{meta['device']}, torch {meta['torch']}, cuDNN {meta['cudnn']}, source hash `{meta['source_hash']}`,"
        f" {meta['date'][:10]}."
    ]


def _largest(rows: Iterable[Row], value: Callable[[Row], float | None]) -> str:
    values = [value(row) for row in rows]
    return error_cell(max((v for v in values if v is not None), default=None))


def summary(results: Results) -> list[str]:
    """The largest error of each precision over its rows, and how many rows it is over."""
    baseline = results.meta["baseline"]
    header = ["asked for", "rows", "error ours", f"error {baseline}", "max ours", f"max {baseline}"]
    lines = []
    for precision in dict.fromkeys(row.precision for row in results.rows):
        rows = [row for row in results.rows if row.precision == precision]
        lines.append(
            [
                PRECISION_TITLES[precision],
                str(len(rows)),
                _largest(rows, lambda row: row.ours_frobenius),
                _largest(rows, lambda row: row.baseline_frobenius),
                _largest(rows, lambda row: row.ours_scaled_max),
                _largest(rows, lambda row: row.baseline_scaled_max),
            ]
        )
    return table(header, lines)


def errors_of_rows(results: Results, precision: str) -> list[str]:
    """The errors of both libraries in every row of a precision."""
    baseline = results.meta["baseline"]
    rows = [row for row in results.rows if row.precision == precision]
    header = ["case", "layout", "kernel", "error ours", f"error {baseline}", "max ours", f"max {baseline}"]
    lines = [
        [
            row.case,
            row.layout.upper(),
            kernel_cell(row),
            error_cell(row.ours_frobenius),
            error_cell(row.baseline_frobenius),
            error_cell(row.ours_scaled_max),
            error_cell(row.baseline_scaled_max),
        ]
        for row in rows
    ]
    return [*precision_remark(rows), *table(header, lines, left=3)]


def section(name: str, results: Results) -> list[str]:
    """The lines of a section; ValueError on a name that there is not."""
    if name == "source":
        return source(results)
    if name == "summary":
        return summary(results)
    if name in PRECISION_TITLES:
        return errors_of_rows(results, name)
    raise ValueError(f"no table is named {name}; there are source, summary, {', '.join(PRECISION_TITLES)}")


def rewritten(page: str, results: Results) -> str:
    """The page with its tables made anew."""

    def replace(match: re.Match[str]) -> str:
        body = "\n".join(section(match[2], results)).rstrip("\n")
        return f"{match[1]}{body}\n{match[3]}"

    return SECTION.sub(replace, page)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rewrites the tables of docs/accuracy.md from a result file.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "h100.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "accuracy.md")
    options = parser.parse_args(arguments)
    page = options.page.read_text(encoding="utf-8")
    options.page.write_text(rewritten(page, Results.load(options.results)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
