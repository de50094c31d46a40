"""Times blocks of a transposed convolution and the pointwise work behind it: PyTorch's, and rewritten with ours.

    python -m benchmarks.blocks [--blocks subtract_tanh,gelu_groupnorm] [--precisions fp16,tf32,ieee]
                                [--layouts nchw] [--no-compile] [--output FOLDER] [--source-hash HASH] [--budget-ms MS]
    python -m benchmarks.blocks --device cpu --small   a dry run of this program

Eleven blocks in the style of KernelBench's second level, eager and under torch.compile, the same precision on all
sides. A block is rewritten as its user would: by `convt_ext.convert` where that is enough, else with what directly
follows the convolution in the operator's bias, activation, scale and shift, and the rest as it was. Beside every time
stands the relative Frobenius error against the block in float64. Writes <gpu>-blocks.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convt_ext
from benchmarks.models import ModelRow, add_arguments, measure_all, parsed, time_variants, variants_table
from benchmarks.report import partial_remark
from benchmarks.roofline import DTYPES
from benchmarks.run import some_of
from convt_ext._layers import LAYOUTS

CHECKED = 4  # images that are compared with float64; no block mixes images

Tail = Callable[[Tensor, Tensor], Tensor]


class Chain(nn.Module):
    """A transposed convolution, then a function of its output and of a bias [C, 1, 1] that the block has besides."""

    def __init__(self, conv: nn.Module, extra: Tensor, tail: Tail) -> None:
        super().__init__()
        self.conv = conv
        self.extra = nn.Parameter(extra)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv(x), self.extra)


@dataclass(frozen=True)
class Block:
    """A block, and how it is rewritten. Its transposed convolution has 64 input channels."""

    input: tuple[int, int]  # images, height and width
    conv: tuple[int, ...]  # output channels, kernel, stride, padding, output_padding
    tail: Tail | None = None
    #: Modules behind the convolution in a Sequential, which is converted as it is; instead of `tail`.
    modules: Callable[[int], list[nn.Module]] | None = None
    # The rewritten block: what is left behind the operator, its arguments, and its bias by its own and the block's.
    rest: Tail | None = None
    activation: str = "none"
    params: tuple[float, ...] = ()
    bias: Callable[[Tensor, Tensor], Tensor] = lambda bias, extra: bias

    @property
    def fuses(self) -> bool:
        """Whether the operator takes over some of what follows the convolution."""
        return self.rest is not None or self.modules is not None

    def make(self) -> tuple[nn.Module, nn.Module]:
        """The block in PyTorch, and rewritten, with the same weights."""
        conv = nn.ConvTranspose2d(64, *self.conv)
        if self.modules is not None:
            model = nn.Sequential(conv, *self.modules(self.conv[0])).eval()
            return model, convt_ext.convert(model)
        assert self.tail is not None
        extra = torch.randn(self.conv[0], 1, 1)
        ours = convt_ext.convert(deepcopy(conv))
        assert isinstance(ours, convt_ext.ConvTranspose2d)
        assert ours.bias is not None
        ours.bias.data = self.bias(ours.bias.data, extra.flatten())
        ours.activation, ours.params = self.activation, self.params
        return Chain(conv, extra, self.tail).eval(), Chain(ours, extra, self.rest or self.tail).eval()


def _normalization(channels: int) -> nn.BatchNorm2d:
    """One whose statistics are not those of a new one."""
    norm = nn.BatchNorm2d(channels)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


UP = (3, 2, 1, 1)  # twice as high and wide
BLOCKS = {
    "subtract_tanh": Block(
        (32, 128),
        (64, 4, 2, 1, 0),
        lambda y, extra: torch.tanh(y - extra),
        rest=lambda y, extra: y,
        activation="tanh",
        bias=lambda bias, extra: bias - extra,
    ),
    "bias_clamp_scale_clamp_divide": Block(
        (64, 64),
        (64, *UP),
        lambda y, extra: torch.clamp(torch.clamp(y + extra, 0.0, 1.0) * 2.0, 0.0, 1.0) / 2.0,
        # Doubled, cut at one and halved, it is cut at a half.
        rest=lambda y, extra: y,
        activation="clamp",
        params=(0.0, 0.5),
        bias=lambda bias, extra: bias + extra,
    ),
    "add_min_gelu_multiply": Block(
        (64, 64),
        (128, 4, 2, 0, 0),
        lambda y, extra: F.gelu(torch.clamp(y + 0.5, max=0.0)) * 2.0,
        rest=lambda y, extra: F.gelu(y) * 2.0,
        activation="clamp",
        params=(float("-inf"), 0.0),
        bias=lambda bias, extra: bias + 0.5,
    ),
    "mish_add_hardtanh_scale": Block(
        (64, 64),
        (64, *UP),
        lambda y, extra: F.hardtanh(F.mish(y) + 0.5, -1.0, 1.0) * 2.0,
        rest=lambda y, extra: F.hardtanh(y, -1.0, 1.0) * 2.0,
        activation="mish",
        params=(1.0, 0.5),
    ),
    "softmax_bias_scale_sigmoid": Block(
        (64, 64), (128, 4, 2, 1, 1), lambda y, extra: torch.sigmoid((torch.softmax(y, 1) + extra) * 2.0)
    ),
    "batchnorm_tanh_maxpool_groupnorm": Block(
        (256, 32),
        (128, 5, 1, 1, 0),
        modules=lambda c: [_normalization(c), nn.Tanh(), nn.MaxPool2d(2, 2), nn.GroupNorm(8, c)],
    ),
    "mean_bias_logsumexp": Block(
        (16, 256),
        (128, 3, 1, 0, 0),
        lambda y, extra: torch.logsumexp(y.mean((2, 3), keepdim=True) + extra, 1).sum((1, 2)) * 10.0,
    ),
    "min_sum_gelu_bias": Block(
        (16, 128), (128, *UP), lambda y, extra: F.gelu(y.amin(1, keepdim=True).sum(2, keepdim=True)) + extra
    ),
    "maxpool_hardtanh_mean_tanh": Block(
        (64, 128),
        (64, 3, 1, 1, 0),
        lambda y, extra: torch.tanh(F.hardtanh(F.max_pool2d(y, 2)).mean((2, 3), keepdim=True)),
        # It rises, and so may come before the pooling.
        rest=lambda y, extra: torch.tanh(F.max_pool2d(y, 2).mean((2, 3), keepdim=True)),
        activation="hardtanh",
    ),
    "gelu_groupnorm": Block((64, 128), (64, 3, 1, 0, 0), modules=lambda c: [nn.GELU(), nn.GroupNorm(8, c)]),
    "multiply_mean_mean": Block(
        (16, 128),
        (128, *UP),
        lambda y, extra: (y * 0.5).mean((2, 3), keepdim=True).mean((2, 3), keepdim=True),
        rest=lambda y, extra: y.mean((2, 3), keepdim=True).mean((2, 3), keepdim=True),
        params=(0.5, 0.0),
    ),
}


def measure(name: str, precision: str, layout: str, device: torch.device, options: argparse.Namespace) -> ModelRow:
    """One row. The weights and the input are those of one seed."""
    block = BLOCKS[name]
    torch.manual_seed(0)
    model, rewritten = block.make()
    images, side = (2, 6) if options.small else block.input
    x = torch.randn(images, 64, side, side)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with torch.inference_mode():
        expected = deepcopy(model).to(device, torch.float64)(x[:CHECKED].to(device, torch.float64))
        placed: dict[str, Any] = {"device": device, "dtype": DTYPES[precision], "memory_format": LAYOUTS[layout]}
        row = ModelRow(name, precision, layout, {}, {})
        time_variants(row, model.to(**placed), rewritten.to(**placed), x.to(**placed), expected, options)
    return row


def markdown(rows: Sequence[ModelRow], meta: dict[str, Any]) -> str:
    """The page of the results."""

    def described(name: str) -> str:
        images, side = BLOCKS[name].input
        cout, kernel, stride, *_ = BLOCKS[name].conv
        layer = f"[{images}, 64, {side}, {side}] to {cout} channels, kernel {kernel}, stride {stride}"
        return f"- {name}: {layer}{'' if BLOCKS[name].fuses else '; nothing is fused'}"

    return "\n".join(
        [
            f"# Blocks with the operators of convt_ext {meta['version']} on {meta['device']}",
            "",
            *partial_remark(meta),
            f"- {meta['date']}, source hash `{meta['source_hash']}`, torch {meta['torch']}, cuDNN {meta['cudnn']}",
            "",
            "Inputs and transposed convolutions; where *nothing is fused*, the operator takes the convolution's place,"
            " and what follows stays:",
            "",
            *map(described, dict.fromkeys(row.model for row in rows)),
            "",
            f"{'GPU' if meta['timer'] == 'graph' else 'CPU'} time of a block in eval mode, us, and relative Frobenius"
            f" errors against float64 of the first {CHECKED} images. *Converted* is the block rewritten with this"
            " package, in `benchmarks/blocks.py`; *gains* are the times without over those with it.",
            "",
            *variants_table("block", rows, lambda row: row.layout.upper()),
        ]
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times blocks, in PyTorch and rewritten with this package.")
    parser.add_argument("--blocks", type=some_of(list(BLOCKS)), default=list(BLOCKS), help="some of them, by name")
    add_arguments(parser, ["nchw"])
    return parsed(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    cases = [(name, p, layout) for p in options.precisions for name in options.blocks for layout in options.layouts]
    measure_all(cases, "blocks", measure, markdown, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
