"""Converted models in several processes: DistributedDataParallel and FSDP2 give the gradients of the original."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from test_convert import UNet
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import convt_ext

STEPS = 3
BATCH = 4


class Decoder(nn.Module):
    """Layers in two dimensions and in one, with groups; nothing in it mixes the images of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(3, 8, 4, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, 2, groups=4)
        )
        self.image = nn.ConvTranspose2d(8, 3, 3, padding=1, bias=False)
        self.samples = nn.ConvTranspose1d(3, 5, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.samples(self.image(self.up(x)).flatten(2))


MODELS = {"decoder": Decoder, "unet": UNet}  # the normalization of the second sees the images of one process
models = pytest.mark.parametrize("name", MODELS)


def pair(name: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """A model with its own parameters, and the conversion of another with the same."""
    torch.manual_seed(0)
    original = MODELS[name]().to(device)
    converted = convt_ext.convert(copy.deepcopy(original))
    assert len(convt_ext.conversion_report(converted).replaced) == {"decoder": 4, "unet": 2}[name]
    return original, converted


def batch(step: int, device: torch.device) -> Tensor:
    """The images of a step, of all processes."""
    return torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(step)).to(device)


def backward(model: nn.Module, x: Tensor) -> Tensor:
    """The loss of a batch; the mean over processes is the loss of all their images."""
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return loss.detach()


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def assert_same_training(
    converted: nn.Module, original: nn.Module, alone: nn.Module | None, device: torch.device, tolerance: float = 1e-4
) -> None:
    """Some steps with both, in step with the other process; `alone` sees the images of all processes in each."""
    trained = [model for model in (converted, original, alone) if model is not None]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9) for model in trained]
    start = [whole(parameter).clone() for parameter in original.parameters()]
    for step in range(STEPS):
        x = batch(step, device)
        losses = [backward(model, x if model is alone else x[dist.get_rank() :: Ranks.SIZE]) for model in trained]
        torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)
        for ours, *others in zip(*(model.parameters() for model in trained), strict=True):
            assert ours.grad is not None
            assert ours.grad.abs().max() > 0
            for other in others:
                torch.testing.assert_close(whole(ours.grad), whole(other.grad), rtol=tolerance, atol=tolerance)
        for optimizer in optimizers:
            optimizer.step()
    moved = 0.0
    for before, ours, *others in zip(start, *(model.parameters() for model in trained), strict=True):
        moved = max(moved, (whole(ours) - before).abs().max().item())
        for other in others:
            torch.testing.assert_close(whole(ours), whole(other), rtol=tolerance, atol=tolerance)
    assert moved > 10 * tolerance


# ---------------------------------------------------------------- DistributedDataParallel


def train_with_ddp(device: torch.device, name: str, options: dict[str, Any]) -> None:
    original, converted = pair(name, device)
    alone = copy.deepcopy(original) if name == "decoder" else None
    ids = [dist.get_rank()] if device.type == "cuda" else None
    parallel = [DistributedDataParallel(model, device_ids=ids, **options) for model in (converted, original)]
    assert_same_training(*parallel, alone, device)
    for model in parallel:
        model.eval()
    x = batch(STEPS, device)
    with torch.no_grad():
        torch.testing.assert_close(parallel[0](x), parallel[1](x), rtol=1e-3, atol=1e-3)


@models
@pytest.mark.parametrize(
    "options",
    [{}, {"static_graph": True, "gradient_as_bucket_view": True, "bucket_cap_mb": 1}, {"find_unused_parameters": True}],
    ids=["default", "static_graph", "find_unused"],
)
def test_ddp(ranks: Ranks, name: str, options: dict[str, Any]) -> None:
    ranks.run(train_with_ddp, name, options)


# ---------------------------------------------------------------- FSDP2


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    """The model with each transposed convolution, and then what is left, sharded over the processes."""
    for module in list(model.modules()):
        if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
            fully_shard(module, **options)
    fully_shard(model, **options)
    return model


def train_with_fsdp(device: torch.device, name: str, reshard: bool, low: bool) -> None:
    original, converted = pair(name, device)
    alone = copy.deepcopy(original) if name == "decoder" and not low else None
    keys, first = list(original.state_dict()), "up.weight" if name == "unet" else "up.0.weight"
    elements = original.get_parameter(first).numel()
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if low else MixedPrecisionPolicy()
    for model in (converted, original):
        sharded(model, reshard_after_forward=reshard, mp_policy=policy)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert list(model.state_dict()) == keys
    assert 0 < converted.state_dict()[first].to_local().numel() < elements
    # In 16 bits the kernels of a GPU round their own way.
    assert_same_training(converted, original, alone, device, 2e-2 if low else 1e-4)


# torch's normalization on the CPU takes no mixture of dtypes, so that the second model stays in float32.
@pytest.mark.parametrize(
    ("name", "low"),
    [("decoder", False), ("decoder", True), ("unet", False)],
    ids=["decoder", "decoder-bfloat16", "unet"],
)
@pytest.mark.parametrize("reshard", [False, True], ids=["kept", "resharded"])
def test_fsdp2(ranks: Ranks, name: str, reshard: bool, low: bool) -> None:
    ranks.run(train_with_fsdp, name, reshard, low)


# ---------------------------------------------------------------- what is wrapped already


def refuse_what_is_wrapped(device: torch.device) -> None:
    layer = nn.ConvTranspose2d(4, 3, 3).to(device)
    rule = (
        r"model must be converted before it is wrapped in DistributedDataParallel or sharded by fully_shard, got one "
    )
    wrapped = DistributedDataParallel(copy.deepcopy(layer))
    parts = nn.Sequential(nn.ReLU(), fully_shard(copy.deepcopy(layer)))
    for inplace in (False, True):
        with pytest.raises(ValueError, match=rule + r"in which it is a DistributedDataParallel"):
            convt_ext.convert(wrapped, inplace=inplace)
        with pytest.raises(ValueError, match=rule + r"in which module '1' of it is a FSDPConvTranspose2d"):
            convt_ext.convert(parts, inplace=inplace)


def test_conversion_comes_first(ranks: Ranks) -> None:
    ranks.run(refuse_what_is_wrapped)


# ---------------------------------------------------------------- the processes of these tests


def fail_in_one(device: torch.device) -> None:
    if dist.get_rank() == 1:
        raise ValueError("as it should")
    dist.barrier()


def count(device: torch.device) -> None:
    total = torch.ones((), device=device)
    dist.all_reduce(total)
    assert total.item() == Ranks.SIZE


def test_a_failure_in_one_process_is_reported(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match=r"rank 1: (.|\n)*ValueError: as it should"):
        ranks.run(fail_in_one)
    ranks.run(count)
