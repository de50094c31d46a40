"""Times whole generators with random weights: eager PyTorch and torch.compile, as they are and converted in one line.

    python -m benchmarks.models [--models dcgan,unet,hifigan] [--precisions fp16,tf32,ieee] [--layouts nchw,nhwc]
                                [--no-compile] [--output FOLDER] [--source-hash HASH] [--budget-ms MS]
    python -m benchmarks.models --device cpu --small   a dry run of this program

GPU time of a forward pass in eval mode under inference_mode, from replayed CUDA graphs; the same precision on all
sides, convolutions and matrix products alike. Beside every time stands the relative Frobenius error against the same
model in float64. Writes <gpu>-models.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convt_ext
from benchmarks.report import error_cell, partial_remark, slug, table
from benchmarks.roofline import DTYPES
from benchmarks.run import describe, some_of
from convt_ext._layers import LAYOUTS
from convt_ext._timing import time_graph, time_wall

PRECISIONS = ("fp16", "tf32", "ieee")
VARIANTS = ("eager", "converted", "compiled", "converted, compiled")


class Dcgan(nn.Sequential):
    """The generator of DCGAN (Radford et al., 2015): [N, 100, 1, 1] to [N, 3, 64, 64]."""

    def __init__(self, width: int = 64) -> None:
        channels = [100, 8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = []
        for cin, cout in pairwise(channels):
            first = cin == 100
            up = nn.ConvTranspose2d(cin, cout, 4, 1 if first else 2, 0 if first else 1, bias=False)
            layers += [up, nn.BatchNorm2d(cout), nn.ReLU()]
        super().__init__(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


class Unet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with four levels and padded convolutions: [N, 3, H, W] to [N, 2, H, W]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(self._block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(self._block(2 * w, w) for w in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _block(cin: int, cout: int) -> nn.Module:
        layers: list[nn.Module] = []
        for channels in (cin, cout):
            layers += [nn.Conv2d(channels, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([kept.pop(), up(x)], dim=1))
        return self.last(x)


class HifiGan(nn.Module):
    """The generator of HiFi-GAN, version 1 (Kong et al., 2020): [N, 80, frames] to [N, 1, 256 * frames]."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.first = nn.Conv1d(80, width, 7, padding=3)
        self.up, self.residual = nn.ModuleList(), nn.ModuleList()
        for stride in (8, 8, 2, 2):
            self.up.append(nn.ConvTranspose1d(width, width // 2, 2 * stride, stride, stride // 2))
            width //= 2
            self.residual.append(
                nn.ModuleList(
                    nn.ModuleList(
                        nn.Conv1d(width, width, k, dilation=d, padding=(k - 1) * d // 2) for d in (1, 1, 3, 1, 5, 1)
                    )
                    for k in (3, 7, 11)
                )
            )
        self.last = nn.Conv1d(width, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, blocks in zip(self.up, self.residual, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            sums = []
            for block in blocks:
                y = x
                for a, b in zip(block[::2], block[1::2], strict=True):
                    y = y + b(F.leaky_relu(a(F.leaky_relu(y, 0.1)), 0.1))
                sums.append(y)
            x = (sums[0] + sums[1] + sums[2]) / 3
        return torch.tanh(self.last(F.leaky_relu(x, 0.1)))


@dataclass(frozen=True)
class Model:
    """A generator, and the sizes of its input: those that are timed, and small ones for a dry run."""

    make: Callable[..., nn.Module]
    shape: tuple[int, ...]
    small_width: int
    small_shape: tuple[int, ...]


MODELS = {
    "dcgan": Model(Dcgan, (128, 100, 1, 1), 4, (2, 100, 1, 1)),
    "unet": Model(Unet, (8, 3, 256, 256), 4, (1, 3, 32, 32)),
    "hifigan": Model(HifiGan, (8, 80, 400), 32, (1, 80, 6)),
}


@dataclass
class ModelRow:
    """Times of one model in one precision and layout, in microseconds, and errors, by variant."""

    model: str
    precision: str
    layout: str
    us: dict[str, float]
    error: dict[str, float]

    def speedup(self, variant: str, over: str) -> float | None:
        return self.us[over] / self.us[variant] if {variant, over} <= self.us.keys() else None


def measure(name: str, precision: str, layout: str, device: torch.device, options: argparse.Namespace) -> ModelRow:
    """One row. The weights and the input are those of one seed."""
    entry = MODELS[name]
    torch.manual_seed(0)
    model = (entry.make(entry.small_width) if options.small else entry.make()).eval()
    x = torch.randn(entry.small_shape if options.small else entry.shape)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with torch.inference_mode():
        expected = deepcopy(model).to(device, torch.float64)(x.to(device, torch.float64))
        placed: dict[str, Any] = {"device": device, "dtype": DTYPES[precision]}
        if x.dim() == 4:
            placed["memory_format"] = LAYOUTS[layout]
        model, x = model.to(**placed), x.to(**placed)
        converted = convt_ext.convert(model)
        left = convt_ext.conversion_report(converted).left
        if left:
            raise RuntimeError(f"{name}: not everything was converted: {left}")
        row = ModelRow(name, precision, layout, {}, {})
        time_variants(row, model, converted, x, expected, options)
    return row


def time_variants(
    row: ModelRow, model: nn.Module, converted: nn.Module, x: Tensor, expected: Tensor, options: argparse.Namespace
) -> None:
    """Fills in a row; `expected` is of all images of `x`, or of the first ones."""
    variants: dict[str, Callable[[Tensor], Tensor]] = {"eager": model, "converted": converted}
    if options.compile:
        torch.compiler.reset()
        variants |= {"compiled": torch.compile(model), "converted, compiled": torch.compile(converted)}
    for variant, function in variants.items():
        y = function(x)[: len(expected)].double()
        row.error[variant] = float((y - expected).norm() / expected.norm())
        time = time_graph if x.is_cuda else time_wall
        row.us[variant] = time([lambda function=function: function(x)], options.budget_ms).median_us


def variants_table(what: str, rows: Sequence[ModelRow], layout: Callable[[ModelRow], str]) -> list[str]:
    """A Markdown table of rows, the layout in each as `layout` says it."""

    def cells(row: ModelRow) -> list[str]:
        times = [f"{row.us[v]:.0f}" if v in row.us else "-" for v in VARIANTS]
        gains = [row.speedup("converted", "eager"), row.speedup("converted, compiled", "compiled")]
        errors = [error_cell(row.error.get(v)) for v in VARIANTS[:2]]
        return [
            row.model,
            row.precision,
            layout(row),
            *times,
            *("-" if gain is None else f"{gain:.2f}x" for gain in gains),
            *errors,
        ]

    header = [what, "precision", "layout", *(f"{v} us" for v in VARIANTS)]
    header += ["eager gains", "compiled gains", "error eager", "error converted"]
    return table(header, [cells(row) for row in rows], left=3)


def markdown(rows: Sequence[ModelRow], meta: dict[str, Any]) -> str:
    """The page of the results."""
    shapes = ", ".join(f"{name} {list(model.shape)}" for name, model in MODELS.items())
    return "\n".join(
        [
            f"# Generators converted by convt_ext {meta['version']} on {meta['device']}",
            "",
            *partial_remark(meta),
            f"- {meta['date']}, source hash `{meta['source_hash']}`, torch {meta['torch']}, cuDNN {meta['cudnn']}",
            f"- Inputs: {shapes}; random weights, eval mode, batch normalizations folded and activations fused by the"
            " conversion, in dcgan",
            "",
            f"{'GPU' if meta['timer'] == 'graph' else 'CPU'} time of a forward pass, us, and relative Frobenius errors"
            " against float64. *Converted* is the model after `convt_ext.convert`; *gains* are the times without over"
            " those with it.",
            "",
            *variants_table(
                "model", rows, lambda row: "-" if MODELS[row.model].make is HifiGan else row.layout.upper()
            ),
        ]
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times whole generators, as they are and converted.")
    parser.add_argument("--models", type=some_of(list(MODELS)), default=list(MODELS), help="some of dcgan,unet,hifigan")
    add_arguments(parser, list(LAYOUTS))
    return parsed(parser, arguments)


def add_arguments(parser: argparse.ArgumentParser, layouts: list[str]) -> None:
    """What every benchmark of modules takes; `layouts` are those that it times unless it is told."""
    add = parser.add_argument
    add("--precisions", type=some_of(PRECISIONS), default=list(PRECISIONS), help="some of fp16,tf32,ieee")
    add("--layouts", type=some_of(list(LAYOUTS)), default=layouts, help="some of nchw,nhwc, where there are two")
    add("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    add("--small", action="store_true", help="small models and inputs")
    add("--output", type=Path, default=Path("build"), help="folder of the result files (default: build)")
    add("--source-hash", default="unknown", help="hash of the measured sources, as make source-hash prints it")
    add("--budget-ms", type=float, default=60.0, help="time per measurement (default: 60)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu makes a dry run")
    return options


Measure = Callable[[str, str, str, torch.device, argparse.Namespace], ModelRow]


def measure_all(
    cases: Sequence[tuple[str, str, str]],
    what: str,
    measure: Measure,
    render: Callable[[Sequence[ModelRow], dict[str, Any]], str],
    options: argparse.Namespace,
) -> None:
    """Measures all `cases`: a name, a precision and a layout each.

    The files <gpu>-<what>.json and .md hold what has been measured, and are complete with the last case.
    """
    device = torch.device(options.device)
    meta = describe(device, options.source_hash)
    torch.backends.cudnn.benchmark = True
    rows: list[ModelRow] = []
    file = options.output / f"{slug(meta['device'])}-{what}.json"
    options.output.mkdir(parents=True, exist_ok=True)
    for name, precision, layout in cases:
        rows.append(measure(name, precision, layout, device, options))
        meta["complete"] = len(rows) == len(cases)
        print(f"{name} {precision} {layout} " + ", ".join(f"{v} {us:.0f} us" for v, us in rows[-1].us.items()))
        file.write_text(json.dumps({"meta": meta, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
        file.with_suffix(".md").write_text(render(rows, meta))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    cases = [
        (name, precision, layout)
        for precision in options.precisions
        for name in options.models
        for layout in (options.layouts if len(MODELS[name].shape) == 4 else options.layouts[:1])
    ]
    measure_all(cases, "models", measure, markdown, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
