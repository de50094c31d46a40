"""convt_ext.dtensor: how a sharded call is split, what each process computes, and that the results are those of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import run_python
from ranks import Ranks
from reference import ACTIVATIONS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import convt_ext
import convt_ext.dtensor

WHOLE, PARTIAL = Replicate(), Partial()
TENSORS = ("input", "weight", "bias")


class Calls(TorchDispatchMode):
    """Notes the shapes of the tensors that this process itself computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[tuple[int, ...]] = []
        self.backward: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(arg, DTensor) for arg in args):
            return NotImplemented  # DTensor comes back with the local tensors
        if any(isinstance(arg, FakeTensor) for arg in args):
            return func(*args, **(kwargs or {}))  # DTensor asks for the shape of the whole output
        if func is torch.ops.convt.conv_transpose2d.default:
            self.forward.append((*args[0].shape, *args[1].shape))
        if func is torch.ops.convt._conv_transpose2d_backward.default:
            self.backward.append((*args[1].shape, *args[2].shape))
        return func(*args, **(kwargs or {}))


def mesh_of(device: torch.device) -> DeviceMesh:
    return init_device_mesh(device.type, (Ranks.SIZE,))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# Placements of input, weight and bias; the output's; what a process has of the images, of the channels in and out; the
# placements of the gradients.
SPLITS: dict[str, tuple[Any, Any, tuple[float, float, float], Any]] = {
    "replicated": ((WHOLE, WHOLE, WHOLE), WHOLE, (1, 1, 1), (WHOLE, WHOLE, WHOLE)),
    "images": ((Shard(0), WHOLE, WHOLE), Shard(0), (0.5, 1, 1), (Shard(0), PARTIAL, PARTIAL)),
    "output channels": ((WHOLE, Shard(1), Shard(0)), Shard(1), (1, 1, 0.5), (PARTIAL, Shard(1), Shard(0))),
    "input channels": ((Shard(1), Shard(0), WHOLE), PARTIAL, (1, 0.5, 1), (Shard(1), Shard(0), WHOLE)),
}


def call_split(device: torch.device, name: str, biased: bool, wanted: tuple[bool, bool, bool]) -> None:
    placements, of_output, (images, cin, cout), of_gradients = SPLITS[name]
    mesh = mesh_of(device)
    arguments: dict[str, Any] = {"stride": [2, 1], "padding": [1, 0], "output_padding": [1, 0], "dilation": [1, 2]}
    tensors = [torch.randn(shape, device=device) for shape in ((4, 6, 5, 7), (6, 8, 4, 3), (8,))]
    plain = [tensor.clone().requires_grad_(want) for tensor, want in zip(tensors, wanted, strict=True)]
    sharded = [
        distribute_tensor(tensor, mesh, [placement]).requires_grad_(want)
        for tensor, placement, want in zip(tensors, placements, wanted, strict=True)
    ]
    if not biased:
        plain, sharded = plain[:2], sharded[:2]

    expected = convt_ext.conv_transpose2d(*plain, **arguments)
    with Calls() as calls:
        actual = convt_ext.conv_transpose2d(*sharded, **arguments)
    assert isinstance(actual, DTensor)
    assert actual.placements == (of_output,)
    assert actual.shape == expected.shape
    assert actual.stride() == expected.stride()
    assert_close(actual.full_tensor(), expected)
    local = (4 * images, 6 * cin, 5, 7, 6 * cin, 8 * cout, 4, 3)
    assert calls.forward == [local]
    with torch.no_grad():
        assert_close(convt_ext.conv_transpose2d(*sharded, **arguments).full_tensor(), expected)

    grad = torch.randn_like(expected)
    expected.backward(grad)
    with Calls() as calls:
        # The gradient of a partial sum is whole.
        actual.backward(distribute_tensor(grad, mesh, [WHOLE if of_output == PARTIAL else of_output]))
    assert calls.backward == [local]
    for ours, theirs, placement, want in zip(sharded, plain, of_gradients, wanted, strict=False):
        assert (ours.grad is not None) == want
        if want:
            assert isinstance(ours.grad, DTensor)
            assert ours.grad.placements == (placement,)
            assert_close(ours.grad.full_tensor(), theirs.grad)


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", SPLITS)
def test_split(ranks: Ranks, name: str, biased: bool) -> None:
    ranks.run(call_split, name, biased, (True, True, True))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=TENSORS)
def test_one_gradient_alone(ranks: Ranks, wanted: tuple[bool, bool, bool]) -> None:
    for name in SPLITS:
        ranks.run(call_split, name, True, wanted)


