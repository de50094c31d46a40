"""Errors against float64, and the check that a kernel wrote all of its output."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case

MAX_IMAGES = 8
MAX_MACS = 2 * 10**10  # products of the reference; one image is checked however many it has

# Largest |error| / sum |x| |w| that the library promises. Half-precision results are one rounding of an fp32 sum.
LIMITS = {
    "ieee": 1e-6,
    "tf32": 2.0**-10,
    "fp16": 1.01 * 2.0**-11 + 1e-6,
    "bf16": 1.01 * 2.0**-8 + 1e-6,
}
# Largest relative Frobenius error over the cases, where more is promised than follows from the above: cuDNN's.
FROBENIUS_LIMITS = {"ieee": 8.2e-7}


@dataclass(frozen=True)
class Reference:
    """Float64 results of some images of the batch."""

    images: list[int]
    value: Tensor  # [len(images), cout, out_height, out_width]
    magnitude: Tensor  # the same convolution of |input| with |weight|


@dataclass(frozen=True)
class Errors:
    frobenius: float  # ||output - reference|| / ||reference||
    scaled_max: float  # max of |output - reference| / sum |x| |w|


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normally distributed input and weight, the same for every run; outputs are of the order of one."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(case.name.encode()))
    products = case.macs() / math.prod(case.output_shape())
    x = torch.randn(case.input_shape(), generator=generator, device=device).to(dtype)
    weight = torch.randn(case.weight_shape(), generator=generator, device=device)
    return x, (weight / math.sqrt(max(products, 1.0))).to(dtype)


def checked_images(case: Case) -> list[int]:
    """Images of the batch that are compared with the reference: spread evenly, first and last among them."""
    count = max(1, min(case.batch, MAX_IMAGES, MAX_MACS * case.batch // case.gemm_macs()))
    if count == 1:
        return [case.batch - 1]  # the one with the largest offsets
    return [i * (case.batch - 1) // (count - 1) for i in range(count)]


@contextmanager
def _without_cudnn() -> Iterator[None]:
    # torch's own kernel (a matrix product and col2im) is far faster in float64 than cuDNN, and independent of it.
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


def reference(case: Case, x: Tensor, weight: Tensor) -> Reference:
    """The float64 result for `checked_images(case)`."""
    images = checked_images(case)
    x64, weight64 = x[images].double(), weight.double()
    with _without_cudnn():
        value = F.conv_transpose2d(x64, weight64, None, *case.arguments())
        magnitude = F.conv_transpose2d(x64.abs_(), weight64.abs_(), None, *case.arguments())
    return Reference(images, value, magnitude)


def errors(output: Tensor, ref: Reference) -> Errors:
    """Both errors of the checked images of a whole output; NaN where the output has one.

    Below the smallest normal number of the output's type the spacing of numbers is constant, hence the clamp.
    """
    difference = output[ref.images].double().sub_(ref.value)
    frobenius = difference.norm() / ref.value.norm()
    scale = ref.magnitude.clamp(min=torch.finfo(output.dtype).smallest_normal)
    return Errors(float(frobenius), float(difference.abs_().div_(scale).max()))


def broken_promises(found: Errors, precision: str, slack: float = 1.0) -> list[str]:
    """What is wrong with errors of a result computed in `precision`, in words; `slack` multiplies what is allowed."""
    scaled, frobenius = slack * LIMITS[precision], slack * FROBENIUS_LIMITS.get(precision, math.inf)
    messages = []
    if not found.scaled_max <= scaled:  # NaN is wrong too
        messages.append(f"max |error| / sum |x| |w| is {found.scaled_max:.2e}, promised is {scaled:.2e}")
    if not found.frobenius <= frobenius:
        messages.append(f"the relative Frobenius error is {found.frobenius:.2e}, promised is {frobenius:.2e}")
    return messages


def poisoned_output(call: Callable[[], Tensor], attempts: int = 4) -> tuple[Tensor, bool]:
    """An output that was computed into memory filled with NaN, and whether that came about.

    The caching allocator hands a block that was just freed to the next request of its size; the address tells whether
    it did. There is no such promise on the CPU, where the check is left out.
    """
    output = call()
    if not output.is_cuda:
        return output, False
    for _ in range(attempts):
        address = output.data_ptr()
        output.fill_(math.nan)
        del output
        output = call()
        if output.data_ptr() == address:
            return output, True
    return output, False
