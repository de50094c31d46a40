"""Sharding of the operator over a device mesh: importing the module teaches it to torch.distributed.tensor.

``import convt_ext`` leaves it out, because DTensor takes its time to import. On each dimension of the mesh a call is

* computed by every rank, if all its tensors are replicated;
* split by images, if the input is sharded along N;
* split by output channels, if the weight is sharded along its second side, and the bias if there is one. The output
  is sharded along its channels;
* split by input channels, if the input is sharded along its channels and the weight along its first side. The output
  is a partial sum, which no activation can be applied to: ``convt::conv_transpose2d_act`` is not split so.

Channels are split in calls of one group alone, and only where every rank has some. Tensors that are placed otherwise,
such as images sharded along H or W, are redistributed first, to whatever of these costs least. Gradients are split as
the call was; those of a weight or an input that was replicated are partial sums.

Raises:
    RuntimeError: second derivatives are wanted.

Example:
    >>> import torch, convt_ext, convt_ext.dtensor
    >>> from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
    >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    >>> mesh = init_device_mesh("cpu", (1,))
    >>> x = distribute_tensor(torch.randn(8, 16, 10, 10), mesh, [Replicate()])
    >>> weight = distribute_tensor(torch.randn(16, 8, 4, 4), mesh, [Shard(1)])
    >>> convt_ext.conv_transpose2d(x, weight, stride=2).placements
    (Shard(dim=1),)
    >>> torch.distributed.destroy_process_group()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from . import _registration

Placements = list[Placement | None]


@dataclass(frozen=True)
class _Split:
    """How the tensors of a call, and their gradients, lie on one dimension of the mesh."""

    input: Placement
    weight: Placement
    bias: Placement
    output: Placement
    grad_output: Placement
    grad_input: Placement
    grad_weight: Placement
    grad_bias: Placement


def _leaves_none_empty(size: int, mesh: DeviceMesh) -> bool:
    """Whether every rank has some of `size` channels, along whichever dimensions of the mesh they are sharded."""
    for count in range(1, mesh.ndim + 1):
        for ranks in combinations(mesh.shape, count):
            if count > 1 and math.prod(ranks) > size:
                continue  # DTensor itself leaves that out
            shards = {size}
            for n in ranks:
                # As torch.chunk: all but the last are as large as the first, and some may be missing.
                shards = {max(0, min(-(-s // n), s - i * -(-s // n))) for s in shards for i in range(n)}
            if 0 in shards:
                return False
    return True


def _splits(input: Any, weight: Any, groups: int) -> list[_Split]:
    """The splits that a call allows; `input` and `weight` are what DTensor knows of the tensors."""
    everything, some = Replicate(), Partial()
    channels = Shard(input.ndim - 3)
    splits = [_Split(*[everything] * 8)]
    if input.ndim == 4:
        images = Shard(0)
        splits.append(_Split(images, everything, everything, images, images, images, some, some))
    if groups == 1 and _leaves_none_empty(weight.shape[1], input.mesh):
        splits.append(_Split(everything, Shard(1), Shard(0), channels, channels, some, Shard(1), Shard(0)))
    if groups == 1 and _leaves_none_empty(weight.shape[0], input.mesh):
        # Each rank adds its share of the bias.
        splits.append(_Split(channels, Shard(0), some, some, everything, channels, Shard(0), everything))
    return splits


def _register(operator: Any, rule: Callable[..., list[tuple[Placements, Placements]]]) -> None:
    register_sharding(operator)(rule)
    # DTensor remembers what a rule said, and the shape of the output, by the tensors and the arguments from here on.
    # register_sharding has it begin at the first int, which would leave out the lists of ints before that.
    DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[operator].static_argnum = 0


def _shard_forward(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> list[tuple[Placements, Placements]]:
    rest: Placements = [None] * 5
    return [
        ([split.output], [split.input, split.weight, None if bias is None else split.bias, *rest])
        for split in _splits(input, weight, groups)
    ]


def _shard_activated(
    *arguments: Any, activation: Any = "none", params: Any = ()
) -> list[tuple[Placements, Placements]]:
    return [rule for rule in _shard_forward(*arguments) if not isinstance(rule[0][0], Partial)]


_register(torch.ops.convt.conv_transpose2d.default, _shard_forward)
_register(torch.ops.convt.conv_transpose2d_act.default, _shard_activated)

# ---------------------------------------------------------------- gradients

# DTensor's own rule for aten::convolution_backward is for images alone. An operator of our own stands for it, with
# DTensors only.
_library = torch.library.Library("convt", "FRAGMENT")  # lives as long as the process
_library.define(
    "_conv_transpose2d_backward(Tensor grad, Tensor input, Tensor weight, int[2] stride, int[2] padding,"
    " int[2] output_padding, int groups, int[2] dilation, bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)


def _backward(*arguments: Any) -> tuple[Tensor | None, ...]:
    gradients, wanted = _registration.backward(*arguments), arguments[-1]
    # aten may compute two where one is wanted; DTensor would not know what to make of the other.
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))


_library.impl("_conv_transpose2d_backward", _backward, "CompositeExplicitAutograd")


def _shard_backward(
    grad: Any,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    wanted: Sequence[bool],
) -> list[tuple[Placements, Placements]]:
    rest: Placements = [None] * 6
    rules: list[tuple[Placements, Placements]] = []
    for split in _splits(input, weight, groups):
        gradients = (split.grad_input, split.grad_weight, split.grad_bias)
        outputs: Placements = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
        rules.append((outputs, [split.grad_output, split.input, split.weight, *rest]))
    return rules


_register(torch.ops.convt._conv_transpose2d_backward.default, _shard_backward)


def _backward_of_dtensors(grad: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("convt::conv_transpose2d: second derivatives of DTensors are not supported")
    return torch.ops.convt._conv_transpose2d_backward(grad, *arguments)


def _without_partial_sums(tensor: Tensor) -> Tensor:
    """What an activation's derivative is computed of.

    Where torch has no rule for an operator and derives one, processes may come to different ones for partial sums,
    and then wait for each other for ever.
    """
    assert isinstance(tensor, DTensor)
    placements = [Replicate() if placement.is_partial() else placement for placement in tensor.placements]
    return tensor.redistribute(placements=placements)


_registration.tensor_classes[DTensor] = _registration.TensorClass(_backward_of_dtensors, _without_partial_sums)
