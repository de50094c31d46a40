"""The parts of benchmarks/ that need no GPU: counts, floors, the report, merging."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import convt_ext
from convt_ext import _timing as timing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import accuracy, blocks, models, overhead, plots, report, roofline, run, sweep
from benchmarks.cases import CASES, Case, select
from benchmarks.report import Results, Row

H100 = roofline.RATES["NVIDIA H100 80GB HBM3"]


def small_case(**changes: object) -> Case:
    values: dict[str, object] = {
        "name": "small",
        "batch": 2,
        "cin": 4,
        "cout": 6,
        "height": 3,
        "width": 5,
        "kernel": (3, 2),
        "stride": (2, 3),
        "padding": (1, 2),
        "output_padding": (1, 0),
        "dilation": (1, 2),
        "groups": 2,
    }
    return Case(**(values | changes))  # type: ignore[arg-type]


SMALL = [
    small_case(),
    small_case(padding=(0, 0), groups=1),
    small_case(stride=(1, 1), padding=(2, 1), output_padding=(0, 1), dilation=(2, 2)),
    small_case(kernel=(4, 4), stride=(2, 2), padding=(3, 1), output_padding=(0, 0), dilation=(1, 1)),
    small_case(height=1, width=1, kernel=(1, 5), stride=(5, 4), padding=(0, 0), output_padding=(0, 3)),
]


@pytest.mark.parametrize("case", SMALL)
def test_output_size_is_torchs(case: Case) -> None:
    output = F.conv_transpose2d(
        torch.zeros(case.input_shape()), torch.zeros(case.weight_shape()), None, *case.arguments()
    )
    assert tuple(output.shape) == case.output_shape()


@pytest.mark.parametrize("case", SMALL)
def test_macs_are_the_products_that_land_in_the_output(case: Case) -> None:
    # A sum of ones counts them: every product of one pixel, one tap and one channel adds one to some output.
    output = F.conv_transpose2d(
        torch.ones(case.input_shape()), torch.ones(case.weight_shape()), None, *case.arguments()
    )
    assert case.macs() == int(output.sum())
    assert case.macs() <= case.gemm_macs()


def test_gemm_macs_are_the_macs_where_nothing_is_cropped() -> None:
    case = small_case(padding=(0, 0))
    assert case.gemm_macs() == case.macs() == 2 * 4 * 3 * (3 * 5) * (3 * 2)


def test_bytes_count_each_element_once() -> None:
    case = small_case()
    elements = 2 * 4 * 3 * 5 + 4 * 3 * 3 * 2 + 2 * 6 * case.output_size()[0] * case.output_size()[1]
    assert case.bytes(torch.float32) == 4 * elements
    assert case.bytes(torch.float16) == 2 * elements


def test_cases_are_valid_and_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.cin % case.groups == case.cout % case.groups == 0
        assert min(case.output_size()) > 0


def test_select_keeps_table_order_and_refuses_unknown_names() -> None:
    assert [case.name for case in select(["kb75", "kb57"])] == ["kb57", "kb75"]
    assert select([]) == list(CASES)
    with pytest.raises(ValueError, match="no case named nonsense"):
        select(["kb57", "nonsense"])


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("kb57", "tf32", 1641),  # bound by arithmetic
        ("kb57", "fp16", 957),
        ("kb57", "ieee", 9515),
        ("kb71", "tf32", 332),  # bound by memory, as much read as written
        ("kb81", "fp16", 129),  # bound by memory, mostly written
        ("dcgan2", "tf32", 23),
        ("fsrcnn_x3", "tf32", 75),
        ("depthwise_up", "fp16", 103),
        ("dcgan1", "fp16", 2),  # the least of all
    ],
)
def test_floors_of_the_h100(name: str, precision: str, expected: float) -> None:
    (case,) = select([name])
    assert roofline.floor_us(case, precision, H100) == pytest.approx(expected, rel=0.02, abs=0.5)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA TITAN V", "titan-v"),
        ("cpu", "cpu"),
    ],
)
def test_slug(device: str, expected: str) -> None:
    assert report.slug(device) == expected


def test_geometric_mean() -> None:
    assert report.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert report.geometric_mean([]) is None


def test_rotation_outgrows_the_cache() -> None:
    assert timing.rotation(working_set=10, cache=50) == 15
    assert timing.rotation(working_set=1000, cache=50) == 1
    assert timing.rotation(working_set=1, cache=50) == 64


def test_samples_fill_the_budget() -> None:
    assert timing.samples_for(60, 2) == 30
    assert timing.samples_for(60, 1000) == timing.MIN_SAMPLES
    assert timing.samples_for(60, 0) == timing.MAX_SAMPLES


def test_timing_is_per_call() -> None:
    found = timing.Timing.of([30.0, 10.0, 80.0], calls=10)
    assert (found.median_us, found.min_us, found.max_us, found.samples) == (3.0, 1.0, 8.0, 3)


def test_wall_timer_uses_every_buffer() -> None:
    used: set[int] = set()

    def call(index: int) -> torch.Tensor:
        used.add(index)
        return torch.zeros(1)

    found = timing.time_wall([lambda i=i: call(i) for i in range(3)], budget_ms=1.0)  # type: ignore[misc]
    assert used == {0, 1, 2}
    assert found.samples >= timing.MIN_SAMPLES


def test_checked_images_hold_first_and_last() -> None:
    assert accuracy.checked_images(small_case(batch=1)) == [0]
    assert accuracy.checked_images(small_case(batch=3)) == [0, 1, 2]
    images = accuracy.checked_images(small_case(batch=100))
    assert len(set(images)) == accuracy.MAX_IMAGES
    assert (images[0], images[-1]) == (0, 99)
    (huge,) = select(["kb57"])
    assert accuracy.checked_images(huge) == [7]


def test_errors_see_a_wrong_and_a_missing_element() -> None:
    case = small_case()
    x, weight = accuracy.make_inputs(case, torch.float32, torch.device("cpu"))
    ref = accuracy.reference(case, x, weight)
    right = F.conv_transpose2d(x, weight, None, *case.arguments())
    good = accuracy.errors(right, ref)
    assert good.frobenius < 1e-6
    assert good.scaled_max <= accuracy.LIMITS["ieee"]
    wrong = right.clone()
    wrong[1, 0, 0, 0] += 1.0
    assert accuracy.errors(wrong, ref).scaled_max > accuracy.LIMITS["ieee"]
    wrong[1, 0, 0, 0] = torch.nan
    assert not accuracy.errors(wrong, ref).scaled_max <= accuracy.LIMITS["ieee"]


def test_broken_promises_are_told() -> None:
    right = accuracy.Errors(frobenius=2e-7, scaled_max=5e-7)
    for precision in accuracy.LIMITS:
        assert accuracy.broken_promises(right, precision) == []
        for wrong in (0.1, float("nan")):
            (message,) = accuracy.broken_promises(accuracy.Errors(right.frobenius, wrong), precision)
            assert "max |error| / sum |x| |w|" in message
    tf32 = accuracy.Errors(frobenius=3e-4, scaled_max=5e-4)
    assert accuracy.broken_promises(tf32, "tf32") == []
    assert len(accuracy.broken_promises(tf32, "ieee")) == 2
    (message,) = accuracy.broken_promises(accuracy.Errors(frobenius=1e-6, scaled_max=5e-7), "ieee")
    assert message == "the relative Frobenius error is 1.00e-06, promised is 8.20e-07"
    assert accuracy.broken_promises(accuracy.Errors(frobenius=1e-6, scaled_max=2e-6), "ieee", slack=4.0) == []


def test_inputs_repeat() -> None:
    first, second = (accuracy.make_inputs(small_case(), torch.float16, torch.device("cpu")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


META = {
    "device": "NVIDIA H100 80GB HBM3",
    "source_hash": "abc",
    "version": "0.1.0",
    "date": "2026-01-01T00:00:00+00:00",
    "driver": "580.1",
    "torch": "2.11.0+cu130",
    "cuda": "13.0",
    "cudnn": "9.19.0",
    "archs": "9.0a",
    "nvcc": "13.0",
    "baseline": "cuDNN",
    "timer": "graph",
    "l2_mb": 50.0,
    "rates": {"read": 3.19e12, "write": 3.29e12, "flops": {"ieee": 65e12}},
    "complete": True,
}


def synthetic_rows() -> list[Row]:
    """NCHW: 2x and 8x over the same layout, 1x and 4x over the better one; NHWC: one win, one loss."""
    return [
        Row("a", "ieee", "nchw", "ieee", "tile_simt x=1", 10.0, 20.0, forced_us={"generic": 30.0}, floor_us=5.0),
        Row("a", "ieee", "nhwc", "ieee", "tile_simt x=1", 20.0, 10.0, floor_us=5.0),
        Row("b", "ieee", "nchw", "ieee", "tile_simt x=1", 10.0, 80.0, forced_us={"generic": 120.0}, floor_us=5.0),
        Row("b", "ieee", "nhwc", "ieee", "generic", 10.0, 40.0, floor_us=5.0),
    ]


def test_derived_figures() -> None:
    rows = synthetic_rows()
    report.derive(rows)
    assert [row.speedup for row in rows] == [2.0, 0.5, 8.0, 4.0]
    assert [row.speedup_best for row in rows] == [1.0, 0.5, 4.0, 4.0]
    assert rows[0].floor_share == 0.5
    alone = synthetic_rows()[:1]
    report.derive(alone)
    assert alone[0].speedup_best is None


def test_report_shows_means_wins_and_losses() -> None:
    rows = synthetic_rows()
    rows[3].notes.append("generic: a note")
    rows[0].failures.append("a failure")
    report.derive(rows)
    text = report.markdown(Results(META, rows, {"no_grad": {"ours": 12.34, "torch": 15.0}}))
    lines = text.splitlines()
    # 2x and 8x, 1x and 4x; half the floor; 3x and 12x over generic
    assert "| float32, IEEE | NCHW | 4.00x | 2.00x | 50% | 2 of 2 | 2 of 2 | 6.00x |" in lines
    assert "| float32, IEEE | NHWC | 1.41x | 1.41x | 35% | 1 of 2 | 1 of 2 | - |" in lines
    losses = lines[lines.index("## Rows slower than the baseline") :]
    assert "| a | ieee | NHWC | 20.0 | 10.0 | 0.50x | 0.50x |" in losses
    assert "- **failed** a, ieee, NCHW: a failure" in lines
    assert "- b, ieee, NHWC: generic: a note" in lines
    assert "| no_grad | 12.3 | 15.0 |" in lines
    assert "abc" in text
    assert "partial" not in text


def test_report_tells_losses_to_the_better_layout() -> None:
    """Rows that gain over the same layout may lose to the other; where there is no other, the same one counts."""
    rows = synthetic_rows()
    rows[0].baseline_us, rows[1].baseline_us = 15.0, 8.0
    rows.append(Row("c", "ieee", "nhwc", "ieee", "generic", 10.0, 9.0))
    report.derive(rows)
    lines = report.markdown(Results(META, rows)).splitlines()
    assert "| float32, IEEE | NCHW | 3.46x | 1.79x | 50% | 2 of 2 | 1 of 2 | 6.00x |" in lines
    losses = lines[lines.index("## Rows slower than the baseline") :]
    assert losses[2] == "Slower than cuDNN in the better of its layouts: 3 rows; in the same layout too: 2."
    assert [line for line in losses if "ieee" in line] == [
        "| a | ieee | NHWC | 20.0 | 8.0 | 0.40x | 0.40x |",
        "| a | ieee | NCHW | 10.0 | 15.0 | 1.50x | 0.80x |",
        "| c | ieee | NHWC | 10.0 | 9.0 | 0.90x | - |",
    ]


def test_report_tables_are_well_formed() -> None:
    rows = synthetic_rows()
    rows[1].ours_us = rows[1].baseline_us = None  # not measured
    report.derive(rows)
    tables = [
        [line.count(" | ") for line in group]
        for is_table, group in itertools.groupby(
            report.markdown(Results(META, rows)).splitlines(), key=lambda line: line.startswith("|")
        )
        if is_table
    ]
    assert len(tables) == 2  # means and rows; no row is slower
    assert all(len(set(widths)) == 1 for widths in tables)


def test_report_says_when_ieee_answers_for_tf32() -> None:
    row = Row("a", "tf32", "nchw", "ieee", "tile_simt x=1", 10.0, 20.0)
    remark = "A kernel with *(ieee)* beside it computes in IEEE float32"
    text = report.markdown(Results(META, [row]))
    assert remark in text
    assert "| a | NCHW | tile_simt (ieee) | 10.0 |" in text
    row.ours_precision = "tf32"
    text = report.markdown(Results(META, [row]))
    assert remark not in text
    assert "| a | NCHW | tile_simt | 10.0 |" in text


def test_report_shows_both_errors_of_both_libraries() -> None:
    row = Row("a", "tf32", "nchw", "tf32", "tile_mma", 10.0, 20.0)
    row.ours_frobenius, row.baseline_frobenius, row.ours_scaled_max, row.baseline_scaled_max = 1e-4, 2e-4, 3e-4, 4e-4
    lines = report.markdown(Results(META, [row])).splitlines()
    (header,) = [line for line in lines if line.startswith("| case | layout | kernel")]
    assert "| error ours | error cuDNN | max ours | max cuDNN |" in header
    assert any("| 1.0e-04 | 2.0e-04 | 3.0e-04 | 4.0e-04 |" in line for line in lines)


@pytest.mark.parametrize(
    ("plan", "asked", "computed"),
    [
        ("tile_mma config=1 blocks=2 precision=tf32", "tf32", "tf32"),
        ("tile_wgmma config=1 precision=ieee", "ieee", "ieee"),
        ("tile_wgmma config=1 precision=tf32 blocks=3", "ieee", "tf32"),
        ("tile_simt couts=64", "tf32", "ieee"),
        ("generic", "tf32", "ieee"),
        ("aten", "tf32", "ieee"),
        ("tile_mma config=1", "fp16", "fp16"),
        ("generic", "bf16", "bf16"),
    ],
)
def test_precision_is_what_the_plan_says(plan: str, asked: str, computed: str) -> None:
    assert run.computed_precision(plan, asked) == computed


def test_results_survive_saving_and_loading(tmp_path: Path) -> None:
    rows = synthetic_rows()
    rows[0].ours_range_us = (9.5, 11.0)
    path = Results(META, rows, {"no_grad": {"ours": 1.0}}).save(tmp_path)
    assert path == tmp_path / "h100.json"
    assert (tmp_path / "h100.md").exists()
    loaded = Results.load(path)
    assert loaded.rows == rows
    assert (loaded.meta, loaded.overhead_us) == (META, {"no_grad": {"ours": 1.0}})
    path.write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="has format 0"):
        Results.load(path)


def test_report_is_of_the_numbers_in_the_file(tmp_path: Path) -> None:
    rows = synthetic_rows()
    rows[0].forced_us = {"generic": 1643.4999}  # with six digits 1643.5
    path = Results(META, rows).save(tmp_path)
    assert path.with_suffix(".md").read_text() == report.markdown(Results.load(path))


def test_committed_results_are_rendered_from_their_numbers() -> None:
    file = Path(report.__file__).parent / "results" / "h100.json"
    assert file.with_suffix(".md").read_text() == report.markdown(Results.load(file))


def test_merge_replaces_only_the_rows_of_the_new_run() -> None:
    order = [(case, "ieee", layout) for case in ("a", "b") for layout in ("nchw", "nhwc")]
    old = Results(META, synthetic_rows()[1:], {"no_grad": {"ours": 1.0}})
    new = Results(META | {"date": "later"}, [Row("b", "ieee", "nchw", ours_us=1.0), Row("a", "ieee", "nchw")])
    merged = report.merge(old, new, order)
    assert [row.key for row in merged.rows] == order
    assert [row.ours_us for row in merged.rows] == [None, 20.0, 1.0, 10.0]
    assert merged.meta["date"] == "later"
    assert merged.meta["complete"]
    assert merged.overhead_us == {"no_grad": {"ours": 1.0}}


def marks(svg: str) -> dict[str, float]:
    """The marks of a plot: their titles, and where they are from left to right."""
    found = {}
    for element in ET.fromstring(svg).iter():
        if element.get("class") == "mark":
            places = [float(x) for x in re.findall(r"([\d.]+),", element.get("points", ""))]
            (title,) = element
            assert title.text
            found[title.text] = float(element.get("cx") or (min(places) + max(places)) / 2)
    return found


def test_plots_show_every_row() -> None:
    rows = synthetic_rows()
    report.derive(rows)
    drawn = plots.plots(Results(META, rows))
    assert set(drawn) == {f"{name}-{theme}.svg" for name in ("speedup", "floor") for theme in ("light", "dark")}
    a, b = "a, float32, IEEE", "b, float32, IEEE"
    at = marks(drawn["speedup-light.svg"])
    expected = {"NCHW": ("1.00x", "4.00x"), "channels_last": ("0.50x", "4.00x")}
    assert set(at) == {f"{of}, {name}: {x}" for name, xs in expected.items() for of, x in zip((a, b), xs, strict=True)}
    # From 1/2 to 4x there are three doublings.
    left, right = at[f"{a}, channels_last: 0.50x"], at[f"{b}, NCHW: 4.00x"]
    assert (left, right) == pytest.approx((plots.LEFT, plots.LEFT + plots.PANEL), abs=0.1)
    assert at[f"{a}, NCHW: 1.00x"] == pytest.approx(left + (right - left) / 3, abs=0.1)
    at = marks(drawn["floor-light.svg"])
    assert at[f"{a}, NCHW: 50%"] == pytest.approx(plots.LEFT + plots.PANEL / 2, abs=0.1)
    assert at[f"{a}, channels_last: 25%"] == pytest.approx(plots.LEFT + plots.PANEL / 4, abs=0.1)


def test_plots_of_both_themes_differ_in_colors_alone() -> None:
    rows = synthetic_rows()
    report.derive(rows)
    drawn = plots.plots(Results(META, rows))
    for name in plots.QUANTITIES:
        light, dark = (re.sub(r"#[0-9a-f]{6}", "", drawn[f"{name}-{theme}.svg"]) for theme in plots.THEMES)
        assert light == dark
        assert drawn[f"{name}-light.svg"] != drawn[f"{name}-dark.svg"]


def test_plots_leave_out_what_was_not_measured(tmp_path: Path) -> None:
    alone = Row("c", "fp16", "nhwc", "fp16", "generic", 10.0, floor_us=4.0)
    rows = [*synthetic_rows(), Row("c", "fp16", "nchw"), alone]
    results = Results(META, rows)
    path = results.save(tmp_path)
    assert plots.main(["--results", str(path), "--output", str(tmp_path / "images")]) == 0
    assert not [title for title in marks((tmp_path / "images" / "speedup-dark.svg").read_text()) if "float16" in title]
    assert "c, float16, channels_last: 40%" in marks((tmp_path / "images" / "floor-dark.svg").read_text())


@pytest.mark.parametrize("name", report.SAME_SOURCE)
def test_merge_refuses_rows_of_another_build(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot merge: {name} is"):
        report.merge(Results(META), Results(META | {name: "other"}), [])


def test_overhead_names_modes_and_entry_points() -> None:
    found = overhead.measure(torch.device("cpu"), batches=1, calls=1)
    assert set(found) == {"inference_mode", "no_grad", "grad"}
    for times in found.values():
        assert set(times) == set(overhead.ENTRY_POINTS)
        assert all(us > 0 for us in times.values())


OVERHEAD = {"no_grad": {"ours": 1.0}}


@pytest.fixture
def dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the program on the CPU over two small cases; results go to tmp_path."""
    cases = [small_case(name="first"), small_case(name="second", padding=(0, 0))]
    monkeypatch.setattr(run, "CASES", tuple(cases))
    monkeypatch.setattr(run, "select", lambda names: [case for case in cases if case.name in names])
    monkeypatch.setattr(overhead, "measure", lambda device, batches: OVERHEAD)

    def main(*arguments: str) -> int:
        return run.main(["--device", "cpu", "--quick", "--output", str(tmp_path), *arguments])

    return main


