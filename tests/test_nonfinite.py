"""Where inf and NaN go: exactly where the float64 reference has them, or never beyond the filter's footprint."""

from __future__ import annotations

import dataclasses
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from reference import (
    ACTIVATIONS,
    DISJOINT_KERNELS,
    LAYOUTS,
    ONE_PIXEL_KERNELS,
    TARGETS,
    TENSOR_CORE_KERNELS,
    TENSOR_CORE_PRECISIONS,
    TENSOR_CORE_TARGETS,
    WHOLE_FOURS_KERNELS,
    Geometry,
    Target,
    launches,
    on_kernel,
    on_tensor_cores,
    poison,
    reference,
    suited,
    tf32_allowed,
    tolerance,
)
from torch import Tensor

import convt_ext

INF, NAN = float("inf"), float("nan")
# Kernels that multiply the zeros beyond the input's edge by weights: an infinite weight gives NaN there.
MULTIPLIES_PADDING = ("thin_simt", "tile_simt", "tile_mma", "tile_wgmma", "implicit_gemm", "halo_gemm", "phase_gemm")
# Kernels of tensor cores, which may add up parts of an infinite sum of float32 that have no sum.
SPLITS_SUMS = (*TENSOR_CORE_KERNELS, *ONE_PIXEL_KERNELS, *DISJOINT_KERNELS, *WHOLE_FOURS_KERNELS)

