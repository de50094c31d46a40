"""The promised accuracy on inputs that make sums, and the splitting of their terms, go wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference import (
    CUDA_TARGETS,
    HALF_TARGETS,
    LARGEST_ROUNDED,
    TARGETS,
    TENSOR_CORE_KERNELS,
    TENSOR_CORE_PRECISIONS,
    TENSOR_CORE_TARGETS,
    Geometry,
    Target,
    assert_accurate,
    on_kernel,
    on_tensor_cores,
    poison,
    random_tensor,
    skip_beyond_limits,
    suited,
    tf32_allowed,
)
from torch import Tensor

import convt_ext

GEOMETRIES = (
    Geometry("dcgan", (2, 64, 6, 5), 9, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("deep", (1, 512, 3, 4), 33, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    Geometry("many_taps", (1, 8, 12, 11), 4, (9, 9), stride=(1, 2), padding=(4, 4)),
    Geometry("groups", (2, 24, 6, 5), 12, (3, 3), stride=(2, 1), dilation=(2, 1), groups=4),
)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
# Filters that `thin_simt` is compiled for.
LISTED = (
    Geometry("image", (2, 64, 6, 8), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("deep", (1, 512, 3, 4), 2, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("odd", (2, 130, 5, 4), 1, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    Geometry("many_taps", (1, 56, 6, 12), 1, (9, 9), stride=(3, 3), padding=(4, 4), output_padding=(2, 2)),
    Geometry("most_taps", (1, 24, 7, 12), 1, (9, 9), stride=(2, 2), padding=(4, 4)),
    Geometry("groups", (2, 48, 6, 8), 6, (5, 5), stride=(2, 2), padding=(2, 2), groups=2),
)

Draw = Callable[[tuple[int, ...], int], Tensor]  # of a shape, from a seed, in float64


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


def _largest(shape: tuple[int, ...], seed: int) -> Tensor:
    """The largest float32 numbers, either sign: rounded to fewer digits they would be infinite."""
    return _normal(shape, seed).sign() * torch.finfo(torch.float32).max * (1 - 2**-16 * _uniform(shape, seed + 100))


def _any_exponent(shape: tuple[int, ...], seed: int) -> Tensor:
    """Exponents from float32's smallest to that of one: subnormal numbers among normal ones."""
    return _normal(shape, seed).sign() * 2 ** (-149 * _uniform(shape, seed + 100))


