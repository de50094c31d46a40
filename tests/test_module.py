"""convt_ext.ConvTranspose2d is torch.nn.ConvTranspose2d in everything but the kernel."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convt_ext

CONSTRUCTIONS: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((4, 6, 3), {}),
    ((4, 6, (3, 2)), {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),
    ((4, 6, 3), {"stride": 2, "groups": 2, "bias": False}),
    ((4, 4, 3, 2, 1, 1, 4), {}),
    ((4, 6, 3), {"dilation": (2, 3), "padding_mode": "zeros"}),
    ((4, 6, 3), {"dtype": torch.float64}),
    ((4, 6, 3), {"device": "cpu", "dtype": torch.float32}),
)
constructions = pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTIONS)


def pair(*args: Any, **kwargs: Any) -> tuple[convt_ext.ConvTranspose2d, nn.ConvTranspose2d]:
    """Our module and torch's with the same parameters, drawn from the same seed."""
    torch.manual_seed(0)
    ours = convt_ext.ConvTranspose2d(*args, **kwargs)
    torch.manual_seed(0)
    return ours, nn.ConvTranspose2d(*args, **kwargs)


def assert_same_output(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    tolerance = 16 * torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@constructions
def test_same_parameters_and_result(args: tuple[Any, ...], kwargs: dict[str, Any], device: str) -> None:
    ours, theirs = pair(*args, **kwargs)
    assert isinstance(ours, nn.ConvTranspose2d)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    ours, theirs = ours.to(device), theirs.to(device)
    for shape in ((2, 4, 5, 7), (4, 5, 7)):
        x = torch.randn(shape, device=device, dtype=ours.weight.dtype)
        with torch.backends.cudnn.flags(allow_tf32=False):
            assert_same_output(ours(x), theirs(x))


@constructions
def test_repr(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, theirs = pair(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert repr(nn.Sequential(ours)) == repr(nn.Sequential(theirs))


def test_signatures() -> None:
    assert inspect.signature(convt_ext.ConvTranspose2d) == inspect.signature(nn.ConvTranspose2d)
    ours, theirs = (inspect.signature(cls.forward) for cls in (convt_ext.ConvTranspose2d, nn.ConvTranspose2d))
    assert list(ours.parameters) == list(theirs.parameters)


def test_state_dicts_are_exchangeable(tmp_path: Path) -> None:
    ours, theirs = pair(4, 6, 3, stride=2)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    other = convt_ext.ConvTranspose2d(4, 6, 3, stride=2)
    other.load_state_dict(torch.load(tmp_path / "theirs.pt", weights_only=True))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(other(x), ours(x))


def test_factory_arguments() -> None:
    module = convt_ext.ConvTranspose2d(4, 6, 3, device="meta", dtype=torch.bfloat16)
    assert (module.weight.device.type, module.weight.dtype) == ("meta", torch.bfloat16)
    assert module(torch.empty(2, 4, 5, 5, device="meta", dtype=torch.bfloat16)).shape == (2, 6, 7, 7)


@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (4, 5, 7)], ids=["batched", "unbatched"])
@pytest.mark.parametrize("output_size", [[10, 13], [11, 14], [10, 14]])
def test_output_size(shape: tuple[int, ...], output_size: list[int], device: str) -> None:
    ours, theirs = (module.to(device) for module in pair(4, 6, 3, stride=2, padding=1, output_padding=1))
    x = torch.randn(shape, device=device)
    sizes = [output_size, torch.Size([*shape[:-3], 6, *output_size])]
    for size in sizes:
        if output_size == [11, 14]:
            with pytest.raises(ValueError, match="requested an output size") as caught:
                ours(x, size)
            with pytest.raises(ValueError, match="requested an output size") as expected:
                theirs(x, size)
            assert str(caught.value) == str(expected.value)
        else:
            out = ours(x, output_size=size)
            assert list(out.shape[-2:]) == output_size
            with torch.backends.cudnn.flags(allow_tf32=False):
                assert_same_output(out, theirs(x, output_size=size))


def test_output_size_of_the_wrong_length() -> None:
    ours, theirs = pair(4, 6, 3, stride=2)
    x = torch.randn(2, 4, 5, 7)
    for module in (ours, theirs):
        with pytest.raises(ValueError, match="output_size must have"):
            module(x, [10])


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((4, 6, 3), {"padding_mode": "reflect"}),
        ((4, 6, 3), {"padding_mode": "nonsense"}),
        ((4, 6, 3), {"groups": 3}),
        ((4, 6, 3), {"groups": 0}),
        ((4, 5, 3), {"groups": 2}),
    ],
)
def test_constructor_errors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        convt_ext.ConvTranspose2d(*args, **kwargs)
    with pytest.raises(ValueError, match=r".+") as expected:
        nn.ConvTranspose2d(*args, **kwargs)
    assert str(caught.value) == str(expected.value)


def test_call_errors_name_the_argument() -> None:
    module = convt_ext.ConvTranspose2d(4, 6, 3)
    with pytest.raises(RuntimeError, match=r"weight must have input's channels first \(5\), got shape \[4, 6, 3, 3\]"):
        module(torch.randn(1, 5, 4, 4))
    with pytest.raises(RuntimeError, match=r"weight must have the dtype of input \(float64\), got float32"):
        module(torch.randn(1, 4, 4, 4, dtype=torch.float64))


def test_copies(tmp_path: Path) -> None:
    module = convt_ext.ConvTranspose2d(4, 6, 3, stride=2, padding=1)
    x = torch.randn(1, 4, 5, 5)
    expected = module(x)
    torch.save(module, tmp_path / "module.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(other) is convt_ext.ConvTranspose2d
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_conversion(dtype: torch.dtype, device: str) -> None:
    module = convt_ext.ConvTranspose2d(4, 6, 3, stride=2).to(device)
    expected = module(torch.ones(1, 4, 5, 5, device=device)).to(torch.float32)
    converted = {torch.float16: module.half, torch.bfloat16: module.bfloat16, torch.float64: module.double}[dtype]()
    assert converted is module
    out = module(torch.ones(1, 4, 5, 5, device=device, dtype=dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.to(torch.float32), expected, rtol=0.05, atol=0.05)


def test_channels_last_model(device: str) -> None:
    module = convt_ext.ConvTranspose2d(4, 6, 3, stride=2).to(device).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 5, device=device).contiguous(memory_format=torch.channels_last)
    out = module(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_same_output(out.contiguous(), module(x.contiguous()))


def test_scripted_module_with_output_size(device: str) -> None:
    module = convt_ext.ConvTranspose2d(4, 6, 3, stride=2, padding=1).to(device)
    scripted = torch.jit.script(module)
    x = torch.randn(2, 4, 5, 7, device=device)
    assert torch.equal(scripted(x), module(x))
    assert torch.equal(scripted(x, [10, 14]), module(x, [10, 14]))
    assert "convt::conv_transpose2d" in str(scripted.inlined_graph)
    assert "aten::conv_transpose2d" not in str(scripted.inlined_graph)


def test_training_step_is_that_of_torch(device: str) -> None:
    def train(layer: type[nn.ConvTranspose2d]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            layer(4, 8, 4, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            layer(8, 3, 3, output_padding=1, stride=2),
        ).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _ in range(4):
            x = torch.randn(2, 4, 6, 5).to(device)
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [*losses, *(parameter.detach() for parameter in model.parameters())]

    with torch.backends.cudnn.flags(allow_tf32=False):
        results = zip(train(convt_ext.ConvTranspose2d), train(nn.ConvTranspose2d), strict=True)
        for ours, theirs in results:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
