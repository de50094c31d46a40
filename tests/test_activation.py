"""The operator with an activation: values in every kernel, derivatives, transforms, and the forms of its models."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from reference import (
    DTYPES,
    HALF_TARGETS,
    LAYOUTS,
    NESTED_TRANSFORMS,
    TARGETS,
    TENSOR_CORE_KERNELS,
    TENSOR_CORE_TARGETS,
    Geometry,
    Target,
    assert_promised_strides,
    beyond_limits,
    poison,
    takes,
    tf32_allowed,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import convt_ext
from convt_ext import _activation

OP = torch.ops.convt.conv_transpose2d_act
SCHEMA = (
    "convt::conv_transpose2d_act(Tensor input, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, "
    'int[2] output_padding=0, int groups=1, int[2] dilation=1, *, str activation="none", float[] params=[]) -> Tensor'
)


@dataclass(frozen=True)
class Case:
    """An activation with its numbers, and torch's function for it."""

    activation: str
    params: tuple[float, ...]
    function: Callable[[Tensor], Tensor]
    scale: float = 1.0
    shift: float = 0.0

    def __str__(self) -> str:
        return "-".join([self.activation, *(f"{number:g}" for number in self.params)])

    @property
    def arguments(self) -> dict[str, object]:
        return {"activation": self.activation, "params": self.params}

    def unfused(self, y: Tensor) -> Tensor:
        """The same of a convolution's output: torch's operators, computed in float32 and rounded once."""
        wide = self.function(y.float() if y.dtype in (torch.float16, torch.bfloat16) else y)
        if self.scale != 1:
            wide = wide * self.scale
        return (wide + self.shift if self.shift != 0 else wide).to(y.dtype)


def _hardswish(y: Tensor) -> Tensor:
    """F.hardswish, which on GPUs has a sixth of float32 in float64 too."""
    return y * F.relu6(y + 3) / 6


_gelu_tanh = partial(F.gelu, approximate="tanh")
PLAIN = (
    Case("none", (), lambda y: y),
    Case("relu", (), F.relu),
    Case("leaky_relu", (), F.leaky_relu),
    Case("leaky_relu", (0.2,), partial(F.leaky_relu, negative_slope=0.2)),
    Case("elu", (), F.elu),
    Case("elu", (1.5,), partial(F.elu, alpha=1.5)),
    Case("silu", (), F.silu),
    Case("gelu", (), F.gelu),
    Case("gelu_tanh", (), _gelu_tanh),
    Case("mish", (), F.mish),
    Case("sigmoid", (), torch.sigmoid),
    Case("tanh", (), torch.tanh),
    Case("hardtanh", (), F.hardtanh),
    Case("hardtanh", (-0.25, 0.75), partial(F.hardtanh, min_val=-0.25, max_val=0.75)),
    Case("clamp", (0.0, 0.5), partial(torch.clamp, min=0.0, max=0.5)),
    Case("hardswish", (), _hardswish),
)
SCALED = tuple(
    Case(case.activation, (*case.params, 1.75, -0.375), case.function, 1.75, -0.375)
    for case in PLAIN
    # scale and shift stand behind the numbers that the activation has
    if case.params or case.activation not in ("leaky_relu", "elu", "hardtanh")
)
CASES = (*PLAIN, *SCALED)
FORCED = [*TENSOR_CORE_TARGETS, *HALF_TARGETS]  # beside those of TARGETS
cases = pytest.mark.parametrize("case", CASES, ids=str)
scaled_cases = pytest.mark.parametrize("case", SCALED, ids=str)
every_target = pytest.mark.parametrize("target", [*TARGETS, *FORCED], indirect=True, ids=str)
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])

