"""convt_ext.conv_transpose1d and ConvTranspose1d against torch's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import assert_accurate, random_tensor
from torch import Tensor, nn

import convt_ext

# Input, weight and keyword arguments: a vocoder's up-sampling, odd sizes, groups, one sample.
PROBLEMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]] = {
    "vocoder": ((2, 32, 40), (32, 16, 16), {"stride": 8, "padding": 4}),
    "odd": ((3, 7, 13), (7, 5, 3), {"stride": 3, "dilation": 2, "output_padding": 1}),
    "groups": ((2, 24, 11), (24, 8, 4), {"stride": 2, "padding": 1, "groups": 3}),
    "depthwise": ((2, 6, 17), (6, 1, 4), {"stride": 2, "groups": 6}),
    "one_sample": ((4, 16, 1), (16, 8, 5), {}),
    "one_channel": ((2, 1, 9), (1, 4, 3), {"stride": 2}),
    "unbatched": ((16, 21), (16, 8, 4), {"stride": 2, "padding": 1}),
}
problems = pytest.mark.parametrize(("shape", "weight", "arguments"), PROBLEMS.values(), ids=PROBLEMS)


def _samples_first(x: Tensor) -> Tensor:
    """The channels of a sample side by side in memory."""
    return x.mT.contiguous().mT


def _every_second(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "samples_first": _samples_first,
    "every_second": _every_second,
}


def _as_images(arguments: dict[str, int]) -> dict[str, Any]:
    """The same arguments for images one pixel high."""
    pairs = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    return {name: [pairs[name], value] if name in pairs else value for name, value in arguments.items()}


@problems
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_result(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    arguments: dict[str, int],
    layout: str,
    dtype: torch.dtype,
    device: str,
) -> None:
    x = LAYOUTS[layout](random_tensor(shape, dtype, device, 1))
    w = random_tensor(weight, dtype, device, 2)
    b = random_tensor((weight[1] * arguments.get("groups", 1),), dtype, device, 3)
    out = convt_ext.conv_transpose1d(x, w, b, **arguments)
    assert out.shape == F.conv_transpose1d(x, w, b, **arguments).shape
    images = (out.unsqueeze(-2), x.unsqueeze(-2), w.unsqueeze(-2), b)
    assert_accurate(*images, layout, **_as_images(arguments))


def test_no_copy_of_samples_first() -> None:
    """What lies sample by sample comes out so."""
    x = _samples_first(torch.randn(2, 8, 10))
    out = convt_ext.conv_transpose1d(x, torch.randn(8, 4, 3))
    assert out.stride() == (out.shape[2] * 4, 1, 4)
    assert convt_ext.conv_transpose1d(x.contiguous(), torch.randn(8, 4, 3)).is_contiguous()


def test_ints_in_sequences() -> None:
    x, w = torch.randn(1, 4, 9), torch.randn(4, 2, 3)
    expected = convt_ext.conv_transpose1d(x, w, None, 2, 1, 1, 2, 2)
    assert torch.equal(convt_ext.conv_transpose1d(x, w, None, [2], (1,), [1], 2, [2]), expected)
    two = torch.tensor(2)  # as numpy's integers, an int by its __index__
    assert torch.equal(convt_ext.conv_transpose1d(x, w, None, two, 1, 1, 2, [two]), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"input": torch.zeros(1, 1, 4, 9)},
            r"input must be 2-D \[Cin, L\] or 3-D \[N, Cin, L\], got shape \[1, 1, 4, 9\]",
        ),
        ({"weight": torch.zeros(4, 2)}, r"weight must be 3-D \[Cin, Cout/groups, K\], got shape \[4, 2\]"),
        ({"stride": (2, 2)}, r"stride must be an int or hold 1 int, got \[2, 2\]"),
        ({"stride": 1.5}, r"stride must be an int or hold 1 int, got 1\.5"),
        ({"stride": [None]}, r"stride must be an int or hold 1 int, got \[None\]"),
        ({"stride": 0}, r"stride must be positive, got \[1, 0\]"),
        ({"padding": []}, r"padding must be an int or hold 1 int, got \[\]"),
        ({"dilation": -1}, r"dilation must be positive, got \[1, -1\]"),
        ({"output_padding": 3}, r"output_padding must be smaller than stride or dilation"),
        ({"groups": 3}, r"groups must divide input's channels \(4\), got 3"),
        ({"weight": torch.zeros(5, 2, 3)}, r"weight must have input's channels first \(4\), got shape \[5, 2, 1, 3\]"),
    ],
)
def test_refusals(changed: dict[str, Any], message: str) -> None:
    arguments = {"input": torch.zeros(1, 4, 9), "weight": torch.zeros(4, 2, 3)} | changed
    with pytest.raises(RuntimeError, match=message):
        convt_ext.conv_transpose1d(**arguments)


def test_gradients(device: str) -> None:
    x = torch.randn(2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.randn(4, 3, 3, dtype=torch.float64, device=device, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: convt_ext.conv_transpose1d(*t, stride=2, padding=1), (x, w, b))


def pair(*args: Any, **kwargs: Any) -> tuple[convt_ext.ConvTranspose1d, nn.ConvTranspose1d]:
    """Our module and torch's with the same parameters, drawn from the same seed."""
    torch.manual_seed(0)
    ours = convt_ext.ConvTranspose1d(*args, **kwargs)
    torch.manual_seed(0)
    return ours, nn.ConvTranspose1d(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((4, 6, 3), {}),
        ((4, 6, 16), {"stride": 8, "padding": 4}),
        ((4, 6, 3), {"stride": 3, "output_padding": 2, "groups": 2, "bias": False}),
        ((4, 6, 3), {"dilation": 2, "dtype": torch.float64}),
    ],
)
def test_module(args: tuple[Any, ...], kwargs: dict[str, Any], device: str) -> None:
    ours, theirs = pair(*args, **kwargs)
    assert isinstance(ours, nn.ConvTranspose1d)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    ours, theirs = ours.to(device), theirs.to(device)
    for shape in ((2, 4, 9), (4, 9)):
        x = torch.randn(shape, device=device, dtype=ours.weight.dtype)
        torch.testing.assert_close(ours(x), theirs(x), rtol=2e-6, atol=2e-6)