def test_dry_run_writes_both_files(dry_run: Callable[..., int], tmp_path: Path) -> None:
    precisions = ["ieee", "tf32", "fp16"]
    assert dry_run("--precisions", ",".join(precisions)) == 0
    results = Results.load(tmp_path / "cpu.json")
    assert [row.key for row in results.rows] == run.table_keys(["first", "second"], precisions, ["nchw", "nhwc"])
    assert not results.meta["complete"]
    assert results.overhead_us == OVERHEAD
    for row in results.rows:
        assert not row.failures
        assert row.ours_us
        assert row.baseline_us
        assert row.kernel.startswith("aten")
        assert row.ours_precision == {"tf32": "ieee"}.get(row.precision, row.precision)
        assert row.images == [0, 1]
    assert (tmp_path / "cpu.md").read_text().startswith(f"# convt_ext {convt_ext.__version__} on cpu\n")


def test_merged_runs_complete_the_table(dry_run: Callable[..., int], tmp_path: Path) -> None:
    assert dry_run("--cases", "second", "--source-hash", "abc") == 0
    assert not Results.load(tmp_path / "cpu.json").meta["complete"]
    assert dry_run("--cases", "first", "--source-hash", "abc", "--merge") == 0
    assert Results.load(tmp_path / "cpu.json").meta["complete"]


