"""Transposed convolutions as values: shapes and arguments without data, described, checked, and found in a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ._shapes import is_channels_last
from .functional import conv_transpose1d, conv_transpose2d

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Layer:
    """One transposed convolution, in one dimension or two: pairs and sizes have an entry for each axis, H before W."""

    input: tuple[int, ...]  # [N, Cin, L] or [N, Cin, H, W]
    weight: tuple[int, ...]  # [Cin, Cout / groups, K] or [Cin, Cout / groups, KH, KW]
    bias: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    dtype: torch.dtype

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Arguments of the operator after the bias."""
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation

    @property
    def ours(self) -> Callable[..., Tensor]:
        return conv_transpose1d if len(self.input) == 3 else conv_transpose2d

    @property
    def torchs(self) -> Callable[..., Tensor]:
        functional = torch.nn.functional
        return functional.conv_transpose1d if len(self.input) == 3 else functional.conv_transpose2d

    def output(self) -> tuple[int, ...]:
        """The sizes of the output.

        Raises:
            RuntimeError: an argument is not valid; the message names it, its value and what was expected.
        """
        x, weight, bias = self.tensors(torch.device("meta"))
        return tuple(self.ours(x, weight, bias, *self.arguments).shape)

    def tensors(self, device: torch.device, layout: str = "nchw") -> tuple[Tensor, Tensor, Tensor | None]:
        """Random input, weight and bias; channels are neighbours in memory in the layout "nhwc"."""
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(0)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device, dtype=self.dtype)

        bias = normal(self.weight[1] * self.groups) if self.bias else None
        return in_layout(normal(*self.input), layout), in_layout(normal(*self.weight), layout), bias

    def geometry(self) -> str:
        """The arguments that are not torch's defaults, as in "stride 2, padding 1"."""
        parts = []
        for name, values, default in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("output_padding", self.output_padding, 0),
            ("dilation", self.dilation, 1),
        ):
            if set(values) != {default}:
                parts.append(f"{name} {values[0] if len(set(values)) == 1 else ','.join(map(str, values))}")
        parts += [f"groups {self.groups}"] if self.groups != 1 else []
        parts += ["bias"] if self.bias else []
        return ", ".join(parts)

    def __str__(self) -> str:
        parts = [f"input {by(self.input)}", f"weight {by(self.weight)}", self.geometry(), dtype_name(self.dtype)]
        return ", ".join(part for part in parts if part)


def by(sizes: Sequence[int]) -> str:
    """Sizes as in "8x64x128x128"."""
    return "x".join(map(str, sizes))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """A 3-D or 4-D tensor in one of LAYOUTS; torch has no name for the channels_last of three dimensions."""
    if tensor.dim() == 3:
        return tensor.mT.contiguous().mT if layout == "nhwc" else tensor.contiguous()
    return tensor.contiguous(memory_format=LAYOUTS[layout])


def layout_of(tensor: Tensor) -> str:
    """The name in LAYOUTS that the operator gives its output for this 3-D or 4-D input."""
    return "nhwc" if is_channels_last(tensor.unsqueeze(-2) if tensor.dim() == 3 else tensor) else "nchw"


@dataclass
class Found:
    """A layer, and the calls of it that a model makes: for each the module that is running, and the input's layout."""

    layer: Layer
    names: list[str] = field(default_factory=list)  # "" is the model itself
    layouts: list[str] = field(default_factory=list)


@dataclass
class Search:
    """What :func:`find` found."""

    found: list[Found] = field(default_factory=list)  # in the order of first calls
    left: dict[str, str] = field(default_factory=dict)  # calls that cannot be timed: the module's name, and why


def find(model: nn.Module, *args: Any, **kwargs: Any) -> Search:
    """Runs a model and returns the transposed convolutions that it called, whatever module or function called them.

    Equal calls are put together.
    """
    calling = [""]  # the names of the modules that are running, the innermost last
    search = Search()
    hooks = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: calling.append(name)

    def leave(*_: Any) -> None:
        calling.pop()

    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # TorchScript would run the hooks as part of the program
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        with torch.no_grad(), _Recorder(search, calling):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return search


# What an operator does after the convolution is not timed.
_OPERATORS = (
    torch.ops.convt.conv_transpose2d.default,
    torch.ops.convt.conv_transpose2d_act.default,
    torch.ops.aten.conv_transpose2d.input,
)
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}


class _Recorder(TorchDispatchMode):
    """Notes each transposed convolution that the dispatcher meets, and runs it."""

    def __init__(self, search: Search, calling: Sequence[str]) -> None:
        super().__init__()
        self.search = search
        self.calling = calling

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.convolution.default:
            x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
            if transposed:
                self._note(x, weight, bias, stride, padding, output_padding, groups, dilation)
        elif func in (*_OPERATORS, torch.ops.aten.conv_transpose1d.default):
            # The dispatcher leaves out trailing arguments that have their defaults.
            values = {**_DEFAULTS, **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            self._note(*(values[name] for name in _ARGUMENTS))
        return func(*args, **kwargs)

    def _note(self, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> None:
        name = self.calling[-1]
        axes = weight.dim() - 2
        if axes == 3:
            self.search.left[name] = "it has three dimensions"
            return
        if x.dtype not in DTYPES.values():
            self.search.left[name] = f"its dtype is {dtype_name(x.dtype)}"
            return
        stride, padding, output_padding, groups, dilation = geometry

        def each_axis(values: int | Sequence[int]) -> tuple[int, ...]:
            given = [values] if isinstance(values, int) else list(values)
            return tuple(given * axes if len(given) == 1 else given)

        batched = x if x.dim() == axes + 2 else x.unsqueeze(0)
        layer = Layer(
            tuple(batched.shape),
            tuple(weight.shape),
            bias is not None,
            each_axis(stride),
            each_axis(padding),
            each_axis(output_padding),
            groups,
            each_axis(dilation),
            x.dtype,
        )
        if 0 in layer.input:
            self.search.left[name] = f"its input is empty: {by(layer.input)}"
            return
        for found in self.search.found:
            if found.layer == layer:
                break
        else:
            found = Found(layer)
            self.search.found.append(found)
        found.names.append(name)
        found.layouts.append(layout_of(batched))
