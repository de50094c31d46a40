"""The activations of ``convt::conv_transpose2d_act``: names, numbers, derivatives, and the modules that stand for them.

The same table as in cuda/library.cpp; tests/test_refusals.py holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._shapes import require

_aten = torch.ops.aten
# Whether the gradient of torch.clamp is zero at its limits.
_CLAMP_STOPS_AT_LIMITS: bool = torch.__version__ >= (2, 14)  # type: ignore[operator]


@dataclass(frozen=True)
class Kind:
    """An activation without its numbers."""

    #: The gradient by x, from the one by the activation of x; of (gradient, x, *numbers). None where it is the same.
    derivative: Callable[..., Tensor] | None
    numbers: tuple[str, ...] = ()  # by name, in torch's order
    defaults: tuple[float, ...] | None = ()  # None: they must be given


def _in_float32(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A formula of several operators, rounded once."""

    def rounded(grad: Tensor, x: Tensor, *numbers: float) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            return formula(grad.float(), x.float(), *numbers).to(x.dtype)
        return formula(grad, x, *numbers)

    return rounded


# aten's own have no derivative.
@_in_float32
def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.silu_backward(grad, x)
    sigmoid = x.sigmoid()
    return grad * sigmoid * (1 + x * (1 - sigmoid))


# For some of aten's own DTensor has no rule, in some versions of torch: derivatives of a class of tensors other than
# torch's are written in operators that all have one for. Those of mish need no derivative then.
@_in_float32
def _mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        tanh = nn.functional.softplus(x).tanh()
    elif type(x) is Tensor:
        return _aten.mish_backward(grad, x)
    else:
        tanh = (x.relu() + x.abs().neg().exp().log1p()).tanh()
    return grad * (tanh + x * x.sigmoid() * (1 - tanh * tanh))


def _leaky_relu_backward(grad: Tensor, x: Tensor, slope: float) -> Tensor:
    if type(x) is Tensor:
        return _aten.leaky_relu_backward(grad, x, slope, False)
    positive = x > 0
    return grad.masked_fill(~positive, 0) + grad.masked_fill(positive, 0) * slope


def _elu_backward(grad: Tensor, x: Tensor, alpha: float) -> Tensor:
    if type(x) is Tensor:
        return _aten.elu_backward(grad, alpha, 1, 1, False, x)
    return _elu_formula(grad, x, alpha)


@_in_float32
def _elu_formula(grad: Tensor, x: Tensor, alpha: float) -> Tensor:
    curved = x <= 0
    return grad.masked_fill(curved, 0) + grad.masked_fill(~curved, 0) * alpha * x.masked_fill(~curved, 0).exp()


# DTensor has no rule for aten's own of the next three in any version.
@_in_float32
def _hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    slope = (x / 3 + 0.5).masked_fill(x <= -3, 0).masked_fill(x >= 3, 1)
    return grad * slope


# The two differ for NaN and, in some versions of torch, at the limits.
def _hardtanh_backward(grad: Tensor, x: Tensor, least: float, largest: float) -> Tensor:
    return grad.masked_fill((x <= least) | (x >= largest), 0)


def _clamp_backward(grad: Tensor, x: Tensor, least: float, largest: float) -> Tensor:
    passes = (x > least) & (x < largest) if _CLAMP_STOPS_AT_LIMITS else (x >= least) & (x <= largest)
    return grad.masked_fill(~passes, 0)


_RANGE = ("min_val", "max_val")
KINDS = {
    "none": Kind(None),
    "relu": Kind(lambda grad, x: _aten.threshold_backward(grad, x, 0)),
    "leaky_relu": Kind(_leaky_relu_backward, ("negative_slope",), (0.01,)),
    "elu": Kind(_elu_backward, ("alpha",), (1.0,)),
    "silu": Kind(_silu_backward),
    "gelu": Kind(lambda grad, x: _aten.gelu_backward(grad, x)),
    "gelu_tanh": Kind(lambda grad, x: _aten.gelu_backward(grad, x, approximate="tanh")),
    "mish": Kind(_mish_backward),
    "sigmoid": Kind(lambda grad, x: _aten.sigmoid_backward(grad, x.sigmoid())),
    "tanh": Kind(lambda grad, x: _aten.tanh_backward(grad, x.tanh())),
    "hardtanh": Kind(_hardtanh_backward, _RANGE, (-1.0, 1.0)),
    "clamp": Kind(_clamp_backward, _RANGE, None),
    "hardswish": Kind(_hardswish_backward),
}

