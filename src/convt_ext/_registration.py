"""What the operators do outside of plain inference: shapes without data, gradients, autocast and vmap.

LibTorch's stable ABI has no autograd, so all of this is registered from Python. Importing the module registers it.
Arguments of ``convt::conv_transpose2d`` are positional; those that ``convt::conv_transpose2d_act`` adds are keywords.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from . import _activation
from ._shapes import check_arguments, expand, is_channels_last

_plain = torch.ops.convt.conv_transpose2d.default
_activated = torch.ops.convt.conv_transpose2d_act.default
_library = torch.library.Library("convt", "IMPL")  # lives as long as the process, like the operators


@torch.library.register_fake(_plain)
def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Tensor:
    sizes = check_arguments(input, weight, bias, stride, padding, output_padding, groups, dilation)
    layout = torch.channels_last if is_channels_last(input) else torch.contiguous_format
    return torch.empty(sizes, dtype=input.dtype, device=input.device, memory_format=layout)


@torch.library.register_fake(_activated)
def _fake_activated(*args: Any, activation: str = "none", params: Sequence[float] = ()) -> Tensor:
    _activation.parse(activation, params)
    return _fake(*args)


# ---------------------------------------------------------------- autograd


def backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of a batch [N, Cin, H, W] by input, weight and bias, None for those that are not wanted.

    aten's backward is differentiable itself, which gives the second derivatives.
    """
    bias_sizes = [grad.shape[1]] if wanted[2] else None
    return torch.ops.aten.convolution_backward(
        grad, input, weight, bias_sizes, stride, padding, dilation, True, output_padding, groups, wanted
    )


@dataclass(frozen=True)
class TensorClass:
    """How the derivatives of tensors of a class are computed."""

    backward: Callable[..., tuple[Tensor | None, ...]] = backward
    #: A tensor as operators on its elements take it.
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor


_TENSORS = TensorClass()
tensor_classes: dict[type, TensorClass] = {}  # convt_ext.dtensor adds DTensor


# Without them an operator is called below autocast: tensors have been cast where it was on.
_autocast_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCPU
)