GEOMETRIES = (
    Geometry("ragged", (2, 17, 9, 7), 33, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    Geometry("vectors", (3, 64, 8, 16), 64, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("bias_alone", (2, 6, 5, 4), 6, (2, 3), stride=(5, 7)),
    Geometry("no_bias", (2, 16, 6, 5), 40, (2, 2), stride=(2, 2), bias=False),
    Geometry("thin", (2, 24, 9, 40), 3, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("depthwise", (2, 16, 12, 9), 16, (3, 3), stride=(2, 1), padding=(1, 1), groups=16),
    Geometry("groups", (2, 10, 7, 9), 6, (3, 3), stride=(2, 2), padding=(1, 1), groups=2),
    Geometry("unbatched", (8, 5, 4), 6, (2, 3), stride=(2, 1)),
    Geometry("depthwise_rolling", (2, 6, 7, 12), 6, (4, 4), stride=(2, 2), padding=(1, 1), groups=6),
)
SMALL = Geometry("small", (2, 2, 3, 2), 3, (3, 2), stride=(2, 1), padding=(1, 0))


def test_schema_is_frozen() -> None:
    """Saved models hold it."""
    assert str(OP.default._schema) == SCHEMA
    assert OP.overloads() == ["default"]


# ---------------------------------------------------------------- values


def assert_unfused(case: Case, actual: Tensor, y: Tensor, context: str = "") -> None:
    """Values are those of torch's operators on the output `y` of the plain operator, but for the last bits."""
    expected = case.unfused(y)
    assert (actual.dtype, actual.shape, actual.stride()) == (y.dtype, y.shape, y.stride()), context
    eps = torch.finfo(y.dtype).eps
    # A function of float32 may be off by some units of it before it is rounded to the dtype.
    unit = eps if y.dtype in (torch.float16, torch.bfloat16) else 16 * eps
    torch.testing.assert_close(
        actual, expected, rtol=unit, atol=unit, equal_nan=True, msg=lambda text: f"{case} {context}: {text}"
    )


def tf32_settings(kernel: str | None, dtype: torch.dtype) -> tuple[bool, ...]:
    """The values of torch's TF32 flag with which a forced kernel takes the dtype."""
    if dtype == torch.float32 and kernel in TENSOR_CORE_KERNELS:
        return False, True
    return (False,) if takes(kernel, dtype) else ()


def each_precision(target: Target, dtypes: Iterable[torch.dtype] = DTYPES) -> Iterator[torch.dtype]:
    """The dtypes that a target takes, float32 in each precision that its kernel has; torch's flag is set meanwhile."""
    for dtype in dtypes:
        for allowed in tf32_settings(target.kernel, dtype):
            with tf32_allowed(allowed):
                yield dtype


@cases
@layouts
@every_target
def test_values(case: Case, layout: str, target: Target) -> None:
    """Against torch's operators, which are given what the same kernel computes without an activation."""
    for geometry in GEOMETRIES:
        for dtype in each_precision(target):
            x, w, b = geometry.tensors(dtype, target.device)
            x, w = LAYOUTS[layout](x), LAYOUTS[layout](w)
            if beyond_limits(target.kernel, x, w, b, **geometry.arguments):
                continue
            y = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
            poison(geometry.output, dtype, target.device)
            actual = convt_ext.conv_transpose2d_act(x, w, b, **geometry.arguments, **case.arguments)
            assert_promised_strides(actual, x)
            assert_unfused(case, actual, y, f"{geometry.name} {dtype}")


SPECIAL = (
    float("inf"),
    float("-inf"),
    float("nan"),
    0.0,
    1e-30,
    -1e-30,
    3.0,
    -3.0,
    20.0,
    -20.0,
    120.0,
    -120.0,
    6e4,
    -6e4,
    1e30,
    -1e30,
)


@cases
@layouts
@every_target
def test_special_values(case: Case, layout: str, target: Target) -> None:
    """Infinities, NaN and numbers for which an exponential overflows: as torch's operators on the same device."""
    for dtype in each_precision(target):
        x = torch.zeros(2, 3, 5, 4, dtype=dtype, device=target.device)
        w = torch.ones(3, len(SPECIAL), 2, 2, dtype=dtype, device=target.device)
        b = torch.tensor(SPECIAL, dtype=dtype, device=target.device)
        x = LAYOUTS[layout](x)
        y = convt_ext.conv_transpose2d(x, w, b, stride=2)
        actual = convt_ext.conv_transpose2d_act(x, w, b, stride=2, **case.arguments)
        assert_unfused(case, actual, y, str(dtype))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.activation in ("none", "relu", "hardtanh", "clamp")], ids=str
)
@every_target
def test_exact_ones_are_exact(case: Case, target: Target) -> None:
    """The convolution is rounded to the dtype, and what follows it once more, or not at all where it picks values."""
    half = (torch.float16, torch.bfloat16)
    # A scale of three digits and a shift round nothing of 16 bits in float32, with one rounding or with two.
    for dtype in each_precision(target, half if case.scale != 1 else DTYPES):
        x, w, b = GEOMETRIES[0].tensors(dtype, target.device)
        y = convt_ext.conv_transpose2d(x, w, b, **GEOMETRIES[0].arguments)
        actual = convt_ext.conv_transpose2d_act(x, w, b, **GEOMETRIES[0].arguments, **case.arguments)
        assert torch.equal(actual, case.unfused(y))


# With tile_mma its channels are split, and the activation is applied where the parts are added.
DEEP = Geometry("deep", (1, 512, 4, 4), 32, (4, 4), stride=(2, 2), padding=(1, 1))


@pytest.mark.parametrize("target", FORCED, indirect=True, ids=str)
@layouts
def test_other_launches(layout: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way to write the output a launch has."""
    case, lines = SCALED[-1], []
    for geometry in (*GEOMETRIES, DEEP):
        for dtype in each_precision(target, (torch.float16, torch.float32)):
            x, w, b = geometry.tensors(dtype, target.device)
            x = LAYOUTS[layout](x)
            for rank in (0, 1, 2, 5, 10, 20, 50, 100):
                monkeypatch.setenv("CONVT_KERNEL", f"{target.kernel}:{rank}")
                try:
                    lines.append(convt_ext.plan(x, w, b, **geometry.arguments))
                except RuntimeError as error:
                    assert "launches of" in str(error) or (  # noqa: PT017  (one of two refusals)
                        rank == 0 and beyond_limits(target.kernel, x, w, b, **geometry.arguments)
                    )
                    break
                y = convt_ext.conv_transpose2d(x, w, b, **geometry.arguments)
                actual = convt_ext.conv_transpose2d_act(x, w, b, **geometry.arguments, **case.arguments)
                assert_unfused(case, actual, y, f"{geometry.name} {dtype} {lines[-1]}")
    assert len(lines) > len(GEOMETRIES)
    if target.kernel == "tile_mma":
        assert any("splits=" in line and "splits=1 " not in line for line in lines)


@pytest.mark.sanitize
@layouts
@every_target
def test_under_sanitizers(layout: str, target: Target) -> None:
    for dtype in each_precision(target, (torch.float16, torch.float32)):
        x, w, b = GEOMETRIES[0].tensors(dtype, target.device)
        x = LAYOUTS[layout](x)
        y = convt_ext.conv_transpose2d(x, w, b, **GEOMETRIES[0].arguments)
        assert_unfused(SCALED[-1], OP(x, w, b, **GEOMETRIES[0].arguments, **SCALED[-1].arguments), y)


@every_target
def test_same_input_same_bits(target: Target) -> None:
    dtype = torch.float16
    x, w, b = GEOMETRIES[0].tensors(dtype, target.device)
    first = OP(x, w, b, **GEOMETRIES[0].arguments, activation="mish")
    for _ in range(5):
        assert torch.equal(first, OP(x, w, b, **GEOMETRIES[0].arguments, activation="mish"))


def test_one_plan_serves_every_activation(device: str) -> None:
    """Calls of one problem with different activations do not take each other's."""
    x, w, b = GEOMETRIES[0].tensors(torch.float32, device)
    y = OP(x, w, b)
    for case in CASES:
        assert_unfused(case, OP(x, w, b, **case.arguments), y)
    assert torch.equal(OP(x, w, b), convt_ext.conv_transpose2d(x, w, b))


def test_empty_batch(device: str) -> None:
    x, w = torch.empty(0, 4, 5, 3, device=device, requires_grad=True), torch.ones(4, 3, 3, 3, device=device)
    out = convt_ext.conv_transpose2d_act(x, w, activation="gelu", params=(2, 1))
    assert out.shape == (0, 3, 7, 5)
    out.sum().backward()
    assert x.grad is not None


# ---------------------------------------------------------------- without data


@scaled_cases
@layouts
def test_fake_says_what_the_kernel_does(case: Case, layout: str, device: str) -> None:
    for geometry in (GEOMETRIES[0], GEOMETRIES[7]):
        x, w, b = geometry.tensors(torch.float16, device)
        x = LAYOUTS[layout](x)
        real = OP(x, w, b, **geometry.arguments, **case.arguments)
        with FakeTensorMode() as mode:
            tensors = [None if t is None else mode.from_tensor(t) for t in (x, w, b)]
            fake = OP(*tensors, **geometry.arguments, **case.arguments)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
        assert fake.device == real.device


@scaled_cases
def test_opcheck(case: Case, device: str) -> None:
    for requires_grad in (False, True):
        tensors = [t.requires_grad_(requires_grad) for t in SMALL.tensors(torch.float32, device) if t is not None]
        keywords = {**SMALL.arguments, "activation": case.activation, "params": list(case.params)}
        torch.library.opcheck(OP.default, tuple(tensors), keywords)


# ---------------------------------------------------------------- derivatives


def fused(case: Case, *tensors: Tensor, geometry: Geometry = SMALL) -> Tensor:
    return convt_ext.conv_transpose2d_act(*tensors, **geometry.arguments, **case.arguments)


def unfused(case: Case, *tensors: Tensor) -> Tensor:
    return case.unfused(F.conv_transpose2d(*tensors, **SMALL.arguments))


def leaves(geometry: Geometry, dtype: torch.dtype, device: str) -> list[Tensor]:
    return [t.requires_grad_() for t in geometry.tensors(dtype, device) if t is not None]


@cases
def test_gradcheck(case: Case, device: str) -> None:
    tensors = leaves(SMALL, torch.float64, device)
    assert gradcheck(partial(fused, case), tensors, fast_mode=True)
    assert gradgradcheck(partial(fused, case), tensors, fast_mode=True)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_torch(case: Case, dtype: torch.dtype, device: str) -> None:
    for geometry in (GEOMETRIES[0], GEOMETRIES[3], GEOMETRIES[7]):
        ours, theirs = leaves(geometry, dtype, device), leaves(geometry, dtype, device)
        out = fused(case, *ours, geometry=geometry)
        # Of the same sums: where they are rounded otherwise, some are on the other side of a kink.
        expected = case.unfused(convt_ext.conv_transpose2d(*theirs, **geometry.arguments))
        seed = torch.randn_like(out, memory_format=torch.contiguous_format)
        grads, expected_grads = torch.autograd.grad(out, ours, seed), torch.autograd.grad(expected, theirs, seed)
        rtol = 16 * torch.finfo(dtype).eps
        for ours_grad, theirs_grad in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(ours_grad, theirs_grad, rtol=rtol, atol=rtol * theirs_grad.abs().max().item())


@scaled_cases
def test_second_derivatives_are_those_of_torch(case: Case, device: str) -> None:
    def penalty(function: Callable[..., Tensor]) -> list[Tensor]:
        tensors = leaves(SMALL, torch.float64, device)
        (grad,) = torch.autograd.grad(function(case, *tensors).square().sum(), tensors[0], create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), tensors))

    for ours, theirs in zip(penalty(fused), penalty(unfused), strict=True):
        torch.testing.assert_close(ours, theirs)


