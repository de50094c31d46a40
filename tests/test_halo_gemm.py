"""halo_gemm: float32 as it lies; what it takes, and what it computes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from reference import (
    LARGEST_ROUNDED,
    LAYOUTS,
    NEEDS_CUDA,
    Geometry,
    assert_accurate,
    check_activation,
    check_launches,
    embed,
    every_second,
    launches,
    poison,
    random_tensor,
    skip_without_code_for,
    suited,
    tf32_allowed,
    with_gaps,
)

import convt_ext

G = Geometry
KERNEL = "halo_gemm"
# Rows of whole pieces of 16 bytes: copied by themselves and together; taps of two phases, several columns apart, or
# none; columns beside the image on one side or both, or cropped; several tiles along each axis, images of few pixels,
# images that are read as rows of any length; phases that are columns of one product, whose outputs leave in runs of
# parts of rows, of whole rows or of images; rows whose taps are such columns, of a weight that stays in shared memory
# or does not; output channels that fill a tile or do not, chunks of channels that fill the rings and that wrap around.
GEOMETRIES = (
    G("k3", (2, 40, 10, 12), 70, (3, 3), padding=(1, 1)),
    G("k3_wide", (2, 40, 7, 132), 70, (3, 3), padding=(1, 1)),
    G("k7_wide", (1, 33, 3, 300), 30, (3, 7), padding=(2, 3)),
    G("k3_row", (5, 72, 1, 68), 60, (1, 3), groups=3),
    G("k3_deep", (1, 600, 3, 64), 40, (3, 3), padding=(2, 0)),
    G("k3s2_rows", (1, 40, 4, 72), 32, (3, 3), stride=(2, 1), padding=(1, 1)),
    G("k5_full", (2, 40, 5, 20), 40, (3, 5)),
    G("cropped", (1, 40, 9, 24), 40, (3, 3), padding=(3, 4)),
    G("k5s2", (3, 40, 6, 16), 130, (5, 5), stride=(2, 2), padding=(2, 2), output_padding=(1, 1)),
    G("k3s2_odd_rows", (1, 72, 9, 32), 50, (3, 3), stride=(2, 2)),
    G("k4s2", (2, 64, 16, 16), 64, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("k4s2_small_images", (37, 256, 4, 4), 24, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("k5s3", (2, 40, 5, 16), 20, (5, 5), stride=(3, 3), padding=(1, 2), output_padding=(2, 0)),
    G("k1s2", (2, 40, 5, 12), 20, (1, 1), stride=(2, 2)),
    G("dilated", (1, 40, 8, 16), 30, (3, 3), padding=(2, 0), output_padding=(0, 0), dilation=(2, 5)),
    G("dilated_s2", (2, 40, 7, 12), 30, (3, 4), stride=(2, 2), padding=(2, 1), output_padding=(1, 0), dilation=(3, 3)),
    G("one_row", (5, 40, 1, 100), 50, (1, 4), stride=(1, 2), padding=(0, 1)),
    G("k8s8_row", (5, 40, 1, 92), 24, (1, 8), stride=(1, 8)),
    G("k2s2_14x14", (9, 40, 14, 14), 36, (2, 2), stride=(2, 2)),
    G("k2s2", (3, 136, 9, 64), 36, (2, 2), stride=(2, 2)),
    G("k4s4", (3, 40, 15, 20), 13, (4, 4), stride=(4, 4)),
    G("k2s2_wide", (2, 33, 3, 300), 36, (2, 2), stride=(2, 2)),
    G("k2s2_odd_width", (25, 40, 4, 5), 33, (2, 2), stride=(2, 2), bias=False),
    G("groups", (2, 72, 6, 8), 60, (4, 4), stride=(2, 2), padding=(1, 1), groups=3),
    G("many_tiles", (9, 40, 66, 136), 40, (3, 3), padding=(1, 1)),
    G("many_couts", (1, 520, 5, 8), 300, (3, 3), padding=(1, 1), bias=False),
    G("unbatched", (20, 6, 8), 36, (4, 4), stride=(2, 2), padding=(1, 1)),
)
# Others that its estimates put first and last, and some between.
RANKS = (*range(20), *range(20, 1400, 23))
pytestmark = [*NEEDS_CUDA]
precisions = pytest.mark.parametrize("precision", ["ieee", "tf32"])


@pytest.fixture(autouse=True)
def _forced(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_code_for(KERNEL)
    monkeypatch.setenv("CONVT_KERNEL", KERNEL)


def in_layout(geometry: Geometry, layout: str) -> Geometry:
    """With channels that channels_last takes, and images that have it; of NCHW as it is."""
    if layout != "channels_last":
        return geometry
    return suited(replace(geometry, input=(1, *geometry.input)[-4:]), KERNEL, layout)


@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_launches(geometry: Geometry, layout: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = in_layout(geometry, layout)
    x, w, b = geometry.tensors(torch.float32, "cuda")
    x = LAYOUTS[layout](x)
    assert check_launches(monkeypatch, KERNEL, RANKS, geometry, precision, x, w, b) > 0


@precisions
@pytest.mark.parametrize("geometry", GEOMETRIES[:-1:3], ids=lambda geometry: geometry.name)
def test_layouts(geometry: Geometry, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input with gaps between rows, weight with its output channels side by side, bias with gaps."""
    x, w, b = geometry.tensors(torch.float32, "cuda")
    w = w.contiguous(memory_format=torch.channels_last)
    tensors = with_gaps(x, vector=4), w, every_second(b)
    assert check_launches(monkeypatch, KERNEL, RANKS, geometry, precision, *tensors) > 0


