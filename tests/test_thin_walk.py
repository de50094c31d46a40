"""thin, where it walks down the rows of the input and reads each once: what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from reference import (
    LAYOUTS,
    NEEDS_CUDA,
    TENSOR_CORE_PRECISIONS,
    Geometry,
    assert_accurate,
    launches,
    off_by_one,
    poison,
    reference,
    tf32_allowed,
    with_gaps,
)
from torch import Tensor

import convt_ext

G = Geometry
KERNEL = "thin"
# All phases along H see the same two or three rows. Widths are multiples of four, channels whole vectors.
GEOMETRIES = (
    G("fsrcnn", (1, 56, 7, 36), 1, (9, 9), stride=(3, 3), padding=(4, 4), output_padding=(2, 2)),
    G("several_strips", (1, 24, 5, 388), 1, (9, 9), stride=(3, 3), padding=(4, 4), output_padding=(2, 2)),
    G("k4s2", (3, 64, 10, 32), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("k4s2_chunks", (2, 136, 9, 40), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("k4s2_full", (2, 16, 6, 20), 2, (4, 4), stride=(2, 2)),
    G("k4s2_cropped", (2, 40, 7, 44), 4, (4, 4), stride=(2, 2), padding=(3, 2), output_padding=(1, 0)),
    G("k3s1", (2, 32, 9, 64), 5, (3, 3), padding=(1, 1)),
    G("k3s1_full", (2, 72, 4, 12), 8, (3, 3)),
    G("k2s1", (2, 24, 6, 28), 6, (2, 2)),
    G("k6s2", (2, 48, 5, 100), 1, (6, 6), stride=(2, 2), padding=(2, 2)),
    G("many_taps_along_w", (1, 16, 5, 40), 1, (2, 11), stride=(1, 2), padding=(1, 5)),
    G("holes_along_w", (2, 24, 5, 16), 2, (4, 3), stride=(2, 5), padding=(1, 0), output_padding=(0, 4)),
    G("dilation_along_w", (2, 24, 5, 36), 2, (3, 4), stride=(1, 3), padding=(1, 2), dilation=(1, 2)),
    G("one_row", (3, 16, 1, 64), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("small_images", (21, 32, 4, 8), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    G("groups", (2, 96, 6, 24), 9, (4, 4), stride=(2, 2), padding=(1, 1), groups=3),
    G("no_bias", (2, 32, 6, 24), 3, (4, 4), stride=(2, 2), padding=(1, 1), bias=False),
)
pytestmark = [*NEEDS_CUDA]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
precisions = pytest.mark.parametrize("precision", TENSOR_CORE_PRECISIONS)


LAID = {
    "contiguous": LAYOUTS["contiguous"],
    "channels_last": LAYOUTS["channels_last"],
    "with_gaps": partial(with_gaps, vector=8),
}
layouts = pytest.mark.parametrize("layout", LAID)


def walks(
    monkeypatch: pytest.MonkeyPatch, geometry: Geometry, x: Tensor, w: Tensor, b: Tensor | None, most: int = 12
) -> Iterator[str]:
    """Forces launches that walk, of the first ranks and then ever fewer."""
    found, ranks = 0, [*range(20), *range(20, 100, 4), *range(100, 600, 25)]
    for line in launches(monkeypatch, KERNEL, ranks, x, w, b, **geometry.arguments):
        if " walks=0 " in line:
            continue
        found += 1
        yield line
        if found == most:
            return
    assert found > 0


@geometries
@precisions
@layouts
def test_accurate(geometry: Geometry, precision: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit the same with an activation applied to what it gives, and once more."""
    dtype = TENSOR_CORE_PRECISIONS[precision]
    x, w, b = geometry.tensors(dtype, "cuda")
    known, laid = reference(x, w, b, **geometry.arguments), LAID[layout](x)
    with tf32_allowed(precision == "tf32"):
        for line in walks(monkeypatch, geometry, laid, w, b):
            poison(geometry.output, dtype, "cuda")
            out = convt_ext.conv_transpose2d(laid, w, b, **geometry.arguments)
            assert_accurate(out, laid, w, b, line, known, **geometry.arguments)
            assert torch.equal(convt_ext.conv_transpose2d(laid, w, b, **geometry.arguments), out), line
            active = convt_ext.conv_transpose2d_act(laid, w, b, **geometry.arguments, activation="relu")
            assert torch.equal(active, torch.relu(out)), line


@geometries
@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_values_that_are_not_finite(
    geometry: Geometry, precision: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the input and in the weight they reach exactly the outputs that see them, whatever is left out besides."""
    dtype = TENSOR_CORE_PRECISIONS[precision]
    for which in (0, 1):
        tensors = list(geometry.tensors(dtype, "cuda"))
        operand = tensors[which]
        assert operand is not None
        operand.view(-1)[operand.numel() // 2] = float("nan")
        operand.view(-1)[0] = float("inf")
        x, w, b = tensors
        assert x is not None
        assert w is not None
        with torch.backends.cudnn.flags(enabled=False):
            expected = torch.nn.functional.conv_transpose2d(
                x.double(), w.double(), None if b is None else b.double(), **geometry.arguments
            )
        with tf32_allowed(precision == "tf32"):
            for line in walks(monkeypatch, geometry, LAYOUTS[layout](x), w, b, most=4):
                out = convt_ext.conv_transpose2d(LAYOUTS[layout](x), w, b, **geometry.arguments)
                assert torch.equal(out.isfinite(), expected.isfinite()), line


@pytest.mark.parametrize("value", [1e-40, 3.4e38, -3.4e38, 1.0000001])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_extreme_float32(value: float, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that integer arithmetic would not round: the largest stay finite, the least do not vanish in others."""
    geometry = GEOMETRIES[2]
    x, w, b = geometry.tensors(torch.float32, "cuda")
    x[:, ::3] = value
    w *= 2.0**-20
    with tf32_allowed(precision == "tf32"):
        for layout in ("contiguous", "channels_last"):
            for line in walks(monkeypatch, geometry, LAYOUTS[layout](x), w, b, most=4):
                laid = LAYOUTS[layout](x)
                out = convt_ext.conv_transpose2d(laid, w, b, **geometry.arguments)
                assert_accurate(out, laid, w, b, line, **geometry.arguments)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@precisions
def test_addresses_that_are_not_aligned(precision: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are as wide as the plan says: no launch walks where the first address does not allow it."""
    geometry = GEOMETRIES[2]
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    moved = off_by_one(LAYOUTS[layout](x))
    with tf32_allowed(precision == "tf32"):
        for line in launches(monkeypatch, KERNEL, range(30), moved, w, b, **geometry.arguments):
            assert " walks=0 " in line
        monkeypatch.setenv("CONVT_KERNEL", KERNEL)
        out = convt_ext.conv_transpose2d(moved, w, b, **geometry.arguments)
        assert_accurate(out, moved, w, b, layout, **geometry.arguments)


@pytest.mark.sanitize
@precisions
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES[1:15:4], ids=lambda geometry: geometry.name)
def test_under_sanitizers(geometry: Geometry, precision: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b = geometry.tensors(TENSOR_CORE_PRECISIONS[precision], "cuda")
    laid = LAYOUTS[layout](x)
    with tf32_allowed(precision == "tf32"):
        for line in walks(monkeypatch, geometry, laid, w, b, most=3):
            out = convt_ext.conv_transpose2d(laid, w, b, **geometry.arguments)
            assert_accurate(out, laid, w, b, line, **geometry.arguments)
