"""The plot of ``python -m convt_ext bench --plot``; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .bench import Result

_COLORS = {"PyTorch": "#9aa5b1", "convt_ext": "#2f6fdb"}
_BAR = 0.38  # of the distance between two layouts
_LONGEST_NAME = 40


def draw(results: Sequence[Result], meta: dict[str, Any], path: Path) -> None:
    """Writes bars of the time of each layer and layout, beside each other for the two libraries."""
    from .bench import LAYOUT_TITLES  # here, as bench imports this module

    labels: list[str] = []
    times: dict[str, list[float | None]] = {name: [] for name in _COLORS}
    for result in results:
        for row in result.rows:
            name = ", ".join(dict.fromkeys(result.found.names))
            short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
            labels.append(f"{short} {LAYOUT_TITLES[row.layout]}".strip())
            times["PyTorch"].append(row.pytorch_us)
            times["convt_ext"].append(row.ours_us)

    figure = Figure(figsize=(8, 1.6 + 0.55 * len(labels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for offset, (library, values) in zip((-_BAR / 2, _BAR / 2), times.items(), strict=True):
        places = [place + offset for place in range(len(labels))]
        bars = axes.barh(places, [value or 0.0 for value in values], _BAR, color=_COLORS[library], label=library)
        axes.bar_label(bars, ["not measured" if value is None else f"{value:.1f}" for value in values], padding=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("microseconds per call" + (" on the GPU" if meta["timer"] == "graph" else ", wall time"))
    first = results[0].found
    what = str(first.layer) if not first.names else "transposed convolutions of the model"
    axes.set_title(f"{what}\n{meta['device']}, torch {meta['torch']}, cuDNN {meta['cudnn']}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(_COLORS), frameon=False)
    figure.savefig(path, dpi=150)
