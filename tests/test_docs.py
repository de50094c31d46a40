"""The examples in docstrings run, and the numbers in the README are those of the committed results."""

from __future__ import annotations

import re
from pathlib import Path

from processes import run_python

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = {
    "float32, IEEE": "float32, IEEE",
    "float32 where cuDNN may use TF32 (ours stays IEEE)": "float32, TF32 allowed",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
LAYOUTS = {"NCHW": "NCHW", "channels_last": "NHWC"}


def test_docstring_examples() -> None:
    """Every example in the documentation runs."""
    code = """
import doctest
import sys
import convt_ext
from convt_ext import _library, functional, modules

results = [doctest.testmod(module) for module in (convt_ext, _library, functional, modules)]
assert sum(result.attempted for result in results) >= 6, results
sys.exit(sum(result.failed for result in results))
"""
    run_python(code)


def table_rows(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text().splitlines() if re.match(r"\| .+ \|$", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_readme_quotes_the_results() -> None:
    measured = {
        (row[0], row[1]): row for row in table_rows(ROOT / "benchmarks" / "results" / "h100.md") if len(row) == 7
    }
    quoted = [row for row in table_rows(ROOT / "README.md") if row[0] in PRECISIONS]
    assert len(quoted) == len(PRECISIONS) * len(LAYOUTS)
    for precision, layout, same, better, rows in quoted:
        result = measured[PRECISIONS[precision], LAYOUTS[layout]]
        assert [same, better, rows] == [result[2], result[3], result[5]]