GEOMETRIES = (
    Geometry("stride_1", (2, 5, 6, 7), 4, (3, 3), padding=(1, 1)),
    Geometry("stride_2", (2, 9, 5, 7), 33, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("stride_over_kernel", (1, 5, 4, 5), 3, (2, 2), stride=(3, 4), output_padding=(2, 1)),
    Geometry("dilation", (1, 6, 6, 5), 4, (3, 2), stride=(2, 3), dilation=(3, 2), padding=(2, 1), groups=2),
    Geometry("depthwise", (3, 6, 5, 4), 6, (3, 3), stride=(2, 1), padding=(1, 0), groups=6),
    Geometry("depthwise_vectors", (2, 8, 9, 12), 8, (3, 3), padding=(1, 1), groups=8),
    Geometry("depthwise_up", (2, 4, 20, 6), 4, (4, 4), stride=(2, 2), padding=(1, 1), groups=4),
    Geometry("groups_of_3", (2, 6, 9, 8), 4, (7, 3), stride=(1, 2), padding=(3, 1), groups=2),
    Geometry("few_channels", (2, 2, 5, 40), 1, (5, 5), stride=(2, 2), padding=(2, 2), output_padding=(1, 1)),
    Geometry("many_images", (19, 8, 2, 2), 5, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("folded", (2, 9, 5, 6), 12, (4, 4), stride=(2, 2)),
    Geometry("pairs", (2, 9, 6, 21), 20, (3, 4), padding=(1, 2)),
    Geometry("phases_disagree", (2, 9, 6, 20), 20, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
values = pytest.mark.parametrize("value", [INF, -INF, NAN], ids=str)
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])


# Every kernel of tensor cores, in float32 of either mode and in a 16-bit type.
tensor_cores = on_tensor_cores("fp16", "ieee", "tf32")


def kernel_of(target: Target, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> str:
    return convt_ext.plan(x, w, b, **geometry.arguments).split()[0]


def reach_of_weight(w: Tensor, geometry: Geometry) -> Tensor:
    """Outputs that the non-finite taps of w would reach were the input surrounded by zeros; a boolean tensor.

    An endless input is one that is as large as any output needs; of its output, the part that the real one covers.
    """
    margin = [
        (geometry.kernel[axis] - 1) * geometry.dilation[axis] // geometry.stride[axis] + 2 + geometry.padding[axis]
        for axis in (0, 1)
    ]
    sizes = [geometry.input[axis - 2] + 2 * margin[axis] for axis in (0, 1)]
    everywhere = torch.ones(1, geometry.input[-3], *sizes, dtype=torch.float64)
    taps = (~torch.isfinite(w.cpu())).double()
    arguments = geometry.arguments | {"padding": 0, "output_padding": 0}
    full = F.conv_transpose2d(everywhere, taps, None, **arguments)
    starts = [margin[axis] * geometry.stride[axis] + geometry.padding[axis] for axis in (0, 1)]
    height, width = geometry.output[-2:]
    return full[..., starts[0] : starts[0] + height, starts[1] : starts[1] + width] > 0.5


def assert_placement(out: Tensor, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, kernel: str) -> None:
    expected, _ = reference(x, w, b, **geometry.arguments)
    clean = [None if t is None else t.nan_to_num(0.0, 0.0, 0.0) for t in (x, w, b)]
    _, magnitude = reference(*clean, **geometry.arguments)
    got, finite = out.double().cpu(), torch.isfinite(expected)
    # What the reference has non-finite is non-finite, and of the same kind, but for what SPLITS_SUMS says.
    assert torch.isnan(got[torch.isnan(expected)]).all()
    infinite = torch.isinf(expected)
    same = got[infinite] == expected[infinite]
    if kernel in SPLITS_SUMS and out.dtype == torch.float32:
        same |= torch.isnan(got[infinite])
    assert same.all()
    allowed = torch.zeros_like(finite)
    if kernel in MULTIPLIES_PADDING:
        allowed = reach_of_weight(w, geometry).expand_as(finite)
    elif kernel == "aten" and not torch.isfinite(w).all():
        # Where torch's own CPU code multiplies padding by weights depends on its version and on the processor.
        allowed = torch.ones_like(finite)
    strays = finite & ~torch.isfinite(got) & ~allowed
    assert not strays.any(), (
        f"{int(strays.sum())} outputs out of reach are not finite, first {strays.nonzero()[0].tolist()}"
    )
    both = finite & torch.isfinite(got)
    bound = tolerance(out.dtype, expected, magnitude, w.shape[2] * w.shape[3], out.device.type)
    assert ((got - expected).abs() <= bound)[both].all(), "finite outputs are inaccurate"


def run(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    poison(geometry.output, x.dtype, x.device)
    return convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)


def check_input(geometry: Geometry, layout: str, value: float, target: Target, dtype: torch.dtype) -> None:
    """Single elements of the input: in the corners, where padding crops, and inside."""
    x, w, b = geometry.tensors(dtype, target.device)
    n, c, h, w_side = geometry.input
    for place in ((0, 0, 0, 0), (n - 1, c - 1, h - 1, w_side - 1), (n // 2, c // 2, h // 2, w_side // 3)):
        spoilt = x.clone()
        spoilt[place] = value
        spoilt = LAYOUTS[layout](spoilt)
        assert_placement(run(spoilt, w, b, geometry), spoilt, w, b, geometry, kernel_of(target, spoilt, w, b, geometry))


def check_weight(geometry: Geometry, layout: str, value: float, target: Target, dtype: torch.dtype) -> None:
    """Single taps: the corners of the filter, and its middle."""
    x, w, b = geometry.tensors(dtype, target.device)
    x = LAYOUTS[layout](x)
    last = [side - 1 for side in geometry.weight]
    for place in ((0, 0, 0, 0), tuple(last), (last[0] // 2, last[1] // 2, last[2] // 2, last[3] // 2)):
        spoilt = w.clone()
        spoilt[place] = value
        assert_placement(run(x, spoilt, b, geometry), x, spoilt, b, geometry, kernel_of(target, x, spoilt, b, geometry))


@geometries
@layouts
@values
def test_in_the_input(geometry: Geometry, layout: str, value: float, target: Target) -> None:
    for dtype in (torch.float32, torch.float16):
        check_input(geometry, layout, value, target, dtype)


@tensor_cores
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@geometries
def test_in_the_input_of_other_launches(
    geometry: Geometry, layout: str, precision: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where phases share the rows of a product, whichever launch is chosen, none shows what another sees."""
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], target.device)
    x[0, 0, 0, 0] = INF
    x = LAYOUTS[layout](x)
    ranks, tried = (0, 1, 2, 5, 10, 20, 50, 100), 0
    with tf32_allowed(precision == "tf32"):
        for line in launches(monkeypatch, target.kernel, ranks, x, w, b, **geometry.arguments):
            assert_placement(run(x, w, b, geometry), x, w, b, geometry, line.split()[0])
            tried += 1
    assert tried > 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)
@on_kernel("tile_wgmma")
def test_finite_inputs_need_no_repair(
    precision: str, layout: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that lies in shared memory by chance is taken for an input that is not finite: the last word of the
    workspace, which the allocator hands out again, stays zero."""
    geometry = Geometry("pairs", (2, 24, 100, 201), 32, (3, 3))
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], target.device)
    x = LAYOUTS[layout](x)
    poison((1 << 24,), torch.float32, target.device)
    tried = 0
    with tf32_allowed(precision == "tf32"):
        for line in launches(monkeypatch, target.kernel, count(), x, w, b, **geometry.arguments):
            if " repairs=1 " not in line:
                continue
            size = int(line.split(" workspace=")[1].split()[0])
            for value in (1.0, INF):
                x[0, 0, 50, 50] = value
                torch.full((size,), 255, dtype=torch.uint8, device=target.device)
                convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
                word = torch.empty(size, dtype=torch.uint8, device=target.device)[-4:].view(torch.int32)
                assert int(word) == (1 if value == INF else 0), line
            tried += 1
            if tried == 12:
                break
    assert tried > 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)
@on_kernel("tile_wgmma")
def test_repaired_outputs(activation: str, precision: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are shared, other outputs' infinities become NaN, and are repaired: also after an activation, and
    more of them than the repair has threads."""
    geometry = Geometry("pairs", (1, 8, 200, 300), 32, (3, 3), padding=(1, 1))
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], target.device)
    x[:, 1, ::3, ::5] = INF
    x[:, 2, 7, 9] = NAN
    arguments = geometry.arguments | {"activation": activation, "params": ACTIVATIONS[activation]}
    with tf32_allowed(precision == "tf32"):
        lines = launches(monkeypatch, target.kernel, range(1000), x, w, b, **geometry.arguments)
        assert any(" repairs=1 " in line for line in lines), "no launch shares rows"
        out = convt_ext.conv_transpose2d_act(x, w, b, **arguments)
        monkeypatch.setenv("CONVT_KERNEL", "generic")
        expected = convt_ext.conv_transpose2d_act(x, w, b, **arguments)
    finite = torch.isfinite(expected)
    assert 0.2 < finite.double().mean() < 0.9 or activation in ("sigmoid", "tanh", "hardtanh", "clamp")
    assert torch.equal(torch.isnan(out), torch.isnan(expected))
    assert torch.allclose(out[finite].double(), expected[finite].double(), rtol=0.05, atol=0.05)


@tensor_cores
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@geometries
def test_on_tensor_cores(geometry: Geometry, layout: str, precision: str, target: Target) -> None:
    """In the input, and in the weight."""
    dtype = TENSOR_CORE_PRECISIONS[precision]
    with tf32_allowed(precision == "tf32"):
        for value in (INF, -INF, NAN):
            check_input(geometry, layout, value, target, dtype)
            check_weight(geometry, layout, value, target, dtype)


@geometries
@layouts
@values
def test_in_the_weight(geometry: Geometry, layout: str, value: float, target: Target) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_weight(geometry, layout, value, target, dtype)


# Filters that `depthwise` is compiled for; rows of output are whole vectors of every dtype.
ROLLING = (
    Geometry("k2s2", (2, 3, 6, 8), 3, (2, 2), stride=(2, 2), padding=(1, 0), groups=3),
    Geometry("k3s1", (2, 3, 7, 16), 6, (3, 3), padding=(1, 1), groups=3),
    Geometry("k3s1_full", (2, 3, 6, 6), 3, (3, 3), groups=3),
    Geometry("k3s2", (2, 3, 6, 11), 3, (3, 3), stride=(2, 2), output_padding=(1, 1), groups=3),
    Geometry("k3s2_odd", (2, 3, 6, 8), 3, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1), groups=3),
    Geometry("k4s2_full", (2, 3, 5, 7), 3, (4, 4), stride=(2, 2), groups=3),
    Geometry("k4s2", (2, 3, 20, 12), 6, (4, 4), stride=(2, 2), padding=(1, 1), groups=3),
    Geometry("k4s2_cropped", (2, 3, 7, 10), 3, (4, 4), stride=(2, 2), padding=(2, 3), output_padding=(1, 0), groups=3),
    Geometry("k4s4", (2, 3, 5, 6), 3, (4, 4), stride=(4, 4), padding=(3, 0), output_padding=(3, 0), groups=3),
)


@pytest.mark.parametrize("geometry", ROLLING, ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "channels_last"])
@on_kernel("depthwise")
def test_in_rolling_rows(geometry: Geometry, layout: str, target: Target) -> None:
    """In the input, and in the weight: nothing beyond the ends of rows and columns is multiplied."""
    if layout == "channels_last":  # lanes are channels, four a thread
        geometry = dataclasses.replace(geometry, input=(2, 4, *geometry.input[2:]), cout=4, groups=4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, w, b = geometry.tensors(dtype, target.device)
        assert " mapping=rolling " in convt_ext.plan(LAYOUTS[layout](x), w, b, **geometry.arguments)
        for value in (INF, -INF, NAN):
            check_input(geometry, layout, value, target, dtype)
            check_weight(geometry, layout, value, target, dtype)


# Filters that `thin_simt` is compiled for, with all of a usual padding and with none of it; fours of columns at both
# edges, and beyond them.
LISTED = (
    Geometry("k4s2", (2, 9, 5, 12), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("k4s2_full", (2, 5, 3, 8), 4, (4, 4), stride=(2, 2), output_padding=(1, 1)),
    Geometry("k4s2_cropped", (2, 6, 7, 16), 2, (4, 4), stride=(2, 2), padding=(3, 5), output_padding=(0, 1)),
    Geometry("k3s2", (3, 17, 1, 4), 1, (3, 3), stride=(2, 2), padding=(0, 1), output_padding=(0, 1)),
    Geometry("k5s2", (2, 6, 4, 12), 3, (5, 5), stride=(2, 2), padding=(2, 2), output_padding=(1, 1)),
    Geometry("k5s2_full", (2, 6, 3, 8), 2, (5, 5), stride=(2, 2), groups=2),
    Geometry("k9s2", (2, 3, 5, 8), 1, (9, 9), stride=(2, 2), padding=(4, 4), output_padding=(1, 1)),
    Geometry("k9s3", (1, 5, 4, 12), 1, (9, 9), stride=(3, 3), padding=(4, 4), output_padding=(2, 2)),
    Geometry("k9s4", (2, 4, 3, 4), 2, (9, 9), stride=(4, 4), padding=(2, 3), groups=2),
)


@pytest.mark.parametrize("geometry", LISTED, ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@on_kernel("thin_simt")
def test_in_listed_filters(geometry: Geometry, precision: str, target: Target) -> None:
    """In the input, and in the weight."""
    with tf32_allowed(precision == "tf32"):
        for value in (INF, -INF, NAN):
            check_input(geometry, "contiguous", value, target, torch.float32)
            check_weight(geometry, "contiguous", value, target, torch.float32)


@geometries
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@on_kernel("halo_gemm")
def test_in_halos(geometry: Geometry, precision: str, layout: str, target: Target) -> None:
    """In the input, and in the weight: rows that are copied with what lies between them are neighbours of others."""
    geometry = suited(geometry, target.kernel, layout)
    with tf32_allowed(precision == "tf32"):
        for value in (INF, -INF, NAN):
            check_input(geometry, layout, value, target, torch.float32)
            check_weight(geometry, layout, value, target, torch.float32)


every_nan = pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001], ids=hex)


def check_nan(bits: int, precision: str, target: Target, geometry: Geometry = GEOMETRIES[1]) -> None:
    """Whatever its sign and its other bits: rounding to fewer of them must not make it a number or infinite."""
    for index in (0, 1):
        tensors = geometry.tensors(torch.float32, target.device)
        tensor = tensors[index]
        assert tensor is not None
        tensor.view(torch.int32)[0, 0, 0, 0] = bits
        with tf32_allowed(precision == "tf32"):
            assert_placement(run(*tensors, geometry), *tensors, geometry, kernel_of(target, *tensors, geometry))


@every_nan
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_every_nan_is_one(bits: int, precision: str, target: Target) -> None:
    check_nan(bits, precision, target)


@every_nan
@on_tensor_cores("ieee", "tf32")
def test_every_nan_is_one_on_tensor_cores(bits: int, precision: str, target: Target) -> None:
    check_nan(bits, precision, target)


@every_nan
@on_kernel("thin_simt")
def test_every_nan_is_one_in_listed_filters(bits: int, target: Target) -> None:
    check_nan(bits, "ieee", target, LISTED[0])


@every_nan
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@on_kernel("halo_gemm")
def test_every_nan_is_one_in_halos(bits: int, precision: str, target: Target) -> None:
    check_nan(bits, precision, target, suited(GEOMETRIES[1], target.kernel))


# Outputs without a tap see neither operand; those of other images, channels or taps not what is not theirs.
ONE_PIXEL = (
    Geometry("taps_in_order", (19, 100, 1, 1), 12, (4, 4)),
    Geometry("without_taps", (5, 24, 1, 1), 9, (3, 2), stride=(4, 4), output_padding=(2, 3)),
    Geometry("padding_and_dilation", (3, 17, 1, 1), 8, (4, 3), padding=(2, 1), dilation=(2, 3)),
    Geometry("groups", (6, 32, 1, 1), 10, (3, 3), padding=(1, 0), groups=2),
)


@pytest.mark.parametrize("geometry", ONE_PIXEL, ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "ieee", "tf32"])
@on_kernel("pixel_gemm")
def test_one_pixel(geometry: Geometry, precision: str, layout: str, target: Target) -> None:
    """In the input, and in the weight."""
    dtype = TENSOR_CORE_PRECISIONS[precision]
    with tf32_allowed(precision == "tf32"):
        for value in (INF, -INF, NAN):
            check_input(geometry, layout, value, target, dtype)
            check_weight(geometry, layout, value, target, dtype)


@every_nan
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@on_kernel("pixel_gemm")
def test_every_nan_is_one_in_one_pixel(bits: int, precision: str, target: Target) -> None:
    check_nan(bits, precision, target, ONE_PIXEL[0])


@geometries
@values
@pytest.mark.parametrize("target", [*TARGETS, *TENSOR_CORE_TARGETS], indirect=True, ids=str)
def test_in_the_bias(geometry: Geometry, value: float, target: Target) -> None:
    """One channel, all of it, and nothing else."""
    x, w, b = geometry.tensors(torch.float32, target.device)
    assert b is not None
    b[-1] = value
    out = run(x, w, b, geometry)
    assert torch.isfinite(out[:, :-1]).all()
    assert torch.equal(out[:, -1], torch.full_like(out[:, -1], value)) or torch.isnan(out[:, -1]).all()
    assert torch.isnan(out[:, -1]).any() == (value != value)


@geometries
@pytest.mark.parametrize("target", [*TARGETS, *TENSOR_CORE_TARGETS], indirect=True, ids=str)
def test_opposite_infinities_meet(geometry: Geometry, target: Target) -> None:
    """Where inf and -inf meet the sum is NaN, elsewhere each keeps its sign; zero times inf is NaN."""
    x, w, b = geometry.tensors(torch.float32, target.device)
    w = w.abs() + 0.5
    x[0, 0, 0, 0], x[0, 0, -1, -1] = INF, -INF
    assert_placement(run(x, w, b, geometry), x, w, b, geometry, kernel_of(target, x, w, b, geometry))
    w[0, 0] = 0
    assert_placement(run(x, w, b, geometry), x, w, b, geometry, kernel_of(target, x, w, b, geometry))


def test_the_footprint_of_a_weight() -> None:
    """The footprint against the definition, tap by tap."""
    for geometry in GEOMETRIES:
        w = torch.zeros(geometry.weight)
        w[0, 0, -1, 0] = NAN
        reach = reach_of_weight(w, geometry)
        assert reach.shape[-2:] == geometry.output[-2:]
        group_output = 0
        for row in range(geometry.output[-2]):
            offset = row + geometry.padding[0] - (geometry.kernel[0] - 1) * geometry.dilation[0]
            for column in range(geometry.output[-1]):
                hit = offset % geometry.stride[0] == 0 and (column + geometry.padding[1]) % geometry.stride[1] == 0
                assert bool(reach[0, group_output, row, column]) == hit
        assert not reach[0, 1:].any()
