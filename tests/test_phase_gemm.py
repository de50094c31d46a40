"""phase_gemm: groups of few input channels, any filter; what it takes, and what it computes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from reference import (
    LAYOUTS,
    NEEDS_CUDA,
    TENSOR_CORE_PRECISIONS,
    Geometry,
    assert_accurate,
    check_launches,
    check_more_than_2_31_outputs,
    every_second,
    launches,
    off_by_one,
    random_tensor,
    tf32_allowed,
    with_gaps,
)

import convt_ext

G = Geometry
KERNEL = "phase_gemm"
GEOMETRIES = (
    G("kb75", (2, 32, 9, 70), 64, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1), groups=4),
    G("two_steps_a_tap", (2, 64, 5, 40), 40, (3, 3), stride=(2, 2), padding=(1, 1), groups=2),
    G("k3s1", (2, 24, 7, 33), 16, (3, 3), padding=(1, 1)),
    G("k4s2", (2, 16, 6, 130), 16, (4, 4), stride=(2, 2), padding=(1, 1), groups=2),
    G("k3s2_odd", (3, 18, 5, 21), 27, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1), groups=3),
    G("odd_channels", (2, 13, 4, 35), 7, (2, 3), stride=(1, 2)),
    G("one_channel_out", (2, 16, 5, 19), 2, (3, 3), stride=(1, 3), groups=2),
    G("couts_in_tiles", (1, 8, 3, 20), 72, (3, 3), stride=(2, 2)),
    G("holes", (2, 16, 4, 37), 16, (2, 2), stride=(3, 4), padding=(1, 2), dilation=(3, 2), output_padding=(2, 3)),
    G("rows_without_taps", (2, 16, 5, 40), 24, (2, 3), stride=(4, 1), dilation=(2, 3), groups=2),
    G("large_padding", (2, 8, 9, 44), 17, (4, 5), stride=(2, 3), padding=(7, 10)),
    G("wide_stride", (1, 8, 2, 8), 8, (2, 3), stride=(5, 40), padding=(1, 30), dilation=(3, 9)),
    G("most_phases", (1, 8, 2, 8), 8, (3, 3), stride=(16, 16), padding=(1, 5), dilation=(7, 9)),
    G("one_row", (3, 12, 1, 200), 20, (1, 7), stride=(1, 2), padding=(0, 3)),
    G("one_pixel", (5, 8, 1, 1), 16, (3, 3), stride=(2, 2)),
    G("many_items", (4, 8, 40, 70), 16, (3, 3), stride=(2, 1), groups=1),
    G("no_bias", (2, 32, 5, 36), 32, (5, 3), stride=(3, 2), padding=(2, 1), groups=4, bias=False),
)
LAID = {**LAYOUTS, "with_gaps": partial(with_gaps, vector=8)}
pytestmark = [*NEEDS_CUDA]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
precisions = pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)


@geometries
@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_launches(geometry: Geometry, precision: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    ranks = (0, 1, 4, 9, 16, 25, 36, 49)
    assert check_launches(monkeypatch, KERNEL, ranks, geometry, precision, LAYOUTS[layout](x), w, b) > 0


@precisions
@pytest.mark.parametrize("geometry", GEOMETRIES[::3], ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("layout", [name for name in LAID if name not in ("contiguous", "channels_last")])
def test_layouts(geometry: Geometry, precision: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the input; the weight with its output channels side by side, the bias with gaps."""
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    tensors = LAID[layout](x), w.contiguous(memory_format=torch.channels_last), every_second(b)
    assert check_launches(monkeypatch, KERNEL, (0, 5, 20), geometry, precision, *tensors) > 0


@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_addresses_that_are_not_aligned(precision: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = GEOMETRIES[1]
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    moved = off_by_one(LAYOUTS[layout](x))
    assert check_launches(monkeypatch, KERNEL, (0, 3, 12), geometry, precision, moved, w, b) > 0


@pytest.mark.parametrize("value", [1e-40, 3.4e38, -3.4e38, 1.0000001])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_extreme_float32(value: float, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest numbers stay finite, the least do not vanish in others."""
    geometry = GEOMETRIES[0]
    x, w, b = geometry.tensors(torch.float32, "cuda")
    x[:, ::3] = value
    w *= 2.0**-20
    for layout in ("contiguous", "channels_last"):
        assert check_launches(monkeypatch, KERNEL, [0], geometry, precision, LAYOUTS[layout](x), w, b) == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_31_elements(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of images, channels and rows have 64 bits."""
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)
    x = random_tensor((3, 8, 512, 512), torch.float16, "cuda")
    check_more_than_2_31_outputs(x, (10, 9), LAYOUTS[layout])


@pytest.mark.parametrize(
    ("channels", "stride", "reason"),
    [
        (36, (2, 2), "a group has too many input channels"),
        (8, (16, 17), "it has too many phases"),
    ],
)
def test_refuses(channels: int, stride: tuple[int, int], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = random_tensor((2, channels, 4, 32), torch.float32, "cuda"), torch.zeros((channels, 16, 2, 2), device="cuda")
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)
    with pytest.raises(RuntimeError, match=f"CONVT_KERNEL={KERNEL} cannot compute this problem: {reason}"):
        convt_ext.plan(x, w, None, stride=stride)


@pytest.mark.sanitize
@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES[:13:4], ids=lambda geometry: geometry.name)
def test_under_sanitizers(geometry: Geometry, precision: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    laid = LAYOUTS[layout](x)
    with tf32_allowed(precision == "tf32"):
        for line in launches(monkeypatch, KERNEL, (0, 5), laid, w, b, **geometry.arguments):
            out = convt_ext.conv_transpose2d(laid, w, b, **geometry.arguments)
            assert_accurate(out, laid, w, b, line, **geometry.arguments)