class _Function(torch.autograd.function._SingleLevelFunction):
    """An operator with its derivatives.

    Arguments are the operator below autograd, its keyword arguments, then all positional ones.

    Not a `torch.autograd.Function`: that one goes through the transforms of torch.func again, which the dispatcher has
    done before it comes to the Autograd key.
    """

    @staticmethod
    def forward(operator: Callable[..., Tensor], keywords: dict[str, Any], *args: Any) -> Tensor:
        return operator(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, keywords, x, weight, bias, stride, padding, output_padding, groups, dilation = inputs
        ctx.activation = _activation.parse(**keywords) if keywords else _activation.NONE
        # The output of the convolution alone is not kept: derivatives of an activation compute it again.
        tensors = (x, weight, bias if ctx.activation.bends else None)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.output_shape = output.shape
        ctx.geometry = (
            expand("stride", stride),
            expand("padding", padding),
            expand("output_padding", output_padding),
            groups,
            expand("dilation", dilation),
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        grad = _Function._times_derivative(ctx, grad, x, weight, bias)
        batched = x.dim() == 4
        grad_x, grad_weight, grad_bias = tensor_classes.get(type(x), _TENSORS).backward(
            grad if batched else grad.unsqueeze(0),
            x if batched else x.unsqueeze(0),
            weight,
            *ctx.geometry,
            list(ctx.needs_input_grad[2:5]),
        )
        if grad_x is not None and not batched:
            grad_x = grad_x.squeeze(0)
        return None, None, grad_x, grad_weight, grad_bias, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        dx, dweight, dbias = tangents[2:5]
        # Without this level's own tangents, and with those of the levels around it.
        x, weight, bias = ctx.saved_tensors
        x, weight = forward_ad.unpack_dual(x).primal, forward_ad.unpack_dual(weight).primal
        bias = None if bias is None else forward_ad.unpack_dual(bias).primal
        with forward_ad._set_fwd_grad_enabled(True):
            # The convolution is linear in the input, in the weight and in the bias.
            terms = []
            if dx is not None:
                terms.append(_plain(dx, weight, None, *ctx.geometry))
            if dweight is not None:
                terms.append(_plain(x, dweight, None, *ctx.geometry))
            if dbias is not None:
                terms.append(dbias.reshape(-1, 1, 1).expand(ctx.output_shape))
            return _Function._times_derivative(ctx, sum(terms[1:], start=terms[0]), x, weight, bias)

    @staticmethod
    def _times_derivative(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product of a gradient or tangent and the derivative of the activation."""
        if not ctx.activation.bends:
            return ctx.activation.derivative(grad, None)
        whole = tensor_classes.get(type(x), _TENSORS).whole
        with torch._C._ExcludeDispatchKeyGuard(_autocast_keys):
            return ctx.activation.derivative(whole(grad), whole(_plain(x, weight, bias, *ctx.geometry)))


_DEFAULTS = (None, (1,), (0,), (0,), 1, (1,))  # of bias and the arguments after it


def _complete(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns all eight arguments; the dispatcher leaves out trailing ones that have their defaults."""
    return args + _DEFAULTS[len(args) - 2 :]


def _register_autograd(operator: Any) -> None:
    # `torch.library.register_autograd` would do but for two things: it drops forward-mode tangents without a word, and
    # its bookkeeping costs a call that needs no gradient several microseconds.
    def kernel(keyset: Any, *args: Any, **keywords: Any) -> Tensor:
        keys = keyset & torch._C._after_autograd_keyset
        reverse = torch.is_grad_enabled()
        needs_gradient = reverse and torch._C._any_requires_grad(*args)
        if not needs_gradient and forward_ad._current_level < 0:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.redispatch(keys, *args, **keywords)
        forward = torch._C._is_fwd_grad_enabled()

        def below(*args: Any) -> Tensor:
            # The function has turned both modes off, for all levels of torch.func's transforms: not for those around.
            with (
                torch.set_grad_enabled(reverse),
                forward_ad._set_fwd_grad_enabled(forward),
                torch._C._AutoDispatchBelowAutograd(),
            ):
                return operator.redispatch(keys, *args, **keywords)

        with enable_single_level_autograd_function():
            return _Function.apply(below, keywords, *_complete(args))  # type: ignore[attr-defined]

    _library.impl(operator, kernel, "Autograd", with_keyset=True)


# ---------------------------------------------------------------- autocast


def _register_autocast(operator: Any, device_type: str, key: str) -> None:
    """Runs the operator in the autocast dtype that is current when it is called.

    `torch.library.register_autocast` fixes the dtype at registration, which would ignore ``torch.autocast(dtype=...)``.
    """
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        # As torch's own autocast: float64 and tensors of other devices are left alone.
        if tensor is None or tensor.device.type != device_type or not tensor.is_floating_point():
            return tensor
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    def kernel(input: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any, **keywords: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            return operator(cast(input, dtype), cast(weight, dtype), cast(bias, dtype), *geometry, **keywords)

    _library.impl(operator, kernel, key)


# ---------------------------------------------------------------- vmap


def _lead(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Returns `tensor` with its mapped dimension in front; an unmapped one is repeated without a copy."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _vmap(operator: Any, info: Any, in_dims: Sequence[Any], *args: Any, **keywords: Any) -> tuple[Tensor, int]:
    input, weight, bias, stride, padding, output_padding, groups, dilation = _complete(args)
    input_dim, weight_dim, bias_dim = (*in_dims, None)[:3]
    call = partial(operator, **keywords)
    size = info.batch_size
    x = _lead(input, input_dim, size)
    batched = x.dim() == 5
    if weight_dim is None and bias_dim is None:
        # More images.
        images = x.flatten(0, 1) if batched else x
        y = call(images, weight, bias, stride, padding, output_padding, groups, dilation)
        return (
            y.unflatten(0, (size, -1)) if batched and x.shape[1] != 0 else y.reshape(*x.shape[:-3], *y.shape[1:])
        ), 0
    # More groups, one block of them for each mapped weight.
    w = _lead(weight, weight_dim, size).flatten(0, 1)
    b = None if bias is None else _lead(bias, bias_dim, size).flatten()
    stacked = x.movedim(0, 1).flatten(1, 2) if batched else x.flatten(0, 1)
    y = call(stacked, w, b, stride, padding, output_padding, groups * size, dilation)
    return (y.unflatten(1, (size, -1)).movedim(1, 0) if batched else y.unflatten(0, (size, -1))), 0


for _operator in (_plain, _activated):
    _register_autograd(_operator)
    _register_autocast(_operator, "cuda", "AutocastCUDA")
    _register_autocast(_operator, "cpu", "AutocastCPU")
    torch.library.register_vmap(_operator, partial(_vmap, _operator))