# What a module does, as the operator's `activation` and `params`.
_MODULES: dict[type[nn.Module], Callable[[Any], tuple[str, tuple[float, ...]]]] = {
    nn.ReLU: lambda module: ("relu", ()),
    nn.LeakyReLU: lambda module: ("leaky_relu", (float(module.negative_slope),)),
    nn.ELU: lambda module: ("elu", (float(module.alpha),)),
    nn.SiLU: lambda module: ("silu", ()),
    nn.GELU: lambda module: ("gelu" if module.approximate == "none" else "gelu_tanh", ()),
    nn.Mish: lambda module: ("mish", ()),
    nn.Sigmoid: lambda module: ("sigmoid", ()),
    nn.Tanh: lambda module: ("tanh", ()),
    nn.Hardtanh: lambda module: ("hardtanh", (float(module.min_val), float(module.max_val))),
    nn.ReLU6: lambda module: ("hardtanh", (0.0, 6.0)),
    nn.Hardswish: lambda module: ("hardswish", ()),
}


def of_module(module: nn.Module) -> tuple[str, tuple[float, ...]] | None:
    """The `activation` and `params` that compute what a module does; None if the operator has none that does."""
    describe = _MODULES.get(type(module))
    if describe is None:
        return None
    activation, params = describe(module)
    return None if any(map(math.isnan, params)) else (activation, params)


@dataclass(frozen=True)
class Activation:
    """What follows the convolution: ``scale * activation(x) + shift``."""

    kind: Kind
    numbers: tuple[float, ...] = ()
    scale: float = 1.0
    shift: float = 0.0

    @property
    def bends(self) -> bool:
        """Whether the derivative depends on x."""
        return self.kind.derivative is not None

    def derivative(self, grad: Tensor, x: Tensor | None) -> Tensor:
        """The product of a gradient or tangent and the derivative at x, which may be None if it does not matter.

        It can be differentiated again, by both.
        """
        if self.scale != 1:
            grad = grad * self.scale
        return grad if self.kind.derivative is None else self.kind.derivative(grad, x, *self.numbers)


NONE = Activation(KINDS["none"])


def parse(activation: str = "none", params: Sequence[float] = ()) -> Activation:
    """The activation that the operator's last two arguments mean.

    Raises:
        RuntimeError: one of them is not valid; the message names it, its value and what was expected.
    """
    require(
        activation in KINDS,
        lambda: f"activation must be one of {', '.join(KINDS)}, got '{activation}'",
    )
    kind = KINDS[activation]
    given, count = tuple(float(number) for number in params), len(kind.numbers)

    def text() -> str:
        return f"[{', '.join(f'{number:g}' for number in given)}]"

    counts = sorted({*(() if kind.defaults is None else (0,)), count, count + 2})
    names = [*([f"{', '.join(kind.numbers)}, then"] if kind.numbers else []), "scale and shift"]
    require(
        len(given) in counts,
        lambda: (
            f"params of {activation} must hold {', '.join(map(str, counts[:-1]))} or {counts[-1]} numbers"
            f" ({' '.join(names)}), got {text()}"
        ),
    )
    require(
        not any(map(math.isnan, given)),
        lambda: f"params of {activation} must not be NaN, got {text()}",
    )
    numbers, rest = given[:count], given[count:]
    if not given and kind.defaults is not None:
        numbers = kind.defaults
    if kind.numbers == _RANGE:
        require(
            numbers[0] <= numbers[1],
            lambda: f"params of {activation} must hold a min_val that is at most max_val, got {text()}",
        )
    return Activation(kind, numbers, *rest)