def test_merge_into_results_of_other_sources_is_refused(
    dry_run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--cases", "first", "--precisions", "ieee", "--layouts", "nchw")
    assert dry_run(*few, "--source-hash", "abc") == 0
    before = (tmp_path / "cpu.json").read_text()
    assert dry_run(*few, "--source-hash", "other", "--merge") == 1
    assert "source_hash is abc in the file and other in this run" in capsys.readouterr().err
    assert (tmp_path / "cpu.json").read_text() == before


def test_dry_run_reports_a_wrong_result(
    dry_run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "poisoned_output", lambda call: (call() + 1, True))
    assert dry_run("--cases", "first", "--precisions", "fp16", "--layouts", "nchw") == 1
    (row,) = Results.load(tmp_path / "cpu.json").rows
    assert "promised is" in row.failures[0]


def test_dry_run_reports_tf32_that_was_not_allowed(
    dry_run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convt_ext, "plan", lambda *arguments: "tile_mma precision=tf32")
    assert dry_run("--cases", "first", "--precisions", "ieee,tf32", "--layouts", "nchw") == 1
    ieee, tf32 = Results.load(tmp_path / "cpu.json").rows
    assert (ieee.ours_precision, tf32.ours_precision) == ("tf32", "tf32")
    assert ieee.failures == ["the plan computes in TF32 where torch does not allow it"]
    assert not tf32.failures


def test_dry_run_reports_a_refusal(
    dry_run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> str:
        raise RuntimeError("no kernel\nmore")

    monkeypatch.setattr(convt_ext, "plan", refuse)
    assert dry_run("--cases", "first", "--precisions", "fp16", "--layouts", "nchw") == 1
    (row,) = Results.load(tmp_path / "cpu.json").rows
    assert row.failures == ["ours: no kernel"]
    assert row.ours_us is None
    assert row.baseline_us


def test_interrupt_keeps_the_finished_rows(
    dry_run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = run.Bench.measure

    def interrupted(self: run.Bench, case: Case, precision: str, layout: str, *rest: Any, **options: Any) -> Row:
        if (case.name, layout) == ("second", "nhwc"):
            raise KeyboardInterrupt
        return measure(self, case, precision, layout, *rest, **options)

    monkeypatch.setattr(run.Bench, "measure", interrupted)
    assert dry_run("--precisions", "ieee") == 130
    rows = Results.load(tmp_path / "cpu.json").rows
    assert [(row.case, row.layout) for row in rows] == [("first", "nchw"), ("first", "nhwc"), ("second", "nchw")]


@pytest.mark.parametrize(
    "arguments", [["--cases", "nonsense"], ["--precisions", "fp8"], ["--layouts", ""], ["--kernels", "magic"]]
)
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run.parse_arguments([*arguments, "--device", "cpu"])
    assert exit_info.value.code == 2
    assert "expected some of" in capsys.readouterr().err


def test_a_forced_kernel_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVT_KERNEL", "generic")
    with pytest.raises(SystemExit):
        run.parse_arguments(["--device", "cpu"])
    assert "unset it" in capsys.readouterr().err


def test_forced_kernel_is_undone() -> None:
    with run.forced_kernel("generic"):
        assert os.environ["CONVT_KERNEL"] == "generic"
    assert "CONVT_KERNEL" not in os.environ


def test_sweep_report() -> None:
    meta = {"version": "0.1.0", "device": "a GPU", "date": "today", "source_hash": "0", "torch": "2"}
    rows = [
        sweep.SweepRow("kb57", "fp16", "nchw", "tile_mma a", 110.0, "tile_wgmma b", 100.0, 48, []),
        sweep.SweepRow("kb65", "fp16", "nhwc", "tile_mma c", 90.0, "tile_mma c", 90.0, 24, ["tile_mma d"]),
    ]
    text = sweep.markdown(rows, meta)
    assert "| kb57 | fp16 | NCHW | 110.0 | 100.0 | 1.100 | 48 | `tile_mma a` | `tile_wgmma b` |" in text
    assert "| kb65 | fp16 | NHWC | 90.0 | 90.0 | 1.000 | 24 | `tile_mma c` | the same |" in text
    assert "- fp16: geometric mean of the ratios 1.049, largest 1.100" in text
    assert "WRONG: kb65 fp16 nhwc: `tile_mma d`" in text
    assert sweep.markdown([], meta)


def test_sweep_takes_both_modes_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {"ieee", "tf32", "fp16"} <= set(sweep.parse_arguments([]).precisions)
    assert sweep.parse_arguments(["--precisions", "tf32,ieee"]).precisions == ["tf32", "ieee"]
    with pytest.raises(SystemExit):
        sweep.parse_arguments(["--precisions", "fp8"])


def test_sweeps_are_merged(tmp_path: Path) -> None:
    """Rows of an earlier run of the same sources stay, in table order; those of other sources are refused."""
    file = tmp_path / "results" / "h100-sweep.json"
    assert sweep.earlier_rows(file, META) == []
    first = sweep.SweepRow("kb65", "tf32", "nhwc", "tile_mma c", 90.0, "tile_mma c", 90.0, 24, [])
    second = sweep.SweepRow("kb57", "ieee", "nchw", "tile_mma a", 110.0, "tile_wgmma b", 100.0, 48, [])
    third = sweep.SweepRow("kb57", "tf32", "nchw", "tile_simt", 110.0, "tile_simt", 110.0, 48, [])
    rows = {row.key: row for row in (first, third, second)}
    sweep.save(rows, META, file)
    assert sweep.earlier_rows(file, META) == [second, third, first]
    page = file.with_suffix(".md").read_text()
    assert page.count("\n- ") == 3  # the sources, and the ratios in two precisions
    assert "A partial run" in page
    with pytest.raises(ValueError, match="cannot merge: source_hash is abc in the file and other in this run"):
        sweep.earlier_rows(file, META | {"source_hash": "other"})


def test_sweeps_are_complete_with_the_last_row_of_the_table(tmp_path: Path) -> None:
    file = tmp_path / "h100-sweep.json"
    table = run.table_keys([case.name for case in CASES], ["ieee", "tf32", "fp16"], ["nchw", "nhwc"])
    rows = {key: sweep.SweepRow(*key, "thin a", 1.0, "thin a", 1.0, 1, []) for key in table}
    for keys, complete in ((table[:-1], False), (table, True)):
        sweep.save({key: rows[key] for key in keys}, META | {"complete": False}, file)
        assert json.loads(file.read_text())["meta"]["complete"] == complete
        assert ("A partial run" in file.with_suffix(".md").read_text()) != complete


def committed(pattern: str) -> list[Path]:
    files = list((Path(run.__file__).parent / "results").glob(pattern))
    assert files
    return files


def test_committed_sweeps_are_rendered_from_their_numbers() -> None:
    for file in committed("*-sweep.json"):
        values = json.loads(file.read_text())
        rows = [sweep.SweepRow(**row) for row in values["rows"]]
        assert file.with_suffix(".md").read_text() == sweep.markdown(rows, values["meta"])


# ---------------------------------------------------------------- whole models


def test_models_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every generator is converted completely, and gives what it gave before; the results name it."""
    arguments = ["--device", "cpu", "--small", "--no-compile", "--precisions", "ieee", "--budget-ms", "1", "--output"]
    assert models.main([*arguments, str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cpu-models.json").read_text())["rows"]
    assert [(row["model"], row["layout"]) for row in rows] == [
        ("dcgan", "nchw"),
        ("dcgan", "nhwc"),
        ("unet", "nchw"),
        ("unet", "nhwc"),
        ("hifigan", "nchw"),
    ]
    for row in rows:
        assert row["us"].keys() == {"eager", "converted"}
        assert min(row["us"].values()) > 0
        assert max(row["error"].values()) < 1e-4
    assert capsys.readouterr().out.count("converted") == len(rows)
    page = (tmp_path / "cpu-models.md").read_text()
    assert page.count("| dcgan | ieee |") == 2
    assert "| hifigan | ieee | - |" in page
    assert "A partial run" not in page


def test_models_that_are_interrupted_are_a_partial_run(tmp_path: Path) -> None:
    def measure(name: str, *rest: object) -> models.ModelRow:
        if name == "second":
            raise KeyboardInterrupt
        return models.ModelRow(name, "ieee", "nchw", {"eager": 2.0, "converted": 1.0}, {})

    def render(rows: object, meta: dict[str, Any]) -> str:
        return "".join(report.partial_remark(meta))

    options = models.parse_arguments(["--device", "cpu", "--output", str(tmp_path)])
    cases = [(name, "ieee", "nchw") for name in ("first", "second")]
    file = tmp_path / "cpu-models.json"
    with pytest.raises(KeyboardInterrupt):
        models.measure_all(cases, "models", measure, render, options)
    assert not json.loads(file.read_text())["meta"]["complete"]
    assert file.with_suffix(".md").read_text() == "A partial run: some cases, precisions or layouts are missing."
    models.measure_all(cases[:1], "models", measure, render, options)
    assert json.loads(file.read_text())["meta"]["complete"]
    assert not file.with_suffix(".md").read_text()


def test_models_need_a_gpu_or_a_dry_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        models.parse_arguments([])
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("program", [models, blocks], ids=["models", "blocks"])
def test_committed_models_and_blocks_are_rendered_from_their_numbers(program: Any) -> None:
    for file in committed(f"*-{program.__name__.rpartition('.')[2]}.json"):
        values = json.loads(file.read_text())
        rows = [models.ModelRow(**row) for row in values["rows"]]
        assert file.with_suffix(".md").read_text() == program.markdown(rows, values["meta"])
        for row in rows:
            # Converting a model does not make it less accurate.
            assert row.error["converted"] <= 1.25 * row.error["eager"], row


# ---------------------------------------------------------------- blocks


def test_blocks_dry_run(tmp_path: Path) -> None:
    """Every block gives what it gave before it was rewritten; the results name it."""
    arguments = ["--device", "cpu", "--small", "--no-compile", "--precisions", "ieee", "--budget-ms", "1", "--output"]
    assert blocks.main([*arguments, str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cpu-blocks.json").read_text())["rows"]
    assert [row["model"] for row in rows] == list(blocks.BLOCKS)
    assert len(rows) == 11
    for row in rows:
        assert row["us"].keys() == {"eager", "converted"}
        assert min(row["us"].values()) > 0
        assert max(row["error"].values()) < 1e-4
    assert (tmp_path / "cpu-blocks.md").read_text().count("| ieee | NCHW |") == 11


@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_blocks_use_the_operator(name: str) -> None:
    """What can be part of it is: with as few modules or functions behind it as the block allows."""
    block = blocks.BLOCKS[name]
    model, rewritten = block.make()
    layer = rewritten[0] if isinstance(rewritten, torch.nn.Sequential) else rewritten.get_submodule("conv")
    assert isinstance(layer, convt_ext.ConvTranspose2d)
    assert layer.activates == block.fuses
    assert not any(isinstance(module, convt_ext.ConvTranspose2d) for module in model.modules())
