"""The float64 reference, the accuracy promise and the inputs that every test shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import convt_ext

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Kernels by name, and the dtypes that each takes.
KERNEL_DTYPES = {
    "generic": DTYPES,
    "depthwise": (torch.float16, torch.bfloat16, torch.float32),
    "thin": (torch.float16, torch.bfloat16, torch.float32),
    "thin_simt": (torch.float32,),
    "tile_simt": (torch.float16, torch.bfloat16, torch.float32),
    "tile_mma": (torch.float16, torch.bfloat16, torch.float32),
    "tile_wgmma": (torch.float16, torch.bfloat16, torch.float32),
    "col2im": (torch.float16, torch.bfloat16),
    "implicit_gemm": (torch.float16, torch.bfloat16, torch.float32),
    "halo_gemm": (torch.float32,),
    "pixel_gemm": (torch.float16, torch.bfloat16, torch.float32),
    "scatter_gemm": (torch.float16, torch.bfloat16, torch.float32),
    "phase_gemm": (torch.float16, torch.bfloat16, torch.float32),
}
# Kernels that always compute float32 in IEEE arithmetic, and those that follow torch's TF32 flag.
CUDA_KERNELS = ("generic", "depthwise", "tile_simt")
TENSOR_CORE_KERNELS = ("thin", "tile_mma", "tile_wgmma", "implicit_gemm", "phase_gemm")
# Kernels of tensor cores that take 16-bit types alone.
HALF_KERNELS = ("col2im",)
# Kernels of tensor cores that take input images of one pixel alone.
ONE_PIXEL_KERNELS = ("pixel_gemm",)
# Kernels of tensor cores that take filters no longer than the stride alone, of contiguous images whose width is a
# multiple of four.
DISJOINT_KERNELS = ("scatter_gemm",)
# Kernels of tensor cores that take float32 alone: in NCHW of widths, in channels_last of channels, that are a multiple
# of four.
WHOLE_FOURS_KERNELS = ("halo_gemm",)
# Kernels of the FMA units that take a few filters alone, of contiguous images whose width is a multiple of four: side
# and stride of each along both axes, and the output channels that a group may have.
LISTED_FILTERS = {
    "thin_simt": {(3, 2): (1, 3), (4, 2): (1, 2, 3, 4), (5, 2): (1, 3), (9, 2): (1,), (9, 3): (1,), (9, 4): (1,)}
}
# Kernels of tensor cores that take groups of few input channels alone, and how many in every dtype.
FEW_CHANNELS_KERNELS = {"phase_gemm": 32}
# What tensor cores compute in, and the dtype of the tensors. TF32 is disallowed in every test (see conftest.py) but
# where `tf32_allowed` says otherwise.
TENSOR_CORE_PRECISIONS = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "ieee": torch.float32,
    "tf32": torch.float32,
}
NEEDS_CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU, or a CPU build of torch"),
)
# The reference of a problem with more products than this is computed on the tensor's own device.
_PRODUCTS_ON_HOST = 2**30


def takes(kernel: str | None, dtype: torch.dtype) -> bool:
    """Whether a forced kernel computes in the dtype; the plan's own choice does in every one."""
    return kernel is None or dtype in KERNEL_DTYPES[kernel]


def takes_precision(kernel: str, precision: str) -> bool:
    """Whether a forced kernel of tensor cores computes in one of TENSOR_CORE_PRECISIONS."""
    return takes(kernel, TENSOR_CORE_PRECISIONS[precision])


def skip_without_code_for(kernel: str) -> None:
    """Skips the running test where the GPU, or the build, has no code for the kernel."""
    if kernel not in ("tile_wgmma", "col2im", "implicit_gemm", "halo_gemm"):
        return
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip(f"{kernel} needs compute capability 9.0")
    if "9.0a" not in json.loads(torch.ops.convt._info())["archs"]:
        pytest.skip(f"{kernel} needs a build for 9.0a")