# What is placed otherwise, or does not divide: shapes of input and weight, their placements, arguments, the output's
# placement, or None where DTensor may choose.
OTHERS: dict[str, tuple[Any, Any, list[Placement], dict[str, Any], Placement | None]] = {
    "rows": ((4, 6, 5, 7), (6, 8, 4, 3), [Shard(2), WHOLE], {}, None),
    "filter": ((4, 6, 5, 7), (6, 8, 4, 3), [WHOLE, Shard(3)], {}, None),
    "images and output channels": ((4, 6, 5, 7), (6, 8, 4, 3), [Shard(0), Shard(1)], {}, None),
    "channels without their weights": ((4, 6, 5, 7), (6, 8, 4, 3), [Shard(1), WHOLE], {}, None),
    "partial sums": ((4, 6, 5, 7), (6, 8, 4, 3), [PARTIAL, WHOLE], {}, None),
    "an odd number of images": ((5, 6, 5, 7), (6, 8, 4, 3), [Shard(0), WHOLE], {}, Shard(0)),
    "an odd number of output channels": ((2, 6, 5, 7), (6, 3, 4, 3), [WHOLE, Shard(1)], {}, Shard(1)),
    "one image": ((1, 6, 5, 7), (6, 8, 4, 3), [Shard(0), WHOLE], {}, None),
    "one output channel": ((2, 6, 5, 7), (6, 1, 4, 3), [WHOLE, Shard(1)], {}, WHOLE),
    "one input channel": ((2, 1, 5, 7), (1, 4, 4, 3), [Shard(1), Shard(0)], {}, WHOLE),
    "groups by images": ((4, 6, 5, 7), (6, 4, 4, 3), [Shard(0), WHOLE], {"groups": 2}, Shard(0)),
    "groups by output channels": ((2, 6, 5, 7), (6, 4, 4, 3), [WHOLE, Shard(1)], {"groups": 2}, WHOLE),
    "groups by input channels": ((2, 6, 5, 7), (6, 4, 4, 3), [Shard(1), Shard(0)], {"groups": 2}, WHOLE),
    "no batch": ((6, 5, 7), (6, 8, 4, 3), [WHOLE, Shard(1)], {}, Shard(0)),
    "no batch, input channels": ((6, 5, 7), (6, 8, 4, 3), [Shard(0), Shard(0)], {}, PARTIAL),
}


def compare(
    function: Callable[..., Tensor],
    sharded: list[DTensor],
    plain: list[Tensor],
    rtol: float = 1e-4,
    atol: float = 1e-3,
    **arguments: Any,
) -> DTensor:
    """The output of a call of DTensors, which must be that of a call of plain tensors; so must the gradients."""
    expected = function(*plain, **arguments)
    actual = function(*sharded, **arguments)
    assert isinstance(actual, DTensor)
    assert_close(actual.full_tensor(), expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for ours, theirs in zip(sharded, plain, strict=True):
        assert isinstance(ours.grad, DTensor)
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=rtol, atol=atol)
    return actual


def call_other(device: torch.device, name: str) -> None:
    shape, filters, placements, arguments, of_output = OTHERS[name]
    mesh = mesh_of(device)
    tensors = [torch.randn(shape, device=device), torch.randn(filters, device=device)]
    plain = [tensor.clone().requires_grad_() for tensor in tensors]
    sharded = []
    for tensor, placement in zip(tensors, placements, strict=True):
        if placement == PARTIAL:  # which a tensor cannot be distributed as
            leaf = DTensor.from_local(tensor / Ranks.SIZE, mesh, [placement]).requires_grad_()
        else:
            leaf = distribute_tensor(tensor, mesh, [placement]).requires_grad_()
        sharded.append(leaf)
    actual = compare(convt_ext.conv_transpose2d, sharded, plain, stride=2, **arguments)
    if of_output is not None:
        assert actual.placements == (of_output,)


@pytest.mark.parametrize("name", OTHERS)
def test_other_placements(ranks: Ranks, name: str) -> None:
    ranks.run(call_other, name)


