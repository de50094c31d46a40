"""The registered operator: schema, fake kernel, memory format, repeatability and threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reference import (
    DTYPES,
    KERNEL_DTYPES,
    LAYOUTS,
    TARGETS,
    TENSOR_CORE_TARGETS,
    Geometry,
    Target,
    assert_accurate,
    assert_promised_strides,
    promised_strides,
    takes,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import convt_ext

OP = torch.ops.convt.conv_transpose2d
SCHEMA = (
    "convt::conv_transpose2d(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
    "int[2] output_padding=0, int groups=1, int[2] dilation=1) -> Tensor"
)
SAMPLES = (
    Geometry("plain", (2, 4, 5, 3), 6, (3, 3)),
    Geometry("dcgan", (2, 7, 4, 4), 5, (4, 4), stride=(2, 2), padding=(1, 1), bias=False),
    Geometry(
        "all_arguments",
        (2, 6, 5, 4),
        4,
        (3, 2),
        stride=(2, 3),
        padding=(1, 2),
        output_padding=(1, 2),
        dilation=(2, 1),
        groups=2,
    ),
    Geometry("depthwise", (1, 5, 4, 6), 5, (3, 3), stride=(2, 2), groups=5),
    Geometry("unbatched", (4, 5, 3), 6, (2, 3), stride=(2, 1)),
    Geometry("one_pixel", (3, 8, 1, 1), 4, (4, 4)),
    Geometry("to_one_pixel", (3, 8, 2, 2), 4, (2, 2), padding=(1, 1)),
)
samples = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
layouts = pytest.mark.parametrize("layout", sorted(LAYOUTS))
every_target = pytest.mark.parametrize("target", [*TARGETS, *TENSOR_CORE_TARGETS], indirect=True, ids=str)


def test_schema_is_frozen() -> None:
    """Saved models hold it."""
    assert str(OP.default._schema) == SCHEMA
    assert OP.overloads() == ["default"]


def test_bare_ints_and_defaults(device: str) -> None:
    x, w, b = SAMPLES[0].tensors(torch.float32, device)
    assert torch.equal(OP(x, w, b), OP(x, w, b, [1, 1], [0, 0], [0, 0], 1, [1, 1]))
    assert torch.equal(OP(x, w, b, 3, 1, 2, 1, 2), OP(x, w, b, [3, 3], [1, 1], [2, 2], 1, [2, 2]))
    assert torch.equal(
        OP(x, w, None, [3], [1], [2], 1, [2]), OP(x, w, stride=3, padding=1, output_padding=2, dilation=2)
    )
    assert torch.equal(OP(input=x, weight=w), OP(x, w, None))
    assert torch.equal(convt_ext.conv_transpose2d(x, w, b, (2, 1), 1), OP(x, w, b, [2, 1], [1, 1]))


@samples
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_opcheck(sample: Geometry, layout: str, device: str) -> None:
    x, w, b = sample.tensors(torch.float32, device)
    x = LAYOUTS[layout](x)
    for requires_grad in (False, True):
        tensors = [None if t is None else t.detach().requires_grad_(requires_grad) for t in (x, w, b)]
        torch.library.opcheck(OP.default, tuple(tensors), sample.arguments)


@samples
@layouts
def test_fake_says_what_the_kernel_does(sample: Geometry, layout: str, target: Target) -> None:
    for dtype in DTYPES:
        if not takes(target.kernel, dtype):
            continue
        x, w, b = sample.tensors(dtype, target.device)
        x = LAYOUTS[layout](x)
        real = OP(x, w, b, **sample.arguments)
        assert_promised_strides(real, x)
        with FakeTensorMode() as mode:
            fake = OP(*(None if t is None else mode.from_tensor(t) for t in (x, w, b)), **sample.arguments)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
        assert fake.device == real.device
        meta = OP(*(None if t is None else t.to("meta") for t in (x, w, b)), **sample.arguments)
        assert (meta.shape, meta.dtype, meta.device.type) == (real.shape, real.dtype, "meta")


@samples
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_symbolic_sizes(sample: Geometry, layout: str) -> None:
    """Dynamic batch, height and width stay symbols: no guard ties them to the example's sizes."""
    x, w, b = sample.tensors(torch.float32)
    x = LAYOUTS[layout](x)
    shape_env = ShapeEnv()
    with FakeTensorMode(shape_env=shape_env) as mode:
        kinds = [DimDynamic.DYNAMIC if size > 1 else DimDynamic.STATIC for size in x.shape]
        kinds[-3] = DimDynamic.STATIC
        fake_x = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds))
        fake_w, fake_b = mode.from_tensor(w, static_shapes=True), None
        if b is not None:
            fake_b = mode.from_tensor(b, static_shapes=True)
        fake = OP(fake_x, fake_w, fake_b, **sample.arguments)
    real = OP(x, w, b, **sample.arguments)
    for axis in range(x.dim()):
        if kinds[axis] == DimDynamic.DYNAMIC:
            assert isinstance(fake.shape[axis], torch.SymInt)
            assert fake.shape[axis].node.hint == real.shape[axis]
        else:
            assert fake.shape[axis] == real.shape[axis]
    # torch 2.10 itself specialises what makes a side 1 long when it allocates the output.
    if min(real.shape[-2:]) > 1 or not torch.__version__.startswith("2.10."):
        assert not shape_env.replacements, "a symbolic size was specialised"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_empty_batch(layout: str, dtype: torch.dtype, device: str) -> None:
    x = torch.empty(0, 4, 5, 3, dtype=dtype, device=device).contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    w, b = torch.ones(4, 3, 3, 3, dtype=dtype, device=device), torch.ones(3, dtype=dtype, device=device)
    out = convt_ext.conv_transpose2d(x, w, b, stride=2, padding=1)
    assert out.shape == (0, 3, 9, 5)
    assert out.dtype == dtype
    assert_promised_strides(out, x)
    for t in (x, w, b):
        t.requires_grad_()
    convt_ext.conv_transpose2d(x, w, b, stride=2, padding=1).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert w.grad is not None
    assert not w.grad.any()
    assert b.grad is not None
    assert not b.grad.any()