# Why a forced kernel may refuse a geometry: the sizes of its tables and of shared memory.
_LIMITS = (
    "the filter has more taps than its table holds",
    "the filter has more taps than a product has rows",
    "its input images have one pixel",
    "its tables hold 64 taps along an axis",
    "its tables hold 64 phases along an axis",
    "it has too many phases",
    "a group has too many input channels",
    "no tile with its halo fits in shared memory",
    "the weight does not fit in shared memory",
)


def beyond_limits(kernel: str | None, x: Tensor, w: Tensor, b: Tensor | None, **arguments: Any) -> str:
    """Why the geometry is too large for the forced kernel; empty if it is not."""
    try:
        convt_ext.plan(x, w, b, **arguments)
    except RuntimeError as error:
        reasons = [f"CONVT_KERNEL={kernel} cannot compute this problem: {limit}" for limit in _LIMITS]
        if not any(str(error).endswith(reason) for reason in reasons):
            raise
        return str(error)
    return ""


def lacks_room(kernel: str | None, x: Tensor, w: Tensor, b: Tensor | None, **arguments: Any) -> bool:
    """Whether the forced kernel takes groups of few channels, but not so large a problem of them in this layout."""
    return kernel in FEW_CHANNELS_KERNELS and bool(beyond_limits(kernel, x, w, b, **arguments))


def skip_beyond_limits(kernel: str | None, x: Tensor, w: Tensor, b: Tensor | None, **arguments: Any) -> None:
    """Skips the running test where the geometry is too large for the forced kernel."""
    if reason := beyond_limits(kernel, x, w, b, **arguments):
        pytest.skip(reason)


def launches(
    monkeypatch: pytest.MonkeyPatch,
    kernel: str | None,
    ranks: Iterable[int],
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    **arguments: Any,
) -> Iterator[str]:
    """Forces a kernel's launches of some ranks, ascending, as far as the problem has so many; yields their plans."""
    for rank in ranks:
        monkeypatch.setenv("CONVT_KERNEL", f"{kernel}:{rank}")
        try:
            line = convt_ext.plan(x, w, b, **arguments)
        except RuntimeError as error:
            if "launches of" not in str(error):
                raise
            return
        yield line


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Sets torch's flag for convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def check_launches(
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    ranks: Iterable[int],
    geometry: Geometry,
    precision: str,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
) -> int:
    """Computes with launches of some ranks, twice each and with an activation; returns how many there are."""
    known, tried = reference(x, w, b, **geometry.arguments), 0
    with tf32_allowed(precision == "tf32"):
        for line in launches(monkeypatch, kernel, ranks, x, w, b, **geometry.arguments):
            poison(geometry.output, x.dtype, x.device)
            out = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
            assert_accurate(out, x, w, b, line, known, **geometry.arguments)
            assert torch.equal(convt_ext.conv_transpose2d(x, w, b, **geometry.arguments), out), line
            active = convt_ext.conv_transpose2d_act(x, w, b, **geometry.arguments, activation="relu")
            assert torch.equal(active, torch.relu(out)), line
            tried += 1
    return tried


def check_activation(
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    geometry: Geometry,
    activation: str,
    tolerance: float,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
) -> None:
    """A kernel with an activation, or with a scale and a shift alone, is near `generic`, which has other sums."""
    params = [2.0, -1.0] if activation == "none" else []
    outputs = []
    for name in (kernel, "generic"):
        monkeypatch.setenv("CONVT_KERNEL", name)
        poison(geometry.output, x.dtype, x.device)
        outputs.append(
            torch.ops.convt.conv_transpose2d_act(
                x, w, b, *geometry.arguments.values(), activation=activation, params=params
            )
        )
    torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)