def _uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers between zero and one."""
    return torch.special.ndtr(_normal(shape, seed))


def _scaled(scale: float) -> Draw:
    return lambda shape, seed: scale * _normal(shape, seed)


def _constant(value: float) -> Draw:
    return lambda shape, seed: torch.full(shape, value, dtype=torch.float64)


# Input and weight of each kind. TF32 has 10 bits after the leading one, float32 23.
DISTRIBUTIONS: dict[str, tuple[Draw, Draw]] = {
    "normal": (_normal, _normal),
    "lognormal": (_lognormal, _lognormal),
    "outlier": (_outlier, _normal),
    "outlier_in_the_weight": (_normal, _outlier),
    "tiny": (_scaled(1e-30), _normal),
    "huge": (_scaled(1e30), _normal),
    "tiny_by_huge": (_scaled(1e-30), _scaled(1e30)),
    "smallest_normal_by_huge": (_scaled(1e-36), _scaled(1e20)),
    "huge_by_smallest_normal": (_scaled(1e20), _scaled(1e-36)),
    "largest": (_largest, _scaled(1e-6)),
    "largest_in_the_weight": (_scaled(1e-6), _largest),
    "products_are_subnormal": (_scaled(1e-20), _scaled(1e-20)),
    "subnormal": (_scaled(1e-40), _normal),
    "subnormal_by_huge": (_scaled(1e-40), _scaled(1e20)),
    "any_exponent": (_any_exponent, _normal),
    "any_exponent_in_both": (_any_exponent, _any_exponent),
    "cancelling": (_cancelling, lambda shape, seed: 1 + 1e-3 * _normal(shape, seed)),
    # All terms err in the same direction, as far as rounding to nearest allows: what is left out of the product of two
    # split numbers is largest here too.
    "below_half": (_constant(1 + 2**-11 - 2**-21), _constant(1 + 2**-11 - 2**-21)),
    # Cutting digits off errs twice as far as rounding may.
    "below_the_next": (_constant(1 + 2**-10 - 2**-23), _constant(1 + 2**-10 - 2**-23)),
}
distributions = pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))


def check_float32(geometry: Geometry, distribution: str, target: Target) -> None:
    geometry = suited(geometry, target.kernel)
    make_input, make_weight = DISTRIBUTIONS[distribution]
    x = make_input(geometry.input, 1).float().to(target.device)
    w = make_weight(geometry.weight, 2).float().to(target.device)
    plan = convt_ext.plan(x, w, None, **geometry.arguments)
    if distribution == "largest" and plan.startswith("halo_gemm") and "precision=tf32" in plan:
        # Copies round what it reads, which makes larger ones infinite.
        x = x.clamp(-LARGEST_ROUNDED, LARGEST_ROUNDED)
    poison(geometry.output, x.dtype, target.device)
    out = convt_ext.conv_transpose2d(x, w, None, **geometry.arguments)
    assert_accurate(out, x, w, None, distribution, **geometry.arguments)


@geometries
@distributions
def test_float32(geometry: Geometry, distribution: str, target: Target) -> None:
    check_float32(geometry, distribution, target)


@geometries
@distributions
@on_tensor_cores("ieee", "tf32")
def test_float32_on_tensor_cores(geometry: Geometry, distribution: str, precision: str, target: Target) -> None:
    with tf32_allowed(precision == "tf32"):
        check_float32(geometry, distribution, target)


@geometries
@distributions
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@on_kernel("halo_gemm")
def test_float32_of_halos(geometry: Geometry, distribution: str, precision: str, target: Target) -> None:
    with tf32_allowed(precision == "tf32"):
        check_float32(geometry, distribution, target)


@pytest.mark.parametrize("geometry", LISTED, ids=lambda geometry: geometry.name)
@distributions
@on_kernel("thin_simt")
def test_float32_of_listed_filters(geometry: Geometry, distribution: str, target: Target) -> None:
    check_float32(geometry, distribution, target)


@geometries
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distribution", ["normal", "outlier", "cancelling"])
@pytest.mark.parametrize("target", [*TARGETS, *TENSOR_CORE_TARGETS, *HALF_TARGETS], ids=str, indirect=True)
def test_half_types(geometry: Geometry, dtype: torch.dtype, distribution: str, target: Target) -> None:
    """One rounding of a float32 sum; the scale keeps sums below float16's largest number."""
    make_input, make_weight = DISTRIBUTIONS[distribution]
    scale = 1e-3 if distribution == "cancelling" else 1e-6 if distribution == "outlier" else 1.0
    x = (scale * make_input(geometry.input, 1)).to(dtype).to(target.device)
    w = make_weight(geometry.weight, 2).to(dtype).to(target.device)
    b = random_tensor((geometry.cout,), dtype, target.device, 3)
    skip_beyond_limits(target.kernel, x, w, b, **geometry.arguments)
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


@pytest.mark.parametrize("precision", ["fp16", "ieee", "tf32"])
@pytest.mark.parametrize("target", [*TARGETS, *TENSOR_CORE_TARGETS], ids=str, indirect=True)
def test_overflow_is_infinite(precision: str, target: Target) -> None:
    """Or NaN in float32 on tensor cores, where parts of an infinite sum may be of either sign."""
    dtype = TENSOR_CORE_PRECISIONS[precision]
    x = torch.full((1, 4, 3, 3), torch.finfo(dtype).max / 2, dtype=dtype, device=target.device)
    w = torch.ones(4, 2, 2, 2, dtype=dtype, device=target.device)
    with tf32_allowed(precision == "tf32"):
        out, kernel = convt_ext.conv_transpose2d(x, w), convt_ext.plan(x, w).split()[0]
    assert not torch.isfinite(out).any()
    assert torch.isposinf(out).all() or (dtype == torch.float32 and kernel in TENSOR_CORE_KERNELS)
