"""Geometries drawn by hypothesis: every argument, dtype and memory layout, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from reference import (
    DTYPES,
    HALF_TARGETS,
    LAYOUTS,
    TENSOR_CORE_PRECISIONS,
    TENSOR_CORE_TARGETS,
    Geometry,
    Target,
    assert_accurate,
    lacks_room,
    poison,
    suited,
    takes,
    takes_precision,
    tf32_allowed,
)

import convt_ext

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any valid geometry with sides of up to 13 pixels, strides 1 to 8, dilations 1 to 4."""
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 5)))
    cin = groups * draw(st.sampled_from((1, 2, 3, 4, 5, 8, 17, 33)))
    cout = groups * draw(st.sampled_from((1, 2, 3, 4, 5, 9, 16, 31, 65)))
    axes = []
    for _ in range(2):
        size, kernel = draw(st.integers(1, 13)), draw(st.integers(1, 6))
        stride, dilation = draw(st.integers(1, 8)), draw(st.integers(1, 4))
        output_padding = draw(st.integers(0, max(stride, dilation) - 1))
        full = (size - 1) * stride + dilation * (kernel - 1) + output_padding + 1
        padding = draw(st.integers(0, min((full - 1) // 2, 12)))
        axes.append((size, kernel, stride, padding, output_padding, dilation))
    sizes, kernel, stride, padding, output_padding, dilation = zip(*axes, strict=True)
    batch = draw(st.sampled_from(((), (1,), (2,), (5,))))
    return Geometry(
        "generated",
        (*batch, cin, *sizes),
        cout,
        kernel,
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
    )


def check(
    target: Target, geometry: Geometry, dtype: torch.dtype, input_layout: str, weight_layout: str, seed: int
) -> None:
    geometry = suited(geometry, target.kernel)
    x, w, b = geometry.tensors(dtype, target.device, seed)
    x, w = LAYOUTS[input_layout](x), LAYOUTS[weight_layout](w)
    assume(not lacks_room(target.kernel, x, w, b, **geometry.arguments))
    event(convt_ext.plan(x, w, b, **geometry.arguments).split()[0])
    poison(geometry.output, dtype, target.device)
    actual = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
    assert tuple(actual.shape) == geometry.output
    assert_accurate(actual, x, w, b, f"{geometry}, {input_layout}, {weight_layout}", **geometry.arguments)


DRAWN_LAYOUTS = st.sampled_from(sorted(LAYOUTS))
SEEDS = st.integers(0, 2**16)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    geometry=geometries(),
    dtype=st.sampled_from(DTYPES),
    input_layout=DRAWN_LAYOUTS,
    weight_layout=DRAWN_LAYOUTS,
    seed=SEEDS,
)
def test_generated_geometry(
    target: Target, geometry: Geometry, dtype: torch.dtype, input_layout: str, weight_layout: str, seed: int
) -> None:
    if not takes(target.kernel, dtype):
        dtype = torch.float32
    check(target, geometry, dtype, input_layout, weight_layout, seed)


@pytest.mark.parametrize("target", [*TENSOR_CORE_TARGETS, *HALF_TARGETS], indirect=True, ids=str)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    geometry=geometries(),
    precision=st.sampled_from(sorted(TENSOR_CORE_PRECISIONS)),
    input_layout=DRAWN_LAYOUTS,
    weight_layout=DRAWN_LAYOUTS,
    seed=SEEDS,
)
def test_generated_geometry_on_tensor_cores(
    target: Target, geometry: Geometry, precision: str, input_layout: str, weight_layout: str, seed: int
) -> None:
    if target.kernel is not None and not takes_precision(target.kernel, precision):
        precision = "fp16"
    with tf32_allowed(precision == "tf32"):
        check(target, geometry, TENSOR_CORE_PRECISIONS[precision], input_layout, weight_layout, seed)