def check_more_than_2_31_outputs(
    x: Tensor, stride: tuple[int, int], layout: Callable[[Tensor], Tensor] = lambda x: x
) -> None:
    """A 1 x 1 filter with a stride, of x[N, 8, H, W] in float16: outputs that it does not reach hold the bias."""
    w = random_tensor((8, 32, 1, 1), torch.float16, x.device, 1)
    b = random_tensor((32,), torch.float16, x.device, 2)
    out = convt_ext.conv_transpose2d(layout(x), w, b, stride=stride)
    assert out.numel() > 2**31
    sums = torch.einsum("nchw,cd->ndhw", x.double(), w[:, :, 0, 0].double()) + b.double()[:, None, None]
    reached = out[:, :, :: stride[0], :: stride[1]]
    torch.testing.assert_close(reached.double(), sums, rtol=1e-3, atol=1e-3)
    reached.copy_(b[:, None, None].expand_as(reached))
    for channel in range(32):
        assert (out[:, channel] == b[channel]).all()


@dataclass(frozen=True)
class Target:
    """Where a test runs: a device type, and the kernel that CONVT_KERNEL forces, if any."""

    device: str
    kernel: str | None = None

    def __str__(self) -> str:
        return self.device if self.kernel is None else f"{self.device}-{self.kernel}"


CUDA_TARGETS = tuple(pytest.param(Target("cuda", kernel), marks=NEEDS_CUDA) for kernel in (None, *CUDA_KERNELS))
TARGETS = (Target("cpu"), *CUDA_TARGETS)
# For the `target` fixture: pytest.mark.parametrize("target", ..., indirect=True).
# Every activation, with numbers for those that take some; scale and shift where they have no other.
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "none": (2.0, -1.0),
    "relu": (),
    "leaky_relu": (0.2,),
    "elu": (1.5, 2.0, -1.0),
    "silu": (),
    "gelu": (),
    "gelu_tanh": (),
    "mish": (),
    "sigmoid": (),
    "tanh": (),
    "hardtanh": (-0.5, 0.5),
    "clamp": (0.0, 1.0),
    "hardswish": (),
}
TENSOR_CORE_TARGETS = [pytest.param(Target("cuda", kernel), marks=NEEDS_CUDA) for kernel in TENSOR_CORE_KERNELS]
HALF_TARGETS = [pytest.param(Target("cuda", kernel), marks=NEEDS_CUDA) for kernel in HALF_KERNELS]


def on_kernel(kernel: str) -> pytest.MarkDecorator:
    """Runs a test on one kernel, as its `target`."""
    targets = [pytest.param(Target("cuda", kernel), marks=NEEDS_CUDA)]
    return pytest.mark.parametrize("target", targets, indirect=True, ids=str)


def on_tensor_cores(*precisions: str) -> pytest.MarkDecorator:
    """Runs a test for each kernel of tensor cores, as its `target`, in each `precision` that the kernel takes."""
    cases = [
        pytest.param(Target("cuda", kernel), precision, marks=NEEDS_CUDA, id=f"cuda-{kernel}-{precision}")
        for kernel in (*TENSOR_CORE_KERNELS, *HALF_KERNELS)
        for precision in precisions or TENSOR_CORE_PRECISIONS
        if takes_precision(kernel, precision)
    ]
    return pytest.mark.parametrize(("target", "precision"), cases, indirect=["target"])