def call_on_two_dimensions(device: torch.device) -> None:
    """Images along the first dimension of the mesh, output channels along the second."""
    for sides in ((Ranks.SIZE, 1), (1, Ranks.SIZE)):
        mesh = init_device_mesh(device.type, sides)
        tensors = [torch.randn(shape, device=device) for shape in ((4, 6, 5, 7), (6, 8, 4, 3), (8,))]
        placements = ((Shard(0), WHOLE), (WHOLE, Shard(1)), (WHOLE, Shard(0)))
        plain = [tensor.clone().requires_grad_() for tensor in tensors]
        sharded = [distribute_tensor(t, mesh, p).requires_grad_() for t, p in zip(tensors, placements, strict=True)]
        actual = compare(convt_ext.conv_transpose2d, sharded, plain, stride=2)
        assert actual.placements == (Shard(0), Shard(1))
        assert actual.to_local().shape[:2] == (4 / sides[0], 8 / sides[1])


def test_mesh_of_two_dimensions(ranks: Ranks) -> None:
    ranks.run(call_on_two_dimensions)


def call_with_every_geometry(device: torch.device) -> None:
    """DTensor must not take a call for an earlier one with the same shapes and another argument."""
    mesh = mesh_of(device)
    x, weight = torch.randn(4, 6, 5, 7, device=device), torch.randn(6, 4, 3, 3, device=device)
    sharded = distribute_tensor(x, mesh, [Shard(0)]), distribute_tensor(weight, mesh, [WHOLE])
    everything: list[dict[str, Any]] = [
        {},
        {"stride": [2, 1]},
        {"stride": [1, 2]},
        {"stride": 3},
        {"stride": 3, "padding": [1, 0]},
        {"stride": 3, "padding": [0, 1]},
        {"stride": 3, "output_padding": [1, 0]},
        {"stride": 3, "output_padding": [0, 1]},
        {"stride": 3, "dilation": [2, 1]},
        {"stride": 3, "dilation": [1, 2]},
        {"groups": 2},
        {"groups": 3},
    ]
    for arguments in [*everything, *everything]:
        expected = convt_ext.conv_transpose2d(x, weight, **arguments)
        actual = convt_ext.conv_transpose2d(*sharded, **arguments)
        assert actual.shape == expected.shape, arguments
        assert_close(actual.full_tensor(), expected)  # type: ignore[attr-defined]


def test_geometries_are_told_apart(ranks: Ranks) -> None:
    ranks.run(call_with_every_geometry)


def call_with_activations(device: torch.device, name: str) -> None:
    """One after the other, so that none is taken for another."""
    mesh = mesh_of(device)
    placements, of_output, _, _ = SPLITS[name]
    tensors = [torch.randn(shape, device=device) for shape in ((4, 6, 5, 7), (6, 8, 4, 3), (8,))]
    for activation, params in ACTIVATIONS.items():
        plain = [tensor.clone().requires_grad_() for tensor in tensors]
        sharded = [distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in zip(tensors, placements, strict=True)]
        function = partial(convt_ext.conv_transpose2d_act, activation=activation, params=params)
        actual = compare(function, sharded, plain, rtol=1e-3, atol=1e-2)
        assert not actual.placements[0].is_partial()  # partial sums have no activation
        if of_output != PARTIAL:
            assert actual.placements == (of_output,)


@pytest.mark.parametrize("name", SPLITS)
def test_activations(ranks: Ranks, name: str) -> None:
    """Of each split; where the output is a partial sum, every process must come to the same way to complete it."""
    ranks.run(call_with_activations, name)


def keep_layout(device: torch.device) -> None:
    mesh = mesh_of(device)
    image = torch.randn(2, 6, 5, 7, device=device).to(memory_format=torch.channels_last)  # of each process, the same
    weight = torch.randn(6, 8, 3, 3, device=device)
    for of_input, of_weight, count in ((Shard(0), WHOLE, Ranks.SIZE), (WHOLE, Shard(1), 1)):
        x = DTensor.from_local(image, mesh, [of_input])
        actual = convt_ext.conv_transpose2d(x, distribute_tensor(weight, mesh, [of_weight]))
        expected = convt_ext.conv_transpose2d(image.repeat(count, 1, 1, 1), weight)
        assert isinstance(actual, DTensor)
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert actual.to_local().is_contiguous(memory_format=torch.channels_last)
        assert_close(actual.full_tensor(), expected)


def test_channels_last(ranks: Ranks) -> None:
    ranks.run(keep_layout)


