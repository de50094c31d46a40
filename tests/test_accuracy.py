"""The promised accuracy on inputs that make sums go wrong, and the precision flags."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from processes import run_python
from reference import CUDA_TARGETS, Geometry, Target, assert_accurate, poison, random_tensor, reference, tolerance
from torch import Tensor

import convt_ext

GEOMETRIES = (
    Geometry("dcgan", (2, 64, 6, 5), 9, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("deep", (1, 512, 3, 4), 33, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    Geometry("many_taps", (1, 8, 12, 11), 4, (9, 9), stride=(1, 2), padding=(4, 4)),
    Geometry("groups", (2, 24, 6, 5), 12, (3, 3), stride=(2, 1), dilation=(2, 1), groups=4),
)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return random_tensor(shape, torch.float64, seed=seed)


def _lognormal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Magnitudes over some eight decades, either sign."""
    return _normal(shape, seed).sign() * (3 * _normal(shape, seed + 100)).exp()


def _outlier(shape: tuple[int, ...], seed: int) -> Tensor:
    """One element a thousand million times the others."""
    out = _normal(shape, seed)
    out.view(-1)[out.numel() // 3] = 1e9
    return out


def _cancelling(shape: tuple[int, ...], seed: int) -> Tensor:
    """Signs alternate from channel to channel over nearly equal numbers, so that sums are far below their terms."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(shape[-3] // 2).view(-1, 1, 1)
    return signs * (1000 + _normal(shape, seed))


# Input and weight of each kind.
DISTRIBUTIONS: dict[str, tuple[Callable[[tuple[int, ...], int], Tensor], Callable[[tuple[int, ...], int], Tensor]]] = {
    "normal": (_normal, _normal),
    "lognormal": (_lognormal, _lognormal),
    "outlier": (_outlier, _normal),
    "outlier_in_the_weight": (_normal, _outlier),
    "tiny": (lambda shape, seed: 1e-30 * _normal(shape, seed), _normal),
    "huge": (lambda shape, seed: 1e30 * _normal(shape, seed), _normal),
    "tiny_by_huge": (
        lambda shape, seed: 1e-30 * _normal(shape, seed),
        lambda shape, seed: 1e30 * _normal(shape, seed),
    ),
    "products_are_subnormal": (
        lambda shape, seed: 1e-20 * _normal(shape, seed),
        lambda shape, seed: 1e-20 * _normal(shape, seed),
    ),
    "subnormal": (lambda shape, seed: 1e-40 * _normal(shape, seed), _normal),
    "cancelling": (_cancelling, lambda shape, seed: 1 + 1e-3 * _normal(shape, seed)),
}


@geometries
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_float32(geometry: Geometry, distribution: str, target: Target) -> None:
    make_input, make_weight = DISTRIBUTIONS[distribution]
    x = make_input(geometry.input, 1).float().to(target.device)
    w = make_weight(geometry.weight, 2).float().to(target.device)
    poison(geometry.output, x.dtype, target.device)
    out = convt_ext.conv_transpose2d(x, w, None, **geometry.arguments)
    assert_accurate(out, x, w, None, distribution, **geometry.arguments)


@geometries
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distribution", ["normal", "outlier", "cancelling"])
def test_half_types(geometry: Geometry, dtype: torch.dtype, distribution: str, target: Target) -> None:
    """One rounding of a float32 sum; the scale keeps sums below float16's largest number."""
    make_input, make_weight = DISTRIBUTIONS[distribution]
    scale = 1e-3 if distribution == "cancelling" else 1e-6 if distribution == "outlier" else 1.0
    x = (scale * make_input(geometry.input, 1)).to(dtype).to(target.device)
    w = make_weight(geometry.weight, 2).to(dtype).to(target.device)
    b = random_tensor((geometry.cout,), dtype, target.device, 3)
    out = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
    assert_accurate(out, x, w, b, distribution, **geometry.arguments)


@pytest.mark.parametrize("target", CUDA_TARGETS, ids=str, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_sums_do_not_overflow_on_the_way(dtype: torch.dtype, target: Target) -> None:
    """Partial sums beyond float16's largest number are fine as long as the total is not."""
    x = torch.full((1, 64, 4, 4), 200.0, dtype=dtype, device=target.device)
    w = torch.full((64, 8, 3, 3), 40.0, dtype=dtype, device=target.device)
    x[:, 1::2] *= -1
    assert torch.equal(
        convt_ext.conv_transpose2d(x, w, stride=2), torch.zeros(1, 8, 9, 9, dtype=dtype, device=x.device)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_overflow_is_infinite(dtype: torch.dtype, device: str) -> None:
    large = torch.finfo(dtype).max / 2
    x = torch.full((1, 4, 3, 3), large, dtype=dtype, device=device)
    w = torch.ones(4, 2, 2, 2, dtype=dtype, device=device)
    assert torch.isposinf(convt_ext.conv_transpose2d(x, w)).all()


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@geometries
def test_float32_is_ieee_whatever_the_flag(geometry: Geometry, target: Target) -> None:
    x, w, b = geometry.tensors(torch.float32, target.device)
    results = []
    for allowed in (False, True):
        with tf32_allowed(allowed):
            results.append(convt_ext.conv_transpose2d(x, w, b, **geometry.arguments))
    assert torch.equal(*results)
    expected, magnitude = reference(x, w, b, **geometry.arguments)
    bound = tolerance(torch.float32, expected, magnitude, 0, target.device)
    assert ((results[1].double().cpu() - expected).abs() <= bound).all()


def flag_seen() -> str:
    return str(json.loads(torch.ops.convt._info())["tf32_flag"])


def test_the_tf32_flag_is_followed() -> None:
    for allowed in (True, False, True, False):
        with tf32_allowed(allowed):
            assert flag_seen() == ("allowed" if allowed else "disallowed")


FLAG_OF_CONVOLUTIONS = """
import json
import torch
import convt_ext

for precision, seen in (("ieee", "disallowed"), ("tf32", "allowed"), ("ieee", "disallowed")):
    torch.backends.cudnn.conv.fp32_precision = precision
    info = json.loads(torch.ops.convt._info())
    assert info["tf32_flag"] == seen, (precision, info)
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has no torch.backends.cudnn.conv")
def test_the_flag_of_convolutions_alone_is_followed() -> None:
    """In a process of its own: torch refuses to mix this setting with the older one."""
    run_python(FLAG_OF_CONVOLUTIONS)