@dataclass(frozen=True)
class Geometry:
    """One transposed convolution without its data; `input` is [N, Cin, H, W], or [Cin, H, W] for an unbatched one."""

    name: str
    input: tuple[int, ...]
    cout: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    @property
    def weight(self) -> tuple[int, int, int, int]:
        return (self.input[-3], self.cout // self.groups, *self.kernel)

    @property
    def output(self) -> tuple[int, ...]:
        """The shape that the documentation of torch.nn.ConvTranspose2d gives."""
        sides = [
            (self.input[axis - 2] - 1) * self.stride[axis]
            - 2 * self.padding[axis]
            + self.dilation[axis] * (self.kernel[axis] - 1)
            + self.output_padding[axis]
            + 1
            for axis in (0, 1)
        ]
        return (*self.input[:-3], self.cout, *sides)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments after bias, as torch.nn.functional.conv_transpose2d takes them."""
        return {
            "stride": list(self.stride),
            "padding": list(self.padding),
            "output_padding": list(self.output_padding),
            "groups": self.groups,
            "dilation": list(self.dilation),
        }

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input, weight and bias on a fixed seed; outputs are of the order of one."""
        terms = self.weight[0] // self.groups * self.kernel[0] * self.kernel[1]
        x = random_tensor(self.input, dtype, device, seed)
        w = random_tensor(self.weight, dtype, device, seed + 1, scale=terms**-0.5)
        return x, w, random_tensor((self.cout,), dtype, device, seed + 2) if self.bias else None


def suited(geometry: Geometry, kernel: str | None, layout: str = "contiguous") -> Geometry:
    """The geometry, with input images, channels and a filter that a forced kernel takes."""
    if kernel in ONE_PIXEL_KERNELS:
        return replace(geometry, input=(*geometry.input[:-2], 1, 1))
    if kernel in DISJOINT_KERNELS:
        columns = (geometry.input[-1] + 3) // 4 * 4
        spans = [geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1 for axis in (0, 1)]
        stride = max(geometry.stride[0], spans[0]), max(geometry.stride[1], spans[1])
        return replace(geometry, input=(*geometry.input[:-1], columns), stride=stride)
    if kernel in WHOLE_FOURS_KERNELS and layout == "channels_last":
        cin = geometry.groups * ((geometry.input[-3] // geometry.groups + 3) // 4 * 4)
        return replace(geometry, input=(*geometry.input[:-3], cin, *geometry.input[-2:]))
    if kernel in WHOLE_FOURS_KERNELS:
        return replace(geometry, input=(*geometry.input[:-1], (geometry.input[-1] + 3) // 4 * 4))
    if kernel in LISTED_FILTERS:
        listed = LISTED_FILTERS[kernel]
        side, stride = geometry.kernel[0], geometry.stride[0]
        if (geometry.kernel, geometry.stride) != ((side, side), (stride, stride)) or (side, stride) not in listed:
            side, stride = 4, 2
        return replace(
            geometry,
            input=(*geometry.input[:-1], (geometry.input[-1] + 3) // 4 * 4),
            cout=geometry.groups * max(n for n in listed[side, stride] if n * geometry.groups <= geometry.cout),
            kernel=(side, side),
            stride=(stride, stride),
            output_padding=(min(geometry.output_padding[0], stride - 1), min(geometry.output_padding[1], stride - 1)),
            dilation=(1, 1),
        )
    if kernel in FEW_CHANNELS_KERNELS:
        cin = geometry.groups * min(geometry.input[-3] // geometry.groups, FEW_CHANNELS_KERNELS[kernel])
        return replace(geometry, input=(*geometry.input[:-3], cin, *geometry.input[-2:]))
    return geometry


def random_tensor(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0, scale: float = 1.0
) -> Tensor:
    """Normal numbers drawn on the CPU, so that every device gets the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype).to(device)


def embed(x: Tensor, view: Callable[[Tensor], Tensor], shape: list[int]) -> Tensor:
    """Puts the values of x into a view of a larger tensor, the rest of which is NaN, so that a stray read shows."""
    storage = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)
    out = view(storage)
    out.copy_(x)
    return out


def with_gaps(x: Tensor, vector: int) -> Tensor:
    """A window of larger images, whose distances are multiples of `vector` elements."""
    n, c, h, w = x.shape
    width = (w + vector - 1) // vector * vector + 2 * vector
    return embed(x, lambda s: s[:, :c, 1 : 1 + h, vector : vector + w], [n, c + 1, h + 2, width])


def off_by_one(x: Tensor) -> Tensor:
    """Dense as x is, from the second element of its storage on."""
    return embed(x, lambda s: s.as_strided(x.shape, x.stride(), 1), [x.numel() + 1])


def every_second(b: Tensor | None) -> Tensor | None:
    """The bias as a view with stride 2."""
    return None if b is None else embed(b, lambda s: s[::2], [2 * b.numel()])


def _contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _channels_last(x: Tensor) -> Tensor:
    """NHWC memory; an unbatched tensor gets the HWC memory of one image."""
    return x.clone(memory_format=torch.channels_last) if x.dim() == 4 else _channels_last(x[None])[0]


def _sliced(x: Tensor) -> Tensor:
    """A window of larger images: odd offset, rows with a gap."""
    h, w = x.shape[-2:]
    return embed(x, lambda s: s[..., 1 : 1 + h, 3 : 3 + w], [*x.shape[:-2], h + 3, w + 5])


def _strided(x: Tensor) -> Tensor:
    """Every second row and every eighth column of larger images: all distances are multiples of a vector."""
    h, w = x.shape[-2:]
    return embed(x, lambda s: s[..., ::2, ::8][..., :h, :w], [*x.shape[:-2], 2 * h, 8 * w])


def _transposed(x: Tensor) -> Tensor:
    """Height runs fastest in memory."""
    return x.mT.contiguous().mT


def _channels_sliced(x: Tensor) -> Tensor:
    """Some channels of channels_last images: strides like channels_last, with gaps between pixels."""
    c, h, w = x.shape[-3:]
    return embed(x, lambda s: s[..., 1 : 1 + c].movedim(-1, -3), [*x.shape[:-3], h, w, c + 2])


def _expanded(x: Tensor) -> Tensor:
    """Zero strides: every row of an image is its first one, every channel the first channel."""
    return x[..., :1, :1, :].expand(x.shape)


# The largest float32 that does not become infinite when it is rounded to TF32.
LARGEST_ROUNDED = float.fromhex("0x1.ffdffep127")
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "strided": _strided,
    "transposed": _transposed,
    "channels_sliced": _channels_sliced,
    "expanded": _expanded,
}


def reference(x: Tensor, w: Tensor, b: Tensor | None, **arguments: Any) -> tuple[Tensor, Tensor]:
    """The float64 result, and the float64 sum of the magnitudes of the terms behind each of its elements.

    In the magnitudes a subnormal float32 number counts as the smallest normal one on CUDA: in the formats of the tensor
    cores the distance between numbers is the same from there down.
    """
    products = x.numel() * (w.numel() // max(w.shape[0], 1))
    device = x.device if x.is_cuda and products > _PRODUCTS_ON_HOST else torch.device("cpu")
    least = torch.finfo(torch.float32).smallest_normal if x.is_cuda and x.dtype == torch.float32 else 0.0
    x, w = x.detach().to(device, torch.float64).contiguous(), w.detach().to(device, torch.float64).contiguous()
    b = None if b is None else b.detach().to(device, torch.float64)
    expected = F.conv_transpose2d(x, w, b, **arguments)
    factors = (t.abs().clamp(min=least).where(t != 0, 0.0) for t in (x, w))
    magnitude = F.conv_transpose2d(*factors, None if b is None else b.abs(), **arguments)
    return expected, magnitude


def float32_precision(device_type: str) -> str:
    """What torch asks of float32: "tf32" on CUDA where its flag allows that, else "ieee"."""
    return "tf32" if device_type == "cuda" and torch.backends.cudnn.allow_tf32 else "ieee"


def tolerance(dtype: torch.dtype, expected: Tensor, magnitude: Tensor, taps: int, device_type: str) -> Tensor:
    """The promised bound on the error of each element.

    float32 loses what rounding both factors to TF32 loses where torch allows that, and next to nothing elsewhere; the
    half types are one rounding of a sum accumulated in float32. On the CPU the op is PyTorch's own, which adds the taps
    in the half type: one rounding for each of them, one for the channel sum and one for the bias.
    """
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    if dtype == torch.float64:
        return 1e-13 * magnitude + subnormal
    if dtype == torch.float32:
        share = 2**-10 if float32_precision(device_type) == "tf32" else 1e-6
        # Each product and each sum may lose half of the smallest subnormal number.
        return share * magnitude + 4096 * subnormal
    if device_type == "cpu":
        return info.eps / 2 * 1.01 * (taps + 2) * (magnitude + info.smallest_normal)
    return info.eps / 2 * 1.01 * expected.abs() + 1e-6 * magnitude + subnormal


def assert_accurate(
    actual: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    context: str = "",
    known: tuple[Tensor, Tensor] | None = None,
    **arguments: Any,
) -> None:
    """Checks shape, dtype, device, strides and, element by element, the promised accuracy; all inputs finite.

    `known` is what `reference` gave for the same values in another layout.
    """
    expected, magnitude = known or reference(x, w, b, **arguments)
    assert actual.shape == expected.shape, f"{context}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert (actual.dtype, actual.device) == (x.dtype, x.device), f"{context}: {actual.dtype} on {actual.device}"
    assert_promised_strides(actual, x, context)
    got = actual.detach().to(expected.device, torch.float64)
    bound = tolerance(x.dtype, expected, magnitude, w.shape[2] * w.shape[3], x.device.type)
    bad = ~((got - expected).abs() <= bound)  # written so that NaN is bad
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        share = ((got - expected).abs() / bound).nan_to_num(float("inf")).max().item()
        raise AssertionError(
            f"{context}: {int(bad.sum())} of {bad.numel()} elements beyond the bound (at worst {share:.3g} times it); "
            f"first at {first}: got {got[first].item():.9g}, expected {expected[first].item():.9g} "
            f"+- {bound[first].item():.3g}"
        )


def suggests_channels_last(x: Tensor) -> bool:
    """The rule of torch's Tensor::suggest_memory_format, from c10/core/MemoryFormat.h."""
    if x.dim() != 4 or x.stride(1) == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        size, stride = x.shape[axis], x.stride(axis)
        if size == 0 or stride < least:
            return False
        if axis == 0 and least == x.stride(1):  # N111 and the like: read as contiguous
            return False
        least = stride * size if size > 1 else stride
    return True


def promised_strides(output_shape: tuple[int, ...], x: Tensor) -> tuple[int, ...]:
    """Strides of a dense output: channels_last exactly when torch suggests that format for the input."""
    memory_format = torch.channels_last if suggests_channels_last(x) else torch.contiguous_format
    return torch.empty(output_shape, device="meta", memory_format=memory_format).stride()


def assert_promised_strides(output: Tensor, x: Tensor, context: str = "") -> None:
    expected = promised_strides(tuple(output.shape), x)
    assert output.stride() == expected, (
        f"{context}: output strides {output.stride()}, promised {expected} "
        f"for input {list(x.shape)} with strides {x.stride()}"
    )


def poison(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> None:
    """Leaves NaN in the blocks that CUDA's caching allocator hands out next, so that an unwritten output shows."""
    if torch.device(device).type != "cuda":
        return
    count = 1
    for side in shape:
        count *= side
    # All bits set is NaN in each of the four dtypes.
    blocks = [torch.full((count * dtype.itemsize,), 255, dtype=torch.uint8, device=device) for _ in range(3)]
    del blocks


def _by_direction(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


# Derivatives of derivatives of a function of one tensor to a number, by torch.func.
NESTED_TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad of grad": lambda f, x: torch.func.grad(lambda x: torch.func.grad(f)(x).square().sum())(x),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "jvp of grad": lambda f, x: _by_direction(torch.func.grad(f), x),
    "grad of jvp": lambda f, x: torch.func.grad(partial(_by_direction, f))(x),
    "jvp of jvp": lambda f, x: _by_direction(partial(_by_direction, f), x),
    "vmap of hessian": lambda f, x: torch.vmap(torch.func.hessian(f))(torch.stack([x, 2 * x])),
}
