"""The operator's argument checks and output layout for tensors without data.

The same checks in the same order and with the same messages as ``check_arguments`` in cuda/library.cpp; written again
because sizes may be symbolic here, which C++ cannot see. tests/test_refusals.py holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST = 2**31 - 1


def require(condition: bool | torch.SymBool, message: Callable[[], str]) -> None:
    """Raises RuntimeError unless `condition` holds; a condition on symbolic sizes becomes a guard."""
    torch._check(condition, lambda: f"convt::conv_transpose2d: {message()}")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require_like_input(name: str, tensor: Tensor, x: Tensor) -> None:
    require(
        tensor.dtype == x.dtype,
        lambda: f"{name} must have the dtype of input ({_name(x.dtype)}), got {_name(tensor.dtype)}",
    )
    require(
        tensor.device == x.device,
        lambda: f"{name} must be on the device of input ({x.device}), got {tensor.device}",
    )


def expand(name: str, values: int | Sequence[int]) -> list[int]:
    """Returns the two values that one or two ints stand for, along H and W."""
    if isinstance(values, int):
        return [values, values]
    require(len(values) in (1, 2), lambda: f"{name} must hold 1 or 2 ints, got {list(values)}")
    return [values[0], values[-1]]


def _require_range(name: str, values: list[int], least: int) -> None:
    kind = "non-negative" if least == 0 else "positive"
    for value in values:
        require(value >= least, lambda: f"{name} must be {kind}, got {values}")
        require(value <= _LARGEST, lambda: f"{name} must be at most {_LARGEST}, got {values}")


def is_channels_last(x: Tensor) -> bool:
    """Whether torch counts a 4-D tensor as channels_last (c10/core/MemoryFormat.h, is_channels_last_strides_2d)."""
    if x.dim() != 4:
        return False
    sizes, strides = x.shape, x.stride()
    if strides[1] == 0:
        return False
    least: int | torch.SymInt = 0
    for d in (1, 3, 2, 0):
        if sizes[d] == 0 or strides[d] < least:
            return False
        if d == 0 and least == strides[1]:
            return False
        least = strides[d]
        if sizes[d] > 1:
            least = least * sizes[d]
    return True


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> list[int]:
    """Checks the arguments of the operator and returns the sizes of its output.

    Raises:
        RuntimeError: an argument is not valid; the message names it, its value and what was expected.
    """
    rank = x.dim()
    require(rank in (3, 4), lambda: f"input must be 3-D [Cin, H, W] or 4-D [N, Cin, H, W], got shape {_shape(x)}")
    require(weight.dim() == 4, lambda: f"weight must be 4-D [Cin, Cout/groups, KH, KW], got shape {_shape(weight)}")
    require(x.dtype in _FLOATING, lambda: f"input must be float16, bfloat16, float32 or float64, got {_name(x.dtype)}")
    _require_like_input("weight", weight, x)

    stride = expand("stride", stride)
    padding = expand("padding", padding)
    output_padding = expand("output_padding", output_padding)
    dilation = expand("dilation", dilation)
    _require_range("stride", stride, 1)
    _require_range("padding", padding, 0)
    _require_range("output_padding", output_padding, 0)
    _require_range("dilation", dilation, 1)
    require(groups >= 1, lambda: f"groups must be positive, got {groups}")

    for side in weight.shape:
        require(side >= 1, lambda: f"weight must have at least one element on every side, got shape {_shape(weight)}")
    cin = x.shape[-3]
    require(
        weight.shape[0] == cin, lambda: f"weight must have input's channels first ({cin}), got shape {_shape(weight)}"
    )
    require(cin % groups == 0, lambda: f"groups must divide input's channels ({cin}), got {groups}")
    cout = weight.shape[1] * groups
    if bias is not None:
        require(
            bias.dim() == 1 and bias.shape[0] == cout,
            lambda: f"bias must be 1-D with one element per output channel ({cout}), got shape {_shape(bias)}",
        )
        _require_like_input("bias", bias, x)
    for d in (0, 1):
        require(
            output_padding[d] < stride[d] or output_padding[d] < dilation[d],
            lambda: (
                f"output_padding must be smaller than stride or dilation, got output_padding {output_padding}"
                f" with stride {stride} and dilation {dilation}"
            ),
        )
    for side in x.shape[-3:]:
        require(side >= 1, lambda: f"input must have non-empty channels, height and width, got shape {_shape(x)}")

    size, kernel = list(x.shape[-2:]), list(weight.shape[2:])
    output = [
        (size[d] - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + output_padding[d] + 1
        for d in (0, 1)
    ]
    for side in output:
        require(
            side >= 1,
            lambda: (
                f"output size must be positive, got {output} for input size {size}, kernel {kernel}, stride {stride},"
                f" padding {padding}, output_padding {output_padding}, dilation {dilation}"
            ),
        )
    return [*x.shape[:-3], cout, *output]
