"""The operator as modules, in two dimensions and in one."""

from collections.abc import Callable
from typing import Any, List, Optional, Tuple  # noqa: UP035  (TorchScript reads these annotations)

import torch
from torch import Tensor

from ._activation import KINDS
from .functional import conv_transpose1d, conv_transpose1d_act, conv_transpose2d, conv_transpose2d_act


class _Activated(torch.nn.modules.conv._ConvTransposeNd):
    """A transposed convolution with an activation of its output.

    They are attributes of the class, so that a module of torch's may become one of these by its class alone.
    """

    activation: str = "none"
    params: Tuple[float, ...] = ()  # noqa: UP006
    __constants__ = [*torch.nn.modules.conv._ConvTransposeNd.__constants__, "activation", "params", "activates"]  # noqa: RUF012
    __jit_unused_properties__ = ["activates"]  # noqa: RUF012  (a constant, by which TorchScript chooses what to compile)

    @property
    def activates(self) -> bool:
        """Whether anything follows the convolution."""
        return self.activation != "none" or len(self.params) != 0

    def __setattr__(self, name: str, value: Any) -> None:
        # A module would be taken for a child, and the class's attribute be read all the same.
        if name == "activation" and not (isinstance(value, str) and value in KINDS):
            raise ValueError(f"activation must be one of {', '.join(KINDS)}, got {value!r}")
        if name == "params":
            try:
                value = tuple(float(number) for number in value)
            except (TypeError, ValueError):
                raise ValueError(f"params must be a sequence of numbers, got {value!r}") from None
        super().__setattr__(name, value)

    def _call(
        self,
        plain: Callable[..., Tensor],
        activated: Callable[..., Tensor],
        input: Tensor,
        output_padding: List[int],  # noqa: UP006
    ) -> Tensor:
        arguments = (
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )
        if self.activates:
            return activated(*arguments, activation=self.activation, params=self.params)
        return plain(*arguments)

    def _operate(
        self,
        input: Tensor,
        weight: Tensor,
        stride: List[int],  # noqa: UP006
        padding: List[int],  # noqa: UP006
        output_padding: List[int],  # noqa: UP006
        dilation: List[int],  # noqa: UP006
    ) -> Tensor:
        """What TorchScript compiles of a call: the operator alone, on images."""
        if self.activates:
            return torch.ops.convt.conv_transpose2d_act(
                input,
                weight,
                self.bias,
                stride,
                padding,
                output_padding,
                self.groups,
                dilation,
                activation=self.activation,
                params=self.params,
            )
        return torch.ops.convt.conv_transpose2d(
            input, weight, self.bias, stride, padding, output_padding, self.groups, dilation
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return f"{text}, activation={self.activation!r}, params={self.params}" if self.activates else text


class ConvTranspose2d(_Activated, torch.nn.ConvTranspose2d):
    """A :class:`torch.nn.ConvTranspose2d` that runs on ``torch.ops.convt.conv_transpose2d``.

    Constructor, parameters, ``state_dict`` and ``output_size`` are those of torch's module. The attributes `activation`
    and `params`, "none" and () at first, are those of :func:`convt_ext.conv_transpose2d_act`.

    Shapes:
        input: [N, Cin, H, W] or [Cin, H, W]; output: [N, Cout, OH, OW] or [Cout, OH, OW]. Dtypes and OH, OW as for
        :func:`convt_ext.conv_transpose2d`.

    Raises:
        ValueError: `padding_mode` is not "zeros", or `output_size` cannot be reached.
        RuntimeError: as :func:`convt_ext.conv_transpose2d`.

    Example:
        >>> import torch, convt_ext
        >>> layer = convt_ext.ConvTranspose2d(16, 8, 3, stride=2, padding=1)
        >>> layer(torch.randn(1, 16, 10, 10), output_size=[20, 20]).shape
        torch.Size([1, 8, 20, 20])
    """

    def forward(self, input: Tensor, output_size: Optional[List[int]] = None) -> Tensor:  # noqa: UP006, UP045
        # The constructor has refused every padding_mode but "zeros".
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._operate(input, self.weight, self.stride, self.padding, output_padding, self.dilation)  # type: ignore[arg-type]
        return self._call(conv_transpose2d, conv_transpose2d_act, input, output_padding)


class ConvTranspose1d(_Activated, torch.nn.ConvTranspose1d):
    """A :class:`torch.nn.ConvTranspose1d` that runs on ``torch.ops.convt.conv_transpose2d``, without a copy.

    Constructor, parameters, ``state_dict`` and ``output_size`` are those of torch's module. The attributes `activation`
    and `params`, "none" and () at first, are those of :func:`convt_ext.conv_transpose1d_act`.

    Shapes:
        input: [N, Cin, L] or [Cin, L]; output: [N, Cout, OL] or [Cout, OL]. Dtypes and OL as for
        :func:`convt_ext.conv_transpose1d`.

    Raises:
        ValueError: `padding_mode` is not "zeros", or `output_size` cannot be reached.
        RuntimeError: as :func:`convt_ext.conv_transpose1d`.

    Example:
        >>> import torch, convt_ext
        >>> layer = convt_ext.ConvTranspose1d(64, 32, 4, stride=2, padding=1)
        >>> layer(torch.randn(1, 64, 100)).shape
        torch.Size([1, 32, 200])
    """

    def forward(self, input: Tensor, output_size: Optional[List[int]] = None) -> Tensor:  # noqa: UP006, UP045
        # The constructor has refused every padding_mode but "zeros".
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            1,
            self.dilation,  # type: ignore[arg-type]
        )
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # Images one pixel high.
            return self._operate(
                input.unsqueeze(-2),
                self.weight.unsqueeze(-2),
                [1, self.stride[0]],
                [0, self.padding[0]],  # type: ignore[list-item]
                [0, output_padding[0]],
                [1, self.dilation[0]],
            ).squeeze(-2)
        return self._call(conv_transpose1d, conv_transpose1d_act, input, output_padding)
