"""The operator as modules, in two dimensions and in one."""

from typing import List, Optional  # noqa: UP035  (TorchScript reads these annotations)

import torch
from torch import Tensor

from .functional import conv_transpose1d, conv_transpose2d


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """A :class:`torch.nn.ConvTranspose2d` that runs on ``torch.ops.convt.conv_transpose2d``.

    Constructor, parameters, ``state_dict`` and ``output_size`` are those of torch's module.

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
            return torch.ops.convt.conv_transpose2d(
                input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
            )
        return conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """A :class:`torch.nn.ConvTranspose1d` that runs on ``torch.ops.convt.conv_transpose2d``, without a copy.

    Constructor, parameters, ``state_dict`` and ``output_size`` are those of torch's module.

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
            return torch.ops.convt.conv_transpose2d(
                input.unsqueeze(-2),
                self.weight.unsqueeze(-2),
                self.bias,
                [1, self.stride[0]],
                [0, self.padding[0]],
                [0, output_padding[0]],
                self.groups,
                [1, self.dilation[0]],
            ).squeeze(-2)
        return conv_transpose1d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )
