"""The examples in docstrings run, and the numbers in the README and in docs/ are those of the committed results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from processes import run_python

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import docs_tables, plots
from benchmarks.report import PRECISION_TITLES, Results

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = tuple(PRECISION_TITLES.values())
LAYOUTS = {"NCHW": "NCHW", "channels_last": "NHWC"}


def test_docstring_examples() -> None:
    """Every example in the documentation runs."""
    code = """
import doctest
import importlib.util
import sys
import convt_ext
from convt_ext import _library, conversion, dtensor, functional, modules, onnx

documented = [convt_ext, _library, conversion, dtensor, functional, modules]
if importlib.util.find_spec("onnxscript"):
    documented.append(onnx)
results = [doctest.testmod(module) for module in documented]
assert all(result.attempted for result in results[1:]), results
assert sum(result.attempted for result in results) >= 10, results
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
        result = measured[precision, LAYOUTS[layout]]
        assert [same, better, rows] == [result[2], result[3], result[5]]


def test_accuracy_page_quotes_the_results() -> None:
    """Its tables are what `make docs-tables` makes of the results: every row, in every precision."""
    page = (ROOT / "docs" / "accuracy.md").read_text()
    results = Results.load(ROOT / "benchmarks" / "results" / "h100.json")
    assert page == docs_tables.rewritten(page, results), "run make docs-tables"
    sections = {match[2] for match in docs_tables.SECTION.finditer(page)}
    assert sections == {"source", "summary", *PRECISION_TITLES}
    rows = [row for row in table_rows(ROOT / "docs" / "accuracy.md") if len(row) == 7 and row[1] in LAYOUTS.values()]
    assert len(rows) == len(results.rows)


def test_plots_are_of_the_results() -> None:
    """Each of them is linked from the README, in both of its themes."""
    drawn = plots.plots(Results.load(ROOT / "benchmarks" / "results" / "h100.json"))
    folder = ROOT / "docs" / "images"
    committed = {path.name: path.read_text() for path in folder.glob("*.svg")}
    assert committed == drawn, "run make bench-plots"
    readme = (ROOT / "README.md").read_text()
    assert all(f"docs/images/{name}" in readme for name in drawn)


def test_tables_are_rewritten_where_they_stand() -> None:
    results = Results.load(ROOT / "benchmarks" / "results" / "h100.json")
    page = "before\n<!-- table: summary -->\nold\n<!-- end -->\nbetween\n<!-- table: ieee -->\n<!-- end -->\nafter\n"
    once = docs_tables.rewritten(page, results)
    assert "old" not in once
    assert once.count("<!-- table: ") == once.count("<!-- end -->") == 2
    kept = ["before", "between", "after"]
    assert [line for line in once.splitlines() if line in kept] == kept
    assert docs_tables.rewritten(once, results) == once
    with pytest.raises(ValueError, match="no table is named times"):
        docs_tables.rewritten("<!-- table: times -->\n<!-- end -->", results)
