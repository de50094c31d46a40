"""torch.vmap and torch.func over the operator, and autocast on the CPU and CUDA."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import NESTED_TRANSFORMS, Geometry, random_tensor
from torch import Tensor

import convt_ext

BATCH = 3
GEOMETRIES = (
    Geometry("plain", (2, 4, 3, 5), 3, (3, 2), stride=(2, 1), padding=(1, 0)),
    Geometry("groups", (2, 4, 3, 5), 6, (2, 3), stride=(2, 2), output_padding=(1, 0), groups=2),
    Geometry("depthwise", (1, 3, 4, 5), 3, (3, 3), dilation=(2, 1), groups=3),
    Geometry("unbatched", (4, 3, 5), 2, (3, 2), stride=(1, 2)),
    Geometry("unbatched_groups", (4, 3, 5), 6, (3, 2), stride=(1, 2), groups=2),
)
# A mapped dimension at the front, in the middle, at the end; or none.
INPUT_DIMS = (None, 0, 1, -1)
WEIGHT_DIMS = (None, 0, 2)
BIAS_DIMS = (None, 0, 1, "absent")


def mapped(shape: tuple[int, ...], dim: int | None, seed: int) -> Tensor:
    """A float64 tensor of this shape with a further dimension of size BATCH at dim."""
    full = list(shape)
    if dim is not None:
        full.insert(dim if dim >= 0 else len(full) + 1 + dim, BATCH)
    return random_tensor(tuple(full), torch.float64, seed=seed)


def looped(tensors: list[Tensor | None], dims: list[int | None], arguments: dict[str, Any]) -> Tensor:
    """What vmap must compute, one sample at a time by PyTorch."""
    rows = []
    for index in range(BATCH):
        sample = [t if t is None or d is None else t.select(d, index) for t, d in zip(tensors, dims, strict=True)]
        rows.append(F.conv_transpose2d(*sample, **arguments))
    return torch.stack(rows)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
@pytest.mark.parametrize(("input_dim", "weight_dim"), list(itertools.product(INPUT_DIMS, WEIGHT_DIMS)))
@pytest.mark.parametrize("bias_dim", BIAS_DIMS)
def test_vmap_is_a_loop(
    geometry: Geometry, input_dim: int | None, weight_dim: int | None, bias_dim: int | str | None, device: str
) -> None:
    dims = [input_dim, weight_dim, None if isinstance(bias_dim, str) else bias_dim]
    if all(dim is None for dim in dims):
        dims[0] = 2
    x, w = mapped(geometry.input, dims[0], 0).to(device), mapped(geometry.weight, dims[1], 1).to(device)
    b = None if bias_dim == "absent" else mapped((geometry.cout,), dims[2], 2).to(device)

    def op(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)

    actual = torch.vmap(op, in_dims=tuple(dims))(x, w, b)
    torch.testing.assert_close(actual, looped([x, w, b], dims, geometry.arguments))
    moved = torch.vmap(op, in_dims=tuple(dims), out_dims=-1)(x, w, b)
    torch.testing.assert_close(moved, actual.movedim(0, -1))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_nested_vmap(geometry: Geometry, device: str) -> None:
    """Inputs mapped outside, weights inside: every input with every weight."""
    x, w = mapped(geometry.input, 0, 0).to(device), mapped(geometry.weight, 0, 1).to(device)
    b = mapped((geometry.cout,), 0, 2).to(device)

    def op(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)

    actual = torch.vmap(torch.vmap(op, in_dims=(None, 0, 0)), in_dims=(0, None, None))(x, w, b)
    rows = [[F.conv_transpose2d(one, *wb, **geometry.arguments) for wb in zip(w, b, strict=True)] for one in x]
    torch.testing.assert_close(actual, torch.stack([torch.stack(row) for row in rows]))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)
def test_per_sample_gradients(geometry: Geometry, device: str) -> None:
    x = mapped(geometry.input, 0, 0).to(device)
    w, b = (random_tensor(shape, torch.float64, device, 1) for shape in (geometry.weight, (geometry.cout,)))

    def loss(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return convt_ext.conv_transpose2d(x, w, b, **geometry.arguments).square().sum()

    grads = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)), in_dims=(None, None, 0))(w, b, x)
    for index in range(BATCH):
        leaves = [t.detach().clone().requires_grad_() for t in (w, b, x[index])]
        F.conv_transpose2d(leaves[2], leaves[0], leaves[1], **geometry.arguments).square().sum().backward()
        for grad, leaf in zip(grads, leaves, strict=True):
            torch.testing.assert_close(grad[index], leaf.grad)


def test_grad_of_vmap_and_vmap_of_ensembles(device: str) -> None:
    """Backward through vmap with mapped weights: an ensemble of layers trained at once."""
    geometry = GEOMETRIES[1]
    x = random_tensor(geometry.input, torch.float64, device)
    w = mapped(geometry.weight, 0, 1).to(device).requires_grad_()
    ensemble = torch.vmap(lambda w: convt_ext.conv_transpose2d(x, w, None, **geometry.arguments))(w)
    (actual,) = torch.autograd.grad(ensemble.square().sum(), w)
    expected = looped([x, w, None], [None, 0, None], geometry.arguments)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), w)
    torch.testing.assert_close(actual, expected_grad)


@pytest.mark.parametrize("argument", ["input", "weight", "bias"])
@pytest.mark.parametrize("transform", NESTED_TRANSFORMS)
def test_nested_transforms(transform: str, argument: str, device: str) -> None:
    """A level of derivatives does not hide the operator from those around it."""
    geometry = GEOMETRIES[1]
    tensors = [random_tensor(shape, torch.float64, device, 1) for shape in (geometry.input, geometry.weight)]
    tensors.append(random_tensor((geometry.cout,), torch.float64, device, 2))
    index = ("input", "weight", "bias").index(argument)

    def results(operator: Callable[..., Tensor]) -> Tensor:
        def energy(t: Tensor) -> Tensor:
            y = operator(*tensors[:index], t, *tensors[index + 1 :], **geometry.arguments)
            return (y.square() + y.sin()).sum()

        return NESTED_TRANSFORMS[transform](energy, tensors[index])

    torch.testing.assert_close(results(convt_ext.conv_transpose2d), results(F.conv_transpose2d))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype, bias: bool, device: str) -> None:
    geometry = Geometry("autocast", (2, 4, 5, 6), 3, (3, 3), stride=(2, 2), bias=bias)
    x, w, b = geometry.tensors(torch.float32, device)
    for t in (x, w, b):
        if t is not None:
            t.requires_grad_()
    with torch.autocast(device, dtype=dtype):
        out = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
        with torch.autocast(device, enabled=False):
            plain = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
        assert convt_ext.conv_transpose2d(x, w, b, **geometry.arguments).dtype == dtype
    assert (out.dtype, plain.dtype) == (dtype, torch.float32)
    by_hand = convt_ext.conv_transpose2d(
        *(None if t is None else t.detach().to(dtype) for t in (x, w, b)), **geometry.arguments
    )
    assert torch.equal(out, by_hand)
    out.float().square().sum().backward()
    for t in (x, w, b):
        if t is not None:
            assert t.grad is not None
            assert t.grad.dtype == torch.float32
            assert t.grad.abs().sum() > 0
    assert convt_ext.conv_transpose2d(x, w, b, **geometry.arguments).dtype == torch.float32


def test_autocast_follows_the_current_dtype(device: str) -> None:
    """The default dtype of autocast is read at each call, not once."""
    x, w = torch.randn(1, 2, 3, 3, device=device), torch.randn(2, 2, 2, 2, device=device)
    default = torch.get_autocast_dtype(device)
    try:
        for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
            torch.set_autocast_dtype(device, dtype)
            with torch.autocast(device):
                assert convt_ext.conv_transpose2d(x, w).dtype == dtype
                assert convt_ext.conv_transpose2d(x, w).dtype == F.conv_transpose2d(x, w).dtype
    finally:
        torch.set_autocast_dtype(device, default)


def test_autocast_of_mixed_dtypes_and_float64(device: str) -> None:
    """Mixed inputs meet in autocast's dtype, as with torch's own convolutions; float64 is left alone."""
    x, w, b = (
        torch.randn(1, 2, 3, 3, device=device),
        torch.randn(2, 2, 2, 2, device=device),
        torch.zeros(2, device=device),
    )
    with torch.autocast(device, dtype=torch.bfloat16):
        assert convt_ext.conv_transpose2d(x.bfloat16(), w, b).dtype == torch.bfloat16
        assert convt_ext.conv_transpose2d(x, w.half(), b).dtype == torch.bfloat16
        assert convt_ext.conv_transpose2d(x.double(), w.double(), b.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match=r"weight must have the dtype of input \(bfloat16\), got float32"):
        convt_ext.conv_transpose2d(x.bfloat16(), w, b)


def test_autocast_of_a_module(device: str) -> None:
    module = convt_ext.ConvTranspose2d(3, 4, 3, stride=2).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = module(torch.randn(2, 3, 5, 5, device=device))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