class Pair(nn.Module):
    """Two layers, of which the first is split by output channels and the second by the same as input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ConvTranspose2d(4, 8, 4, 2, 1)
        self.narrow = nn.ConvTranspose2d(8, 3, 3, 2, 1, 1)
        self.samples = nn.ConvTranspose1d(3, 4, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.samples(self.narrow(self.wide(x).relu()).flatten(2))


SIDES = {"wide.weight": 1, "wide.bias": 0, "narrow.weight": 0, "samples.weight": 1, "samples.bias": 0}


def train_model(device: torch.device) -> None:
    """Some steps with the weights of a converted model sharded, and the images replicated."""
    mesh = mesh_of(device)
    original = Pair().to(device)
    sharded = convt_ext.convert(original)
    for name, parameter in list(sharded.named_parameters()):
        placement = Shard(SIDES[name]) if name in SIDES else WHOLE
        owner, _, attribute = name.rpartition(".")
        leaf = nn.Parameter(distribute_tensor(parameter.detach().clone(), mesh, [placement]))
        setattr(sharded.get_submodule(owner), attribute, leaf)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, foreach=False) for model in (original, sharded)]
    for step in range(3):
        x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(step)).to(device)
        expected = original(x).square().mean()
        with Calls() as calls:
            actual = sharded(distribute_tensor(x, mesh, [WHOLE])).square().mean()
        assert [call[4:6] for call in calls.forward] == [(4, 4), (4, 3), (3, 2)]
        assert_close(actual.full_tensor(), expected)
        expected.backward()
        actual.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(sharded.parameters(), original.parameters(), strict=True):
        assert isinstance(ours, DTensor)
        assert_close(ours.full_tensor(), theirs)


def test_model_split_by_channels(ranks: Ranks) -> None:
    ranks.run(train_model)


def compile_sharded(device: torch.device) -> None:
    mesh = mesh_of(device)
    x, weight = torch.randn(4, 6, 5, 7, device=device), torch.randn(6, 8, 3, 3, device=device)
    expected = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    tensors = [
        distribute_tensor(x, mesh, [WHOLE]).requires_grad_(),
        distribute_tensor(weight, mesh, [Shard(1)]).requires_grad_(),
    ]
    compiled = torch.compile(
        lambda x, w: convt_ext.conv_transpose2d(x * 2, w, stride=2), fullgraph=True, backend="aot_eager"
    )
    output = compiled(*tensors)
    assert output.placements == (Shard(1),)
    reference = convt_ext.conv_transpose2d(expected[0] * 2, expected[1], stride=2)
    assert_close(output.full_tensor(), reference)
    output.square().sum().backward()
    reference.square().sum().backward()
    for ours, theirs in zip(tensors, expected, strict=True):
        assert isinstance(ours.grad, DTensor)
        torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-3)


def test_compile(ranks: Ranks) -> None:
    ranks.run(compile_sharded)


def ask_for_second_derivatives(device: torch.device) -> None:
    mesh = mesh_of(device)
    x = distribute_tensor(torch.randn(2, 4, 5, 5, device=device), mesh, [Shard(0)]).requires_grad_()
    weight = distribute_tensor(torch.randn(4, 3, 3, 3, device=device), mesh, [WHOLE])
    loss = convt_ext.conv_transpose2d(x, weight).square().sum()
    with pytest.raises(RuntimeError, match="second derivatives of DTensors are not supported"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_second_derivatives_are_refused(ranks: Ranks) -> None:
    ranks.run(ask_for_second_derivatives)


def refuse_bad_arguments(device: torch.device) -> None:
    mesh = mesh_of(device)
    x = distribute_tensor(torch.randn(2, 4, 5, 5, device=device), mesh, [Shard(0)])
    weight = distribute_tensor(torch.randn(5, 3, 3, 3, device=device), mesh, [WHOLE])
    with pytest.raises(RuntimeError, match=r"weight must have input's channels first \(4\), got shape \[5, 3, 3, 3\]"):
        convt_ext.conv_transpose2d(x, weight)


def test_messages_are_those_of_one_process(ranks: Ranks) -> None:
    """They speak of the whole tensors, and come before anything is sent."""
    ranks.run(refuse_bad_arguments)


def test_no_rank_is_left_without_channels() -> None:
    def allowed(size: int, *mesh: int) -> bool:
        return convt_ext.dtensor._leaves_none_empty(size, SimpleNamespace(shape=mesh, ndim=len(mesh)))  # type: ignore[arg-type]

    for size in range(1, 40):
        for n in range(1, 9):
            assert allowed(size, n) == (len(torch.arange(size).chunk(n)) == n)
    assert allowed(8, 4, 4)  # not over both at once, which DTensor leaves out
    assert not allowed(20, 4, 4)  # 20 -> 5 -> 2 + 2 + 1 + 0
    assert allowed(24, 4, 2)


def test_importing_the_package_leaves_dtensor_alone() -> None:
    run_python("import sys, convt_ext; assert 'torch.distributed.tensor' not in sys.modules")
