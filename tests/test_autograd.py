"""Gradients of input, weight and bias, to second order, against numerical ones and against PyTorch's."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reference import LAYOUTS, Geometry
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import convt_ext

GEOMETRIES = (
    Geometry("plain", (1, 2, 3, 2), 2, (2, 3)),
    Geometry("no_bias", (2, 2, 2, 3), 1, (3, 2), stride=(2, 1), bias=False),
    Geometry("groups", (1, 2, 2, 3), 4, (2, 1), stride=(2, 3), groups=2),
    Geometry("depthwise", (1, 2, 3, 2), 2, (3, 2), stride=(2, 2), padding=(1, 0), groups=2),
    Geometry("dilation", (1, 2, 3, 3), 2, (2, 3), dilation=(3, 2), padding=(1, 2)),
    Geometry(
        "output_padding", (1, 2, 2, 2), 1, (3, 2), stride=(3, 2), padding=(1, 1), output_padding=(2, 1), dilation=(2, 1)
    ),
    Geometry("unbatched", (2, 3, 2), 2, (2, 2), stride=(2, 1)),
    Geometry("unbatched_no_bias", (2, 2, 3), 4, (3, 2), stride=(2, 2), padding=(1, 1), groups=2, bias=False),
)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)


def leaves(geometry: Geometry, dtype: torch.dtype, device: str, layout: str = "contiguous") -> list[Tensor]:
    """Input, weight and, if there is one, bias, that require gradients."""
    x, w, b = geometry.tensors(dtype, device)
    tensors = [LAYOUTS[layout](x), LAYOUTS[layout](w), *([] if b is None else [b])]
    return [t.requires_grad_() for t in tensors]


@geometries
def test_gradcheck(geometry: Geometry, device: str) -> None:
    def op(*tensors: Tensor) -> Tensor:
        return convt_ext.conv_transpose2d(*tensors, **geometry.arguments)

    tensors = leaves(geometry, torch.float64, device)
    assert gradcheck(op, tensors)
    assert gradgradcheck(op, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "channels_sliced"])
def test_gradcheck_of_views(layout: str, device: str) -> None:
    """Gradients flow through views of larger tensors to the tensors themselves."""
    geometry = GEOMETRIES[2]

    def op(*tensors: Tensor) -> Tensor:
        x, w, b = tensors
        return convt_ext.conv_transpose2d(LAYOUTS[layout](x), LAYOUTS[layout](w), b, **geometry.arguments)

    assert gradcheck(op, leaves(geometry, torch.float64, device))


@geometries
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradients_are_those_of_torch(geometry: Geometry, layout: str, dtype: torch.dtype, device: str) -> None:
    ours, theirs = (leaves(geometry, dtype, device, layout) for _ in range(2))
    out = convt_ext.conv_transpose2d(*ours, **geometry.arguments)
    expected = F.conv_transpose2d(*theirs, **geometry.arguments)
    seed = torch.randn_like(expected, memory_format=torch.contiguous_format)
    grads = torch.autograd.grad(out, ours, seed)
    expected_grads = torch.autograd.grad(expected, theirs, seed)
    rtol = 4 * torch.finfo(dtype).eps
    for ours_grad, theirs_grad, leaf in zip(grads, expected_grads, ours, strict=True):
        assert (ours_grad.shape, ours_grad.dtype) == (leaf.shape, leaf.dtype)
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=rtol, atol=rtol * theirs_grad.abs().max().item())


@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[6]], ids=lambda geometry: geometry.name)
@pytest.mark.parametrize("needed", [n for n in itertools.product((False, True), repeat=3) if any(n)])
def test_only_the_gradients_asked_for(geometry: Geometry, needed: tuple[bool, bool, bool], device: str) -> None:
    tensors = geometry.tensors(torch.float64, device)
    assert tensors[2] is not None
    ours = [t.clone().requires_grad_(need) for t, need in zip(tensors, needed, strict=True) if t is not None]
    theirs = [t.detach().clone().requires_grad_(t.requires_grad) for t in ours]
    convt_ext.conv_transpose2d(*ours, **geometry.arguments).square().sum().backward()
    F.conv_transpose2d(*theirs, **geometry.arguments).square().sum().backward()
    for ours_leaf, theirs_leaf, need in zip(ours, theirs, needed, strict=True):
        assert (ours_leaf.grad is not None) == need
        if need:
            torch.testing.assert_close(ours_leaf.grad, theirs_leaf.grad)


@geometries
def test_second_derivatives_are_those_of_torch(geometry: Geometry, device: str) -> None:
    """A gradient penalty, as trained GANs use it."""

    def penalty(op: object) -> list[Tensor]:
        tensors = leaves(geometry, torch.float64, device)
        out = op(*tensors, **geometry.arguments)  # type: ignore[operator]
        (grad,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), tensors))

    for ours, theirs in zip(penalty(convt_ext.conv_transpose2d), penalty(F.conv_transpose2d), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_forward_keeps_the_inputs_only(device: str) -> None:
    """The graph saves input and weight, not the output, and lets go of them with it."""
    tensors = leaves(GEOMETRIES[0], torch.float32, device)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = convt_ext.conv_transpose2d(*tensors)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in tensors[:2]}
    out.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()


def test_in_place_change_of_a_saved_input_is_an_error(device: str) -> None:
    x, w, b = leaves(GEOMETRIES[0], torch.float32, device)
    held = x * 1
    out = convt_ext.conv_transpose2d(held, w, b)
    held.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xwb"])
def test_forward_mode(wanted: str, device: str) -> None:
    """No tangent is dropped: those of the input, of the weight, of the bias, and of several at once."""
    geometry = GEOMETRIES[0]
    primals = dict(zip("xwb", geometry.tensors(torch.float64, device), strict=True))
    tangents = {name: torch.randn_like(primals[name]) for name in wanted}

    def derivative(operator: Callable[..., Tensor]) -> Tensor:
        def function(*chosen: Tensor) -> Tensor:
            x, w, b = (primals | dict(zip(wanted, chosen, strict=True))).values()
            return operator(x, w, b, **geometry.arguments)

        at, along = tuple(primals[name] for name in wanted), tuple(tangents.values())
        result: Tensor = torch.func.jvp(function, at, along)[1]
        return result

    torch.testing.assert_close(derivative(convt_ext.conv_transpose2d), derivative(F.conv_transpose2d))


@pytest.mark.parametrize("needed", ["input", "weight"])
def test_gradients_match_in_float32_on_a_large_problem(needed: str, device: str) -> None:
    geometry = Geometry("dcgan", (4, 16, 8, 8), 24, (4, 4), stride=(2, 2), padding=(1, 1))
    x, w, b = geometry.tensors(torch.float32, device)
    leaf = (x if needed == "input" else w).requires_grad_()
    (ours,) = torch.autograd.grad(convt_ext.conv_transpose2d(x, w, b, **geometry.arguments).square().sum(), leaf)
    exact = [None if t is None else t.detach().double().cpu() for t in (x, w, b)]
    exact_leaf = exact[0 if needed == "input" else 1]
    assert exact_leaf is not None
    exact_leaf.requires_grad_()
    (expected,) = torch.autograd.grad(F.conv_transpose2d(*exact, **geometry.arguments).square().sum(), exact_leaf)
    # PyTorch computes the backward pass, in cuDNN's order on CUDA.
    torch.testing.assert_close(ours.double().cpu(), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
