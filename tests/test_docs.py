"""The examples in docstrings and pages run, and numbers, drawings and messages in them are those of the project."""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_python

import convt_ext
from convt_ext import __main__ as program

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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The texts between fences of a page that name this language; "" for those that name none."""
    parts = re.split(r"^```(.*)\n", page.read_text() + "\n", flags=re.MULTILINE)
    # Outside, what opens a fence, inside, what closes it, outside and so on.
    return [text for opening, text in zip(parts[1::4], parts[2::4], strict=True) if opening == language]


def run_examples(page: Path) -> int:
    """Runs the Python of a page, one text after the other with the same variables; returns the number of examples."""
    variables: dict[str, Any] = {"model": torch.nn.Sequential(torch.nn.ConvTranspose2d(64, 32, 4, 2, 1))}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failures: list[str] = []
    texts = blocks(page, "python")
    for text in texts:
        if text.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(text, variables, str(page), str(page), 0)
            runner.run(test, out=failures.append, clear_globs=False)
            variables = test.globs
        else:
            exec(text if torch.cuda.is_available() else text.replace('"cuda"', '"cpu"'), variables)
    assert not failures, "".join(failures)
    return len(texts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # they write files
    with torch.random.fork_rng():
        torch.manual_seed(0)
        number = run_examples(page)
    shown = {
        "README": 4,
        "quickstart": 5,
        "convert": 2,
        "activations": 3,
        "one-dimension": 2,
        "deploy": 4,
        "benchmark": 1,
    }
    assert number >= shown.get(page.stem, 0)


def test_wrong_examples_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n>>> 1 + 1\n2\n```\n")
    assert run_examples(page) == 1
    page.write_text("```python\n>>> 1 + 1\n3\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        run_examples(page)


def test_commands_of_the_pages_can_be_given() -> None:
    lines = [line for page in PAGES for text in blocks(page, "") for line in text.splitlines()]
    commands = [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("python -m convt_ext")]
    parsed = [program.parsers()[0].parse_args(command) for command in commands]
    assert [options.command for options in parsed].count("bench") >= 4
    targets = {match[1] for line in lines if (match := re.match(r"make ([\w-]+)", line))}
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.slow_matrix  # other versions of torch may word it otherwise
def test_messages_of_the_troubleshooting_page_are_real(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    files = [*(ROOT / "src" / "convt_ext").glob("*.py"), ROOT / "cuda" / "library.cpp"]
    ours = "\n".join(path.read_text() for path in files)
    for message in (
        "convt_ext needs PyTorch",
        "convt_ext has no compiled library at",
        "convt_ext cannot load",
        "no kernel for GPU",
        "(compute capability",
        "this build holds code for",
        "convt_ext cannot read whether PyTorch",
        "allows TF32 for convolutions",
    ):
        assert message in page
        assert message in ours

    model = torch.nn.Sequential(convt_ext.ConvTranspose2d(2, 2, 2)).eval()
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    torch.export.save(torch.export.export(model, (torch.ones(1, 2, 3, 3),)), tmp_path / "model.pt2")
    code = """
import sys, torch
scripted, exported = sys.argv[1:]
for call in (
    lambda: torch.jit.load(scripted),
    lambda: torch.export.load(exported),
    lambda: torch.ops.convt.conv_transpose2d,
):
    try:
        call()
    except (RuntimeError, AttributeError) as error:
        print(error)
"""
    torchs = run_python(code, tmp_path / "model.pt", tmp_path / "model.pt2").stdout
    for message in (
        "Unknown builtin op: convt::conv_transpose2d",
        "'_OpNamespace' 'convt' object has no attribute 'conv_transpose2d'",
        "We ran into an error when deserializing the saved file",
    ):
        assert message in page
        assert message in torchs


def table_rows(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text().splitlines() if re.match(r"\| .+ \|$", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_readme_quotes_the_results() -> None:
    measured = {
        (row[0], row[1]): row for row in table_rows(ROOT / "benchmarks" / "results" / "h100.md") if len(row) == 8
    }
    quoted = [row for row in table_rows(ROOT / "README.md") if row[0] in PRECISIONS]
    assert len(quoted) == len(PRECISIONS) * len(LAYOUTS)
    for precision, layout, *numbers in quoted:
        result = measured[precision, LAYOUTS[layout]]
        assert numbers == [result[2], result[3], result[5], result[6]]


def test_readme_quotes_the_host_times() -> None:
    """Of each mode the range over both entry points of ours, and torch's."""
    measured = Results.load(ROOT / "benchmarks" / "results" / "h100.json").overhead_us

    def times(mode: str) -> tuple[str, str]:
        ours = sorted(measured[mode][name] for name in ("torch.ops.convt", "convt_ext"))
        return " to ".join(dict.fromkeys(f"{us:.0f}" for us in ours)), f"{measured[mode]['torch.nn.functional']:.0f}"

    inference, no_grad, grad = map(times, ("inference_mode", "no_grad", "grad"))
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"is {inference[0]} us under `inference_mode` and {no_grad[0]} us under `no_grad`, against {inference[1]} and"
        f" {no_grad[1]} us for" in readme
    )
    assert f"with gradients, which are registered from Python, {grad[0]} us against {grad[1]} us" in readme


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
