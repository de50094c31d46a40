"""Export to ONNX: the operator is a standard ``ConvTranspose`` node, an activation standard nodes behind it.

Needs onnxscript, as torch's exporter itself does: ``pip install "convt_ext[onnx]"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._activation import parse
from ._shapes import expand


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` for :func:`torch.onnx.export` of a model with the operator in it.

    Each call of the operator becomes one ``ConvTranspose`` of the standard domain, with an ``Unsqueeze`` before it and
    a ``Squeeze`` behind it where the input has no batch. An activation, a scale and a shift become standard nodes
    behind it. Any runtime of ONNX can run them, without this package. The exporter that reads the table is the one for
    ``dynamo=True``.

    Dtypes:
        those of the model; ``ConvTranspose`` takes bfloat16 from ``opset_version=22`` on.

    Raises:
        ImportError: onnxscript is not installed.

    Example:
        >>> import torch, convt_ext.onnx
        >>> model = convt_ext.convert(torch.nn.Sequential(torch.nn.ConvTranspose2d(8, 4, 4, 2, 1)))
        >>> table = convt_ext.onnx.translation_table()
        >>> program = torch.onnx.export(
        ...     model, (torch.randn(1, 8, 5, 5),), dynamo=True, verbose=False, custom_translation_table=table
        ... )
        >>> [node.op_type for node in program.model.graph]
        ['ConvTranspose']
    """
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise ImportError(
            f'convt_ext.onnx needs onnxscript (pip install "convt_ext[onnx]"), and it cannot be imported: {error}'
        ) from error
    op: Any = opset18  # a node is typed as every tensor type of ONNX, which no argument takes

    def conv_transpose2d(
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        output_padding: Sequence[int] = (0,),
        groups: int = 1,
        dilation: Sequence[int] = (1,),
    ) -> Any:
        batched = len(input.shape) == 4
        stride, padding = expand("stride", stride), expand("padding", padding)
        output_padding = expand("output_padding", output_padding)
        # onnxruntime refuses an output_padding that is not below the stride. Pixels added are the first ones cropped.
        uncropped = [min(o, p) if o >= s else 0 for o, p, s in zip(output_padding, padding, stride, strict=True)]
        output = op.ConvTranspose(
            input if batched else op.Unsqueeze(input, op.Constant(value_ints=[0])),
            weight,
            bias,
            strides=stride,
            # Before the first pixel along H and W, then behind the last.
            pads=padding + [p - u for p, u in zip(padding, uncropped, strict=True)],
            output_padding=[o - u for o, u in zip(output_padding, uncropped, strict=True)],
            group=groups,
            dilations=expand("dilation", dilation),
        )
        return output if batched else op.Squeeze(output, op.Constant(value_ints=[0]))

    def gelu(x: Any) -> Any:
        return op.Mul(op.Mul(x, 0.5), op.Add(op.Erf(op.Mul(x, math.sqrt(0.5))), 1.0))

    def gelu_tanh(x: Any) -> Any:
        cubic = op.Add(x, op.Mul(op.Mul(op.Mul(x, x), x), 0.044715))
        return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(op.Mul(cubic, math.sqrt(2 / math.pi))), 1.0))

    activations: dict[str, Callable[..., Any]] = {
        "none": lambda x: x,
        "relu": op.Relu,
        "leaky_relu": lambda x, slope: op.LeakyRelu(x, alpha=slope),
        "elu": lambda x, alpha: op.Elu(x, alpha=alpha),
        "silu": lambda x: op.Mul(x, op.Sigmoid(x)),
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "mish": op.Mish,
        "sigmoid": op.Sigmoid,
        "tanh": op.Tanh,
        "hardtanh": op.Clip,
        "clamp": op.Clip,
        "hardswish": op.HardSwish,
    }

    def conv_transpose2d_act(*arguments: Any, activation: str = "none", params: Sequence[float] = ()) -> Any:
        output = conv_transpose2d(*arguments)
        parsed = parse(activation, params)
        output = activations[activation](output, *parsed.numbers)
        if parsed.scale != 1:
            output = op.Mul(output, parsed.scale)
        return output if parsed.shift == 0 else op.Add(output, parsed.shift)

    return {
        torch.ops.convt.conv_transpose2d.default: conv_transpose2d,
        torch.ops.convt.conv_transpose2d_act.default: conv_transpose2d_act,
    }
