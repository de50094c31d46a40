"""scatter_gemm: filters that are not longer than the stride, NCHW; what it takes, and what it computes."""

from __future__ import annotations

import pytest
import torch
from reference import (
    NEEDS_CUDA,
    TENSOR_CORE_PRECISIONS,
    Geometry,
    assert_accurate,
    check_activation,
    check_launches,
    check_more_than_2_31_outputs,
    every_second,
    poison,
    random_tensor,
    reference,
    tf32_allowed,
    with_gaps,
)
from torch import Tensor

import convt_ext

G = Geometry
KERNEL = "scatter_gemm"
# Widths are multiples of four. Both axes of the filter, dilated, are not longer than the stride.
GEOMETRIES = (
    G("pairs", (2, 24, 5, 36), 20, (2, 2), stride=(2, 2)),
    G("pairs_two_strips", (1, 64, 3, 132), 33, (2, 2), stride=(2, 2), bias=False),
    G("pairs_odd_rows", (2, 32, 4, 12), 16, (2, 2), stride=(2, 2), output_padding=(1, 1)),
    G("pairs_padding", (2, 16, 6, 40), 17, (2, 2), stride=(2, 2), padding=(1, 1)),
    G("pairs_large_padding", (2, 16, 9, 44), 17, (2, 2), stride=(2, 2), padding=(3, 5), output_padding=(1, 0)),
    G("pairs_of_rows", (3, 40, 1, 200), 48, (1, 2), stride=(1, 2)),
    G("holes", (2, 32, 4, 128), 64, (3, 3), stride=(5, 5), padding=(1, 1), dilation=(2, 2)),
    G("holes_odd", (3, 20, 3, 28), 5, (2, 3), stride=(4, 7), padding=(2, 3), output_padding=(3, 6), dilation=(3, 2)),
    G("k3s3", (2, 16, 5, 52), 40, (3, 3), stride=(3, 3)),
    G("k4s4", (2, 24, 6, 20), 24, (4, 4), stride=(4, 4)),
    G("k1s2", (2, 33, 5, 64), 16, (1, 1), stride=(2, 2), output_padding=(1, 1)),
    G("k1s1", (2, 48, 7, 76), 50, (1, 1)),
    G("wide_stride", (1, 16, 2, 8), 8, (2, 3), stride=(16, 33), padding=(4, 40), dilation=(5, 9)),
    G("groups", (2, 48, 5, 60), 60, (2, 2), stride=(2, 2), groups=3),
    G("groups_holes", (2, 32, 3, 68), 80, (1, 2), stride=(2, 4), groups=2),
    G("narrow", (5, 16, 3, 4), 16, (2, 2), stride=(2, 2)),
    G("most_channels_of_float32", (1, 64, 3, 48), 16, (2, 3), stride=(2, 4)),
    G("many_items", (6, 8, 40, 100), 16, (2, 2), stride=(2, 2)),
)
pytestmark = [*NEEDS_CUDA]


@pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_launches(geometry: Geometry, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    assert check_launches(monkeypatch, KERNEL, range(1000), geometry, precision, *tensors) > 0


@pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES[::3], ids=lambda geometry: geometry.name)
def test_layouts(geometry: Geometry, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input with gaps between rows, weight with its output channels side by side, bias with gaps."""
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    w = w.contiguous(memory_format=torch.channels_last)
    tensors = with_gaps(x, vector=4), w, every_second(b)
    assert check_launches(monkeypatch, KERNEL, range(1000), geometry, precision, *tensors) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_most_channels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = G("most_channels", (2, 128, 3, 96), 72, (2, 2), stride=(2, 2))
    tensors = geometry.tensors(dtype, "cuda")
    assert check_launches(monkeypatch, KERNEL, range(1000), geometry, "fp16", *tensors) > 0


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)
def test_values_that_are_not_finite(precision: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the input and of the weight: they reach the outputs that they should, and no others."""
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)
    geometry = G("holes", (2, 24, 3, 40), 20, (2, 2), stride=(3, 4), padding=(1, 2), output_padding=(2, 3))
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    for place in ((0, 0, 0, 0), (1, 23, 2, 39), (1, 7, 1, 20)):
        spoilt = x.clone()
        spoilt[place] = value
        check_placement(spoilt, w, b, geometry, precision)
    for place in ((0, 0, 0, 0), (23, 19, 1, 1), (5, 3, 1, 0)):
        spoilt = w.clone()
        spoilt[place] = value
        check_placement(x, spoilt, b, geometry, precision)


def check_placement(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry, precision: str) -> None:
    expected, _ = reference(x, w, b, **geometry.arguments)
    poison(geometry.output, x.dtype, x.device)
    with tf32_allowed(precision == "tf32"):
        got = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments).double().cpu()
    assert torch.equal(torch.isfinite(got), torch.isfinite(expected))
    assert torch.isnan(got[torch.isnan(expected)]).all()


@pytest.mark.parametrize("activation", ["relu", "gelu", "none"])
@pytest.mark.parametrize("geometry", GEOMETRIES[:8:3], ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_activation(dtype: torch.dtype, geometry: Geometry, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_activation(monkeypatch, KERNEL, geometry, activation, 4e-3, *geometry.tensors(dtype, "cuda"))


def test_more_than_2_31_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of images, channels and rows have 64 bits."""
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)
    x = random_tensor((3, 8, 64, 128), torch.float16, "cuda")
    check_more_than_2_31_outputs(x, (60, 60))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stride": (2, 1)}, "its filter is longer than the stride"),
        ({"dilation": (1, 2)}, "its filter is longer than the stride"),
        ({"width": 30}, "it reads four neighbours along W at once"),
        ({"channels": 80}, "a group has too many input channels"),
        ({"channels_last": True}, "its output must be NCHW"),
    ],
)
def test_refuses(change: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, width = change.pop("channels", 16), change.pop("width", 32)
    x = random_tensor((2, int(str(channels)), 4, int(str(width))), torch.float32, "cuda")
    if change.pop("channels_last", False):
        x = x.contiguous(memory_format=torch.channels_last)
    w = random_tensor((x.shape[1], 16, 2, 2), torch.float32, "cuda")
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)
    with pytest.raises(RuntimeError, match=f"CONVT_KERNEL={KERNEL} cannot compute this problem: {reason}"):
        convt_ext.plan(x, w, None, **{"stride": (2, 2), **change})


@pytest.mark.sanitize
@pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES[2:9:2], ids=lambda geometry: geometry.name)
def test_under_sanitizers(geometry: Geometry, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    with tf32_allowed(precision == "tf32"):
        out = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
        assert_accurate(out, x, w, b, geometry.name, **geometry.arguments)
