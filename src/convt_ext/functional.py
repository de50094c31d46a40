"""The operators as functions, in two dimensions and in one."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

_operator = torch.ops.convt.conv_transpose2d.default
_activated_operator = torch.ops.convt.conv_transpose2d_act.default


def _autograd_is_idle() -> bool:
    """Whether neither direction of automatic differentiation can want anything of a call made now."""
    return not (
        torch.is_grad_enabled() or torch.autograd.forward_ad._current_level >= 0 or torch.compiler.is_compiling()
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Computes what :func:`torch.nn.functional.conv_transpose2d` computes.

    Args:
        input: [N, Cin, H, W] or [Cin, H, W]; float16, bfloat16, float32 or float64; any strides.
        weight: [Cin, Cout / groups, KH, KW]; dtype and device of `input`.
        bias: [Cout], or None; dtype and device of `input`.
        stride: output pixels between two input pixels, along H and W.
        padding: output pixels cropped on each side.
        output_padding: output pixels added at the bottom and right; below stride or dilation.
        groups: number of blocks into which input and output channels are divided.
        dilation: output pixels between two taps of the filter.

    Returns:
        [N, Cout, OH, OW], or [Cout, OH, OW] for a 3-D input, with
        ``OH = (H - 1) * stride - 2 * padding + dilation * (KH - 1) + output_padding + 1`` and OW likewise. It is
        channels_last if `input` is, else contiguous.

    Raises:
        RuntimeError: an argument is not valid; the message names it, its value and what was expected.

    Example:
        >>> import torch, convt_ext
        >>> x, w = torch.randn(8, 64, 32, 32), torch.randn(64, 32, 4, 4)
        >>> convt_ext.conv_transpose2d(x, w, stride=2, padding=1).shape
        torch.Size([8, 32, 64, 64])
    """
    if _autograd_is_idle():
        # Autograd is registered in Python; going below it saves the two crossings between C++ and Python that it costs.
        with torch._C._AutoDispatchBelowAutograd():
            return _operator(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _operator(input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str = "none",
    params: Sequence[float] = (),
) -> Tensor:
    """Computes ``scale * activation(conv_transpose2d(...)) + shift`` in one launch.

    The values are those of the operators one after the other, the first of them rounded to the dtype, the others
    computed in float32 (float64 in float64) and rounded once. Gradients compute the output of the convolution again,
    rather than keep it.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation: as for :func:`conv_transpose2d`.
        activation: "none", "relu", "leaky_relu", "elu", "silu", "gelu", "gelu_tanh" (GELU by its approximation),
            "mish", "sigmoid", "tanh", "hardtanh", "clamp" or "hardswish".
        params: the numbers of the activation, in torch's order: of "leaky_relu" its negative_slope (0.01), of "elu" its
            alpha (1), of "hardtanh" its min_val and max_val (-1 and 1), of "clamp" the same, which it has no defaults
            for; of the others none. Two more may follow them: scale and shift.

    Returns:
        As :func:`conv_transpose2d`.

    Raises:
        RuntimeError: an argument is not valid; the message names it, its value and what was expected.

    Example:
        >>> import torch, convt_ext
        >>> x, w = torch.randn(8, 64, 32, 32), torch.randn(64, 32, 4, 4)
        >>> y = convt_ext.conv_transpose2d_act(x, w, stride=2, padding=1, activation="clamp", params=(0, 1, 255, 0))
        >>> y.shape, bool(y.min() >= 0), bool(y.max() <= 255)
        (torch.Size([8, 32, 64, 64]), True, True)
    """
    arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
    if _autograd_is_idle():
        with torch._C._AutoDispatchBelowAutograd():
            return _activated_operator(*arguments, activation=activation, params=params)
    return _activated_operator(*arguments, activation=activation, params=params)


def _one(name: str, value: int | Sequence[int]) -> int:
    """Returns the int that `value` stands for along the only axis."""
    given = list(value) if isinstance(value, Sequence) else [value]
    if len(given) != 1:
        raise RuntimeError(f"convt_ext.conv_transpose1d: {name} must be an int or hold 1 int, got {given}")
    if isinstance(given[0], int | torch.SymInt):
        return given[0]
    if not hasattr(given[0], "__index__"):  # which numpy's integers have
        raise RuntimeError(f"convt_ext.conv_transpose1d: {name} must be an int or hold 1 int, got {value}")
    return index(given[0])


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Computes what :func:`torch.nn.functional.conv_transpose1d` computes.

    It is :func:`conv_transpose2d` on images one pixel high: the tensors are viewed so, none is copied.

    Args:
        input: [N, Cin, L] or [Cin, L]; dtypes as for :func:`conv_transpose2d`; any strides.
        weight: [Cin, Cout / groups, K]; dtype and device of `input`.
        bias: [Cout], or None; dtype and device of `input`.
        stride: output samples between two input samples.
        padding: output samples cropped at each end.
        output_padding: output samples added at the end; below stride or dilation.
        groups: number of blocks into which input and output channels are divided.
        dilation: output samples between two taps of the filter.

    Returns:
        [N, Cout, OL], or [Cout, OL] for a 2-D input, with
        ``OL = (L - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1``. The channels of a sample are
        neighbours in memory if those of `input` are, else the samples of a channel.

    Raises:
        RuntimeError: an argument is not valid; the message names it, its value and what was expected. Pairs in it are
            those of the images: the second number is the argument's.

    Example:
        >>> import torch, convt_ext
        >>> x, w = torch.randn(16, 512, 400), torch.randn(512, 256, 16)
        >>> convt_ext.conv_transpose1d(x, w, stride=8, padding=4).shape
        torch.Size([16, 256, 3200])
    """
    images = _as_images(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv_transpose2d(*images).squeeze(-2)


def conv_transpose1d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str = "none",
    params: Sequence[float] = (),
) -> Tensor:
    """Computes ``scale * activation(conv_transpose1d(...)) + shift`` in one launch.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation: as for :func:`conv_transpose1d`.
        activation: as for :func:`conv_transpose2d_act`.
        params: as for :func:`conv_transpose2d_act`.

    Returns:
        As :func:`conv_transpose1d`.

    Raises:
        RuntimeError: an argument is not valid; the message names it, its value and what was expected.

    Example:
        >>> import torch, convt_ext
        >>> x, w = torch.randn(16, 512, 400), torch.randn(512, 256, 16)
        >>> y = convt_ext.conv_transpose1d_act(x, w, stride=8, padding=4, activation="leaky_relu", params=(0.1,))
        >>> y.shape
        torch.Size([16, 256, 3200])
    """
    images = _as_images(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv_transpose2d_act(*images, activation=activation, params=params).squeeze(-2)


def _as_images(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> tuple[Any, ...]:
    """The arguments in two dimensions of a call in one: images one pixel high."""
    stride, padding, output_padding, groups, dilation = geometry
    for name, tensor, ranks, shape in (
        ("input", input, (2, 3), "2-D [Cin, L] or 3-D [N, Cin, L]"),
        ("weight", weight, (3,), "3-D [Cin, Cout/groups, K]"),
    ):
        if tensor.dim() not in ranks:
            raise RuntimeError(f"convt_ext.conv_transpose1d: {name} must be {shape}, got shape {list(tensor.shape)}")
    return (
        input.unsqueeze(-2),
        weight.unsqueeze(-2),
        bias,
        [1, _one("stride", stride)],
        [0, _one("padding", padding)],
        [0, _one("output_padding", output_padding)],
        groups,
        [1, _one("dilation", dilation)],
    )


def plan(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> str:
    """Tells which kernel :func:`conv_transpose2d` would run on these arguments, without running it.

    Returns:
        One line with the kernel's name ("aten" on the CPU), then its configuration as key=value pairs. The text is for
        people and may change.

    Raises:
        RuntimeError: as :func:`conv_transpose2d`.

    Example:
        >>> import torch, convt_ext
        >>> convt_ext.plan(torch.randn(1, 3, 8, 8), torch.randn(3, 3, 2, 2), stride=2)
        'aten'
    """
    return torch.ops.convt._plan(input, weight, bias, stride, padding, output_padding, groups, dilation)