def test_signatures() -> None:
    assert inspect.signature(convt_ext.ConvTranspose1d) == inspect.signature(nn.ConvTranspose1d)
    ours, theirs = (inspect.signature(cls.forward) for cls in (convt_ext.ConvTranspose1d, nn.ConvTranspose1d))
    assert list(ours.parameters) == list(theirs.parameters)


def test_output_size(device: str) -> None:
    ours, theirs = (module.to(device) for module in pair(4, 6, 3, stride=2, padding=1))
    x = torch.randn(2, 4, 5, device=device)
    for size in ([9], [10]):
        out = ours(x, output_size=size)
        assert list(out.shape[-1:]) == size
        torch.testing.assert_close(out, theirs(x, output_size=size), rtol=2e-6, atol=2e-6)
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, output_size=[11])


def test_script(tmp_path: Path, device: str) -> None:
    layer, _ = pair(4, 6, 4, stride=2, padding=1)
    layer = layer.to(device)
    x = torch.randn(2, 4, 5, device=device)
    torch.jit.script(layer).save(str(tmp_path / "layer.pt"))
    loaded = torch.jit.load(str(tmp_path / "layer.pt"))
    assert torch.equal(loaded(x), layer(x))
    assert torch.equal(loaded(x, [11]), layer(x, [11]))


def test_export() -> None:
    layer, _ = pair(4, 6, 4, stride=2, padding=1)
    x = torch.randn(2, 4, 5)
    exported = torch.export.export(layer, (x,))
    assert torch.equal(exported.module()(x), layer(x))