@scaled_cases
def test_forward_mode(case: Case, device: str) -> None:
    primals = tuple(t for t in SMALL.tensors(torch.float64, device) if t is not None)
    tangents = tuple(torch.randn_like(t) for t in primals)
    ours = torch.func.jvp(partial(fused, case), primals, tangents)
    theirs = torch.func.jvp(partial(unfused, case), primals, tangents)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("transform", NESTED_TRANSFORMS)
@scaled_cases
def test_nested_transforms(case: Case, transform: str, device: str) -> None:
    x, w, b = SMALL.tensors(torch.float64, device)

    def results(function: Callable[..., Tensor]) -> Tensor:
        return NESTED_TRANSFORMS[transform](lambda x: function(case, x, w, b).square().sum(), x)

    torch.testing.assert_close(results(fused), results(unfused))


@scaled_cases
def test_vmap_and_per_sample_gradients(case: Case, device: str) -> None:
    x, w, b = SMALL.tensors(torch.float64, device)
    assert b is not None
    xs, ws = torch.stack([x, -x, x + 1]), torch.stack([w, 2 * w, w - 1])
    for dims in ((0, None, None), (None, 0, None), (0, 0, None)):
        arguments = tuple(
            stack if dim == 0 else one for stack, one, dim in zip((xs, ws, b), (x, w, b), dims, strict=True)
        )
        mapped = torch.vmap(partial(fused, case), in_dims=dims)(*arguments)
        looped = [
            unfused(case, *(t[i] if dim == 0 else t for t, dim in zip(arguments, dims, strict=True))) for i in range(3)
        ]
        torch.testing.assert_close(mapped, torch.stack(looped))

    def loss(function: Callable[..., Tensor], w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return function(case, x, w, b).square().sum()

    ours, theirs = (
        torch.vmap(torch.func.grad(partial(loss, function), argnums=(0, 1, 2)), in_dims=(None, None, 0))(w, b, xs)
        for function in (fused, unfused)
    )
    torch.testing.assert_close(ours, theirs)


class OtherTensor(Tensor):
    """As DTensor, a class for which not all of aten's derivatives will do."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_derivatives_of_other_classes(case: Case, dtype: torch.dtype) -> None:
    parsed = _activation.parse(case.activation, case.params)
    x = torch.tensor([-90.0, -3.5, -3, -1, -1e-3, 0, 1e-3, 0.5, 1, 2.5, 3, 4, 90, float("nan")], dtype=dtype)
    grad = torch.linspace(-2, 3, len(x), dtype=dtype)
    with torch.no_grad():
        expected = parsed.derivative(grad, x)
        actual = parsed.derivative(grad.as_subclass(OtherTensor), x.as_subclass(OtherTensor))
    assert type(actual) is OtherTensor
    torch.testing.assert_close(actual.as_subclass(Tensor), expected, equal_nan=True)


def test_forward_keeps_the_inputs_only(device: str) -> None:
    """The output of the convolution is computed again for the gradients, not kept."""
    tensors, saved = leaves(SMALL, torch.float32, device), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused(SCALED[-1], *tensors)
    assert set(saved) == {t.data_ptr() for t in tensors}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, device: str) -> None:
    case, tensors = SCALED[-1], leaves(SMALL, torch.float32, device)
    with torch.autocast(device, dtype=dtype):
        out = fused(case, *tensors)
        with torch.autocast(device, enabled=False):
            plain = fused(case, *tensors)
    by_hand = fused(case, *(t.detach().to(dtype) for t in tensors))
    assert out.dtype == dtype
    assert torch.equal(out, by_hand)
    assert plain.dtype == torch.float32
    expected = torch.autograd.grad(fused(case, *tensors).sum(), tensors)
    with torch.autocast(device, dtype=dtype):  # what was computed without it has gradients without it
        for grad, want in zip(torch.autograd.grad(plain.sum(), tensors), expected, strict=True):
            torch.testing.assert_close(grad, want)


# ---------------------------------------------------------------- functions, modules and their forms


@scaled_cases
def test_one_dimension(case: Case, device: str) -> None:
    x, w, b = torch.randn(2, 6, 9, device=device), torch.randn(6, 4, 5, device=device), torch.randn(4, device=device)
    actual = convt_ext.conv_transpose1d_act(x, w, b, 3, 2, 1, **case.arguments)
    assert_unfused(case, actual, convt_ext.conv_transpose1d(x, w, b, 3, 2, 1))


def layer(dimensions: int, case: Case) -> nn.Module:
    kind = (convt_ext.ConvTranspose1d, convt_ext.ConvTranspose2d)[dimensions - 1]
    module = kind(6, 4, 3, 2)
    module.activation, module.params = case.activation, case.params
    return module


@pytest.mark.parametrize("dimensions", [1, 2])
@cases
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer torch prefers torch.export
def test_module(dimensions: int, case: Case, device: str) -> None:
    """Called, scripted and traced, saved and loaded, it is the layer and the activation."""
    module = layer(dimensions, case).to(device)
    x = torch.randn(2, 6, *[5] * dimensions, device=device)
    expected = module(x)
    module.activation, module.params = "none", ()
    assert_unfused(case, expected, module(x))
    module.activation, module.params = case.activation, case.params
    activates = case.activation != "none" or case.params != ()
    for program in (torch.jit.script(module), torch.jit.trace(module, x)):
        buffer = io.BytesIO()
        torch.jit.save(program, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        assert torch.equal(loaded(x), expected)
        graph = str(loaded.inlined_graph)
        assert graph.count("convt::conv_transpose2d") == 1
        assert graph.count("convt::conv_transpose2d_act") == activates
    assert torch.equal(torch.export.export(module, (x,)).module()(x), expected)
    shown = f"activation={case.activation!r}, params={case.params}"
    assert (shown in repr(module)) == activates


@pytest.mark.parametrize("dimensions", [1, 2])
def test_module_refuses_what_is_no_activation(dimensions: int) -> None:
    module = layer(dimensions, PLAIN[0])
    for activation in (nn.ReLU(), torch.relu, "Relu", None):
        with pytest.raises(ValueError, match=r"activation must be one of none, relu, .*, hardswish, got "):
            module.activation = activation
    for params in (0.2, None, "elu", [None]):
        with pytest.raises(ValueError, match="params must be a sequence of numbers, got "):
            module.params = params
    assert (module.activation, module.params) == ("none", ())
    module.activation, module.params = "clamp", [0, torch.tensor(1)]
    assert module.params == (0.0, 1.0)
    assert not any(True for _ in module.children())


def test_compile_is_one_graph(device: str) -> None:
    module = layer(2, SCALED[-1]).to(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 7):
        x = torch.randn(2, 6, size, size, device=device, requires_grad=True)
        out, expected = compiled(x), module(x)
        torch.testing.assert_close(out, expected)
        grads = [torch.autograd.grad(y.square().sum(), (x, module.weight)) for y in (out, expected)]
        torch.testing.assert_close(*grads)
