"""Draws a result file as SVG: docs/images/speedup-light.svg, floor-light.svg, and both with -dark.

    python benchmarks/plots.py [--results benchmarks/results/h100.json] [--output docs/images]

A panel for each precision, a line for each case, a mark for each layout. The text of the files depends on the results
alone, so that a test can tell whether they are drawn from the committed ones.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import PRECISION_TITLES, Results, Row

ROOT = Path(__file__).resolve().parents[1]
LAYOUT_TITLES = {"nchw": "NCHW", "nhwc": "channels_last"}

# Sizes in pixels.
LEFT, TOP, BOTTOM = 112, 92, 58
PANEL, GAP = 198, 34
LINE = 17  # from a case to the next
MARK = 4.2  # half of a mark's width


@dataclass(frozen=True)
class Theme:
    """Colors of a plot."""

    background: str
    text: str
    faint: str  # grid
    shade: str  # where the library is slower than what it is compared with
    marks: Mapping[str, str]  # by layout


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#d8dee4", "#fbeeee", {"nchw": "#0969da", "nhwc": "#c4580a"}),
    "dark": Theme("#0d1117", "#e6edf3", "#30363d", "#2a1518", {"nchw": "#58a6ff", "nhwc": "#f0883e"}),
}


@dataclass(frozen=True)
class Quantity:
    """What a plot shows of each row, and on which scale."""

    title: str
    subtitle: str
    value: Callable[[Row], float | None]
    logarithmic: bool
    label: Callable[[float], str]

    def ticks(self, values: Sequence[float]) -> list[float]:
        """Ascending; all values lie between the first and the last."""
        if self.logarithmic:
            low, high = math.floor(math.log2(min(*values, 1.0))), math.ceil(math.log2(max(*values, 1.0)))
            return [2.0**power for power in range(low, high + 1)]
        return [0.5 * i for i in range(math.ceil(2 * max(*values, 1.0)) + 1)]

    def place(self, value: float, ticks: Sequence[float]) -> float:
        """Where a value is on the scale: 0 at the first tick, 1 at the last."""
        scale = math.log2 if self.logarithmic else float
        low, high = scale(ticks[0]), scale(ticks[-1])
        return (scale(value) - low) / (high - low)


def _factor(value: float) -> str:
    return f"{value:g}x" if value >= 1 else f"1/{1 / value:g}"


QUANTITIES = {
    "speedup": Quantity(
        "Speed-up over cuDNN's better layout",
        "time of cuDNN in the faster of its two layouts, over ours; shaded: slower than cuDNN",
        lambda row: row.speedup_best,
        True,
        _factor,
    ),
    "floor": Quantity(
        "Share of the floor",
        "least time that memory and arithmetic allow, over ours; in IEEE, tensor cores may pass the rate of plain FP32",
        lambda row: row.floor_share,
        False,
        lambda value: f"{value:.0%}",
    ),
}


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, color: str, anchor: str = "start", size: int = 12, weight: str = "") -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" fill="{color}" font-size="{size}" text-anchor="{anchor}"{bold}>'
        f"{escape(text)}</text>"
    )


def _mark(layout: str, x: float, y: float, color: str, title: str) -> str:
    """A circle for NCHW, a diamond for channels_last, with its numbers for a pointer that rests on it."""
    if layout == "nchw":
        shape = f'<circle class="mark" cx="{_number(x)}" cy="{_number(y)}" r="{MARK}" fill="{color}">'
        return f"{shape}<title>{escape(title)}</title></circle>"
    points = ((x - MARK - 1, y), (x, y - MARK - 1), (x + MARK + 1, y), (x, y + MARK + 1))
    corners = " ".join(f"{_number(a)},{_number(b)}" for a, b in points)
    return f'<polygon class="mark" points="{corners}" fill="{color}"><title>{escape(title)}</title></polygon>'


def draw(results: Results, quantity: Quantity, theme: Theme) -> str:
    """The text of the SVG file."""
    cases = list(dict.fromkeys(row.case for row in results.rows))
    precisions = [name for name in PRECISION_TITLES if any(row.precision == name for row in results.rows)]
    values = [value for row in results.rows if (value := quantity.value(row)) is not None]
    ticks = quantity.ticks(values)
    width = LEFT + len(precisions) * (PANEL + GAP)
    bottom = TOP + LINE * len(cases)
    meta = results.meta
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + BOTTOM}"'
        f' viewBox="0 0 {width} {bottom + BOTTOM}" font-family="system-ui, sans-serif" role="img">',
        f"<title>{escape(quantity.title)}, {escape(meta['device'])}</title>",
        f'<rect width="{width}" height="{bottom + BOTTOM}" fill="{theme.background}"/>',
        _text(16, 26, quantity.title, theme.text, size=17, weight="600"),
        _text(16, 46, quantity.subtitle, theme.text),
    ]
    for index, layout in enumerate(LAYOUT_TITLES):
        x = width - GAP - 170 + 76 * index
        lines += [
            _mark(layout, x, 22, theme.marks[layout], LAYOUT_TITLES[layout]).replace(' class="mark"', ""),
            _text(x + 10, 26, LAYOUT_TITLES[layout], theme.text),
        ]
    for line, case in enumerate(cases):
        lines.append(_text(LEFT - 10, TOP + LINE * (line + 0.5) + 4, case, theme.text, "end"))
    for panel, precision in enumerate(precisions):
        left = LEFT + panel * (PANEL + GAP)

        def at(value: float, left: float = left) -> float:
            return left + PANEL * quantity.place(value, ticks)

        lines.append(_text(left + PANEL / 2, TOP - 12, PRECISION_TITLES[precision], theme.text, "middle", weight="600"))
        if quantity.logarithmic:
            lines.append(
                f'<rect x="{_number(left)}" y="{TOP}" width="{_number(at(1.0) - left)}" height="{bottom - TOP}"'
                f' fill="{theme.shade}"/>'
            )
        for tick in ticks:
            color, thickness = (theme.text, 1.4) if tick == 1.0 else (theme.faint, 1)
            lines.append(f'<path d="M{_number(at(tick))} {TOP}V{bottom}" stroke="{color}" stroke-width="{thickness}"/>')
            lines.append(_text(at(tick), bottom + 16, quantity.label(tick), theme.text, "middle", size=10))
        for line, case in enumerate(cases):
            y = TOP + LINE * (line + 0.5)
            rows = [row for row in results.rows if (row.case, row.precision) == (case, precision)]
            shown = [(row.layout, value) for row in rows if (value := quantity.value(row)) is not None]
            ends = [at(value) for _, value in shown]
            if ends:
                lines.append(
                    f'<path d="M{_number(min(ends))} {_number(y)}H{_number(max(ends))}" stroke="{theme.faint}"'
                    ' stroke-width="2"/>'
                )
            for layout, value in shown:
                number = f"{value:.2f}x" if quantity.logarithmic else f"{value:.0%}"
                title = f"{case}, {PRECISION_TITLES[precision]}, {LAYOUT_TITLES[layout]}: {number}"
                lines.append(_mark(layout, at(value), y, theme.marks[layout], title))
    source = (
        f"{meta['device']}, torch {meta['torch']}, cuDNN {meta['cudnn']}, {meta['date'][:10]},"
        f" source hash {meta['source_hash']}"
    )
    lines += [_text(16, bottom + BOTTOM - 14, source, theme.text, size=10), "</svg>"]
    return "\n".join(lines) + "\n"


def plots(results: Results) -> dict[str, str]:
    """All files, by name."""
    return {
        f"{name}-{theme}.svg": draw(results, quantity, colors)
        for name, quantity in QUANTITIES.items()
        for theme, colors in THEMES.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draws a result file as SVG.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "h100.json")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, text in plots(Results.load(options.results)).items():
        (options.output / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