def _with_strides(shape: tuple[int, ...], strides: tuple[int, ...], device: str) -> Tensor:
    size = 1 + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    return torch.linspace(-1, 1, size, device=device).as_strided(shape, strides)


@pytest.mark.parametrize(
    ("shape", "strides", "channels_last"),
    [
        ((3, 8, 1, 1), (8, 1, 8, 8), True),
        ((3, 8, 1, 1), (8, 1, 1, 1), False),
        ((1, 8, 1, 1), (8, 1, 8, 8), True),
        ((3, 1, 4, 5), (20, 1, 5, 1), True),
        ((3, 1, 4, 5), (20, 20, 5, 1), False),
        ((1, 1, 4, 5), (1, 1, 5, 1), False),
        ((2, 8, 4, 5), (320, 1, 80, 16), True),
        ((2, 8, 4, 5), (0, 1, 40, 8), False),
        ((2, 8, 4, 5), (160, 0, 5, 1), False),
        ((2, 8, 4, 5), (160, 1, 8, 32), False),
        ((2, 8, 1, 5), (40, 1, 40, 8), True),
        ((2, 8, 4, 1), (32, 1, 8, 8), True),
    ],
)
def test_channels_last_in_channels_last_out(
    shape: tuple[int, ...], strides: tuple[int, ...], channels_last: bool, target: Target
) -> None:
    """Sizes of one leave the format to the strides: torch's rule decides, and the output follows it."""
    x = _with_strides(shape, strides, target.device)
    w = torch.ones(shape[1], 4, 3, 3, device=target.device)
    out = OP(x, w, stride=2)
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert out.stride() == torch.empty(out.shape, memory_format=expected).stride()
    assert out.stride() == promised_strides(tuple(out.shape), x)
    assert_accurate(out, x, w, None, stride=2)


@samples
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@every_target
def test_same_input_same_bits(sample: Geometry, layout: str, target: Target) -> None:
    for dtype in (torch.float16, torch.float32):
        x, w, b = sample.tensors(dtype, target.device)
        x = LAYOUTS[layout](x)
        first = OP(x, w, b, **sample.arguments)
        for _ in range(5):
            assert torch.equal(first, OP(x, w, b, **sample.arguments))


@every_target
def test_inputs_are_left_alone(target: Target) -> None:
    x, w, b = SAMPLES[2].tensors(torch.float32, target.device)
    copies = [t.clone() for t in (x, w, b) if t is not None]
    out = OP(x, w, b, **SAMPLES[2].arguments)
    for tensor, copy in zip((x, w, b), copies, strict=True):
        assert tensor is not None
        assert torch.equal(tensor, copy)
        assert out.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@every_target
def test_many_threads(target: Target) -> None:
    cases = []
    for sample in SAMPLES:
        tensors = sample.tensors(torch.float32, target.device)
        cases.append((tensors, sample.arguments, OP(*tensors, **sample.arguments)))

    def work(index: int) -> bool:
        tensors, arguments, expected = cases[index % len(cases)]
        with torch.no_grad():
            return torch.equal(OP(*tensors, **arguments), expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))


def test_inference_and_no_grad(device: str) -> None:
    x, w, b = SAMPLES[0].tensors(torch.float32, device)
    expected = OP(x, w, b)
    for t in (x, w):
        t.requires_grad_()
    assert OP(x, w, b).requires_grad
    with torch.no_grad():
        out = OP(x, w, b)
    assert not out.requires_grad
    assert torch.equal(out, expected)
    with torch.inference_mode():
        out = OP(x, w, b)
        assert torch.equal(out, OP(x.clone(), w.clone(), b))
    assert out.is_inference()
    assert torch.equal(out.clone(), expected)


def test_info() -> None:
    info = json.loads(torch.ops.convt._info())
    assert info["version"] == convt_ext.__version__ == "0.1.0"
    assert info["archs"]
    assert info["nvcc"]
    assert info["torch_abi_target"] == "2.10"
    assert info["tf32_flag"] in ("allowed", "disallowed", "unreadable")
    assert info["fp32"] == ("tf32" if info["tf32_flag"] == "allowed" else "ieee")


@every_target
def test_plan_is_one_line(target: Target) -> None:
    for sample in SAMPLES:
        x, w, b = sample.tensors(torch.float32, target.device)
        line = convt_ext.plan(x, w, b, **sample.arguments)
        name, *pairs = line.split(" ")
        assert name in ("aten", *KERNEL_DTYPES)
        assert all(pair.count("=") == 1 for pair in pairs)
        assert "\n" not in line
