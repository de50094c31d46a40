"""The benchmark cases: transposed convolutions of published benchmarks, generators and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Pair = tuple[int, int]


def axis_products(size: int, output: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Number of (input pixel, tap) pairs of one axis whose product lands inside the output."""
    total = 0
    for tap in range(kernel):
        offset = tap * dilation - padding  # input i and this tap meet in output i * stride + offset
        first = max(0, -(offset // stride))
        last = min(size - 1, (output - 1 - offset) // stride)
        total += max(0, last - first + 1)
    return total


@dataclass(frozen=True)
class Case:
    """One problem: input [batch, cin, height, width], weight [cin, cout / groups, *kernel]."""

    name: str
    batch: int
    cin: int
    cout: int
    height: int
    width: int
    kernel: Pair
    stride: Pair
    padding: Pair
    output_padding: Pair
    dilation: Pair
    groups: int

    def output_size(self) -> Pair:
        """Height and width of the output."""
        height, width = (
            (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
            for size, kernel, stride, padding, output_padding, dilation in zip(
                (self.height, self.width),
                self.kernel,
                self.stride,
                self.padding,
                self.output_padding,
                self.dilation,
                strict=True,
            )
        )
        return height, width

    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.cin, self.height, self.width

    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.cin, self.cout // self.groups, *self.kernel

    def output_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.cout, *self.output_size()

    def macs(self) -> int:
        """Products that land inside the output: what a kernel that visits no zero and no cropped tap multiplies."""
        out_height, out_width = self.output_size()
        rows = axis_products(self.height, out_height, self.kernel[0], self.stride[0], self.padding[0], self.dilation[0])
        columns = axis_products(
            self.width, out_width, self.kernel[1], self.stride[1], self.padding[1], self.dilation[1]
        )
        return self.batch * self.cin * (self.cout // self.groups) * rows * columns

    def gemm_macs(self) -> int:
        """Products of the equivalent matrix product: every pixel with every tap, those that padding crops included."""
        taps = self.kernel[0] * self.kernel[1]
        return self.batch * self.cin * (self.cout // self.groups) * self.height * self.width * taps

    def read_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of input and weight."""
        pixels = self.batch * self.cin * self.height * self.width
        weights = self.cin * (self.cout // self.groups) * self.kernel[0] * self.kernel[1]
        return (pixels + weights) * dtype.itemsize

    def write_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the output."""
        height, width = self.output_size()
        return self.batch * self.cout * height * width * dtype.itemsize

    def bytes(self, dtype: torch.dtype) -> int:
        """Each element of input, weight and output once."""
        return self.read_bytes(dtype) + self.write_bytes(dtype)

    def arguments(self) -> tuple[Pair, Pair, Pair, int, Pair]:
        """Arguments of the operator after the bias: stride, padding, output_padding, groups, dilation."""
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation


# fmt: off
CASES: tuple[Case, ...] = tuple(Case(*row) for row in (
    # name, batch, cin, cout, height, width, kernel, stride, padding, output_padding, dilation, groups
    # KernelBench level 1
    ("kb57", 8, 64, 64, 1024, 1024, (3, 3), (1, 1), (0, 0), (0, 0), (1, 1), 1),
    ("kb65", 8, 64, 64, 512, 512, (3, 7), (1, 1), (0, 0), (0, 0), (1, 1), 1),
    ("kb69", 64, 64, 128, 128, 256, (3, 5), (1, 1), (0, 0), (0, 0), (1, 1), 1),
    ("kb71", 8, 32, 32, 512, 1024, (3, 3), (1, 1), (0, 0), (0, 0), (1, 1), 1),
    ("kb75", 16, 32, 64, 128, 256, (3, 5), (2, 3), (1, 2), (0, 0), (2, 1), 4),
    ("kb78", 8, 32, 32, 512, 1024, (3, 7), (1, 1), (1, 3), (0, 0), (1, 1), 1),
    ("kb81", 16, 32, 64, 64, 128, (3, 3), (5, 5), (1, 1), (0, 0), (2, 2), 1),
    # generators and decoders
    ("dcgan1", 128, 100, 512, 1, 1, (4, 4), (1, 1), (0, 0), (0, 0), (1, 1), 1),
    ("dcgan2", 128, 512, 256, 4, 4, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ("dcgan3", 128, 256, 128, 8, 8, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ("dcgan4", 128, 128, 64, 16, 16, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ("dcgan5", 128, 64, 3, 32, 32, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ("unet4", 8, 1024, 512, 32, 32, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
    ("unet1", 8, 128, 64, 256, 256, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
    ("maskrcnn", 512, 256, 256, 14, 14, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
    ("sam2", 16, 64, 32, 128, 128, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
    ("pose1", 32, 2048, 256, 8, 6, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ("pose3", 32, 256, 256, 32, 24, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ("pix2pix_last", 16, 128, 3, 128, 128, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    ("cyclegan_up", 8, 256, 128, 64, 64, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
    ("fsrcnn_x3", 16, 56, 1, 180, 320, (9, 9), (3, 3), (4, 4), (2, 2), (1, 1), 1),
    ("hifigan1", 16, 512, 256, 1, 400, (1, 16), (1, 8), (0, 4), (0, 0), (1, 1), 1),
    ("hifigan4", 16, 64, 32, 1, 51200, (1, 4), (1, 2), (0, 1), (0, 0), (1, 1), 1),
    ("pointpillars", 4, 256, 128, 62, 54, (4, 4), (4, 4), (0, 0), (0, 0), (1, 1), 1),
    ("depthwise_up", 32, 256, 256, 64, 64, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 256),
    ("stylegan2_up", 1, 8 * 512, 8 * 256, 64, 64, (3, 3), (2, 2), (0, 0), (0, 0), (1, 1), 8),
    ("kb_l2_2", 128, 64, 64, 128, 128, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1),
    ("b1_unet", 1, 256, 128, 64, 64, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1),
    ("b1_k4s2", 1, 64, 32, 128, 128, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
))
# fmt: on


def select(names: Sequence[str]) -> list[Case]:
    """The cases of these names, in table order; all of them for no names. Raises ValueError on an unknown name."""
    known = [case.name for case in CASES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no case named {', '.join(unknown)}; the cases are {', '.join(known)}")
    return [case for case in CASES if not names or case.name in names]