@precisions
def test_kinds_of_launches(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The geometries have launches of every kind."""
    kinds = set()
    names = "rows", "flat", "long_rows", "lines", "cluster", "warpgroups", "row_taps", "keeps_weight", "runs"
    for given, layout in product(GEOMETRIES, ("contiguous", "channels_last")):
        geometry = in_layout(given, layout)
        x, w, b = geometry.tensors(torch.float32, "cuda")
        with tf32_allowed(precision == "tf32"):
            for line in launches(monkeypatch, KERNEL, RANKS, LAYOUTS[layout](x), w, b, **geometry.arguments):
                fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
                kinds |= {f"{name}={fields[name]}" for name in names}
                kinds.add(f"phases={fields['phases'].split('x')[1]}")
                kinds.add(f"folds={fields['fold'] != '1x1'}")
                kinds.add(f"parts={fields['halo'].split('x')[0] != '1'}")
    expected = {"rows=64", "rows=32", "flat=0", "flat=1", "long_rows=0", "long_rows=1", "lines=0", "lines=1"}
    expected |= {"cluster=1x1", "phases=1", "phases=2", "folds=True", "folds=False", "parts=True", "parts=False"}
    expected |= {"warpgroups=1", "warpgroups=2", "row_taps=1", "row_taps=3", "keeps_weight=0", "keeps_weight=1"}
    expected.add("runs=0")
    if precision == "tf32":
        expected |= {"rows=128", "cluster=1x2", "runs=1"}
    assert kinds >= expected, expected - kinds


@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "none"])
@pytest.mark.parametrize("geometry", GEOMETRIES[4:21:4], ids=lambda geometry: geometry.name)
def test_activation(
    geometry: Geometry, activation: str, layout: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, b = geometry.tensors(torch.float32, "cuda")
    with tf32_allowed(precision == "tf32"):
        check_activation(monkeypatch, KERNEL, geometry, activation, 4e-3, LAYOUTS[layout](x), w, b)


def test_largest_numbers_stay_finite() -> None:
    """Up to the largest that rounds to one that TF32 has; those above are infinite (docs/accuracy.md)."""
    largest = LARGEST_ROUNDED
    x = torch.full((1, 16, 4, 8), largest, device="cuda")
    w = torch.full((16, 32, 2, 2), 2.0**-10, device="cuda")
    with tf32_allowed(True):
        out = convt_ext.conv_transpose2d(x, w, stride=2)
    assert torch.isfinite(out).all()
    assert torch.allclose(out.double(), torch.full_like(out, 16 * largest * 2.0**-10).double(), rtol=2**-9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float16}, "it computes in float32"),
        (
            {"channels_last": True, "channels": 18},
            "it reads channels that lie side by side, at multiples of 16 bytes",
        ),
        ({"width": 31}, "it reads rows, or images of unshifted taps, at multiples of 16 bytes"),
        ({"first": 1}, "it reads rows, or images of unshifted taps, at multiples of 16 bytes"),
    ],
)
def test_refuses(change: dict[str, object], reason: str) -> None:
    shape = (2, int(str(change.get("channels", 16))), 5, int(str(change.get("width", 32))))
    x = random_tensor(shape, torch.float32, "cuda")
    if "first" in change:
        x = embed(x, lambda s: s[..., 1:33], [*x.shape[:-1], 36])
    x = x.to(change.get("dtype", torch.float32))  # type: ignore[call-overload]
    if change.get("channels_last"):
        x = LAYOUTS["channels_last"](x)
    w = random_tensor((x.shape[1], 16, 2, 2), torch.float32, "cuda").to(x.dtype)
    with pytest.raises(RuntimeError, match=f"CONVT_KERNEL={KERNEL} cannot compute this problem: {reason}"):
        convt_ext.plan(x, w, None, stride=2)


@pytest.mark.sanitize
@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES[:21:5], ids=lambda geometry: geometry.name)
def test_under_sanitizers(geometry: Geometry, layout: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = geometry.tensors(torch.float32, "cuda")
    x = LAYOUTS[layout](x)
    with tf32_allowed(precision == "tf32"):
        for line in launches(monkeypatch, KERNEL, (0, 3, 11, 29), x, w, b, **geometry.arguments):
            poison(geometry.output, x.dtype, x.device)
            out = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
            assert_accurate(out, x, w, b, line, **geometry.arguments)
