"""Every refusal with its text: the same from the CPU, CUDA, meta and fake tensors, and before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from reference import NEEDS_CUDA
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import convt_ext

PREFIX = "convt::conv_transpose2d: "
FLOAT32 = torch.float32


@dataclass(frozen=True)
class Refusal:
    """A call and its error; shapes with an optional dtype, and whatever differs from the defaults."""

    name: str
    text: str
    input: tuple[int, ...] = (2, 8, 5, 4)
    weight: tuple[int, ...] = (8, 3, 3, 2)
    bias: tuple[int, ...] | None = None
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype] = (FLOAT32, FLOAT32, FLOAT32)
    arguments: dict[str, Any] = field(default_factory=dict)

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
        x = torch.zeros(self.input, dtype=self.dtypes[0], device=device)
        w = torch.zeros(self.weight, dtype=self.dtypes[1], device=device)
        return x, w, None if self.bias is None else torch.zeros(self.bias, dtype=self.dtypes[2], device=device)


def _list_refusals() -> Iterator[Refusal]:
    """What can be wrong with each of the four lists by itself."""
    for name in ("stride", "padding", "output_padding", "dilation"):
        least = 0 if "padding" in name else 1
        sign = "positive" if least else "non-negative"
        bad = least - 1
        huge = 2**31
        for values, text in (
            ([], "must hold 1 or 2 ints, got []"),
            ([1, 1, 1], "must hold 1 or 2 ints, got [1, 1, 1]"),
            ([1, 2, 3, 4], "must hold 1 or 2 ints, got [1, 2, 3, 4]"),
            (bad, f"must be {sign}, got [{bad}, {bad}]"),
            ([bad], f"must be {sign}, got [{bad}, {bad}]"),
            ([bad, 1], f"must be {sign}, got [{bad}, 1]"),
            ([1, bad], f"must be {sign}, got [1, {bad}]"),
            ([1, -(2**40)], f"must be {sign}, got [1, {-(2**40)}]"),
            ([huge, 1], f"must be at most 2147483647, got [{huge}, 1]"),
            (2**62, f"must be at most 2147483647, got [{2**62}, {2**62}]"),
        ):
            yield Refusal(f"{name}={values}", f"{name} {text}", arguments={name: values})


def _dtype_refusals() -> Iterator[Refusal]:
    for dtype in (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128):
        text = f"input must be float16, bfloat16, float32 or float64, got {str(dtype).removeprefix('torch.')}"
        yield Refusal(f"input_{dtype}", text, dtypes=(dtype, dtype, dtype))
    for got in (torch.float16, torch.bfloat16, torch.float64, torch.int32):
        name = str(got).removeprefix("torch.")
        yield Refusal(
            f"weight_{got}",
            f"weight must have the dtype of input (float32), got {name}",
            dtypes=(FLOAT32, got, FLOAT32),
        )
        yield Refusal(
            f"bias_{got}",
            f"bias must have the dtype of input (float32), got {name}",
            bias=(3,),
            dtypes=(FLOAT32, FLOAT32, got),
        )
    yield Refusal(
        "float16_and_bfloat16",
        "weight must have the dtype of input (float16), got bfloat16",
        dtypes=(torch.float16, torch.bfloat16, torch.float16),
    )


REFUSALS = (
    *(
        Refusal(
            f"input_{len(shape)}d",
            f"input must be 3-D [Cin, H, W] or 4-D [N, Cin, H, W], got shape {list(shape)}",
            input=shape,
        )
        for shape in ((), (8,), (8, 5), (1, 2, 8, 5, 4))
    ),
    *(
        Refusal(
            f"weight_{len(shape)}d",
            f"weight must be 4-D [Cin, Cout/groups, KH, KW], got shape {list(shape)}",
            weight=shape,
        )
        for shape in ((), (8,), (8, 3, 3), (8, 3, 3, 2, 1))
    ),
    *_dtype_refusals(),
    *_list_refusals(),
    Refusal("groups_0", "groups must be positive, got 0", arguments={"groups": 0}),
    Refusal("groups_-2", "groups must be positive, got -2", arguments={"groups": -2}),
    *(
        Refusal(
            f"empty_weight_{shape}",
            f"weight must have at least one element on every side, got shape {list(shape)}",
            weight=shape,
        )
        for shape in ((0, 3, 3, 2), (8, 0, 3, 2), (8, 3, 0, 2), (8, 3, 3, 0))
    ),
    Refusal(
        "channels",
        "weight must have input's channels first (8), got shape [4, 2, 3, 3]",
        weight=(4, 2, 3, 3),
    ),
    Refusal(
        "channels_unbatched",
        "weight must have input's channels first (2), got shape [8, 3, 3, 2]",
        input=(2, 8, 5),
    ),
    Refusal("groups_3", "groups must divide input's channels (8), got 3", arguments={"groups": 3}),
    Refusal("groups_16", "groups must divide input's channels (8), got 16", arguments={"groups": 16}),
    *(
        Refusal(
            f"bias_{shape}",
            f"bias must be 1-D with one element per output channel (6), got shape {list(shape)}",
            bias=shape,
            arguments={"groups": 2},
        )
        for shape in ((), (3,), (0,), (7,), (6, 1), (1, 6, 1, 1))
    ),
    Refusal(
        "output_padding_h",
        "output_padding must be smaller than stride or dilation, "
        "got output_padding [2, 0] with stride [2, 1] and dilation [1, 1]",
        arguments={"output_padding": [2, 0], "stride": [2, 1]},
    ),
    Refusal(
        "output_padding_w",
        "output_padding must be smaller than stride or dilation, "
        "got output_padding [3, 3] with stride [5, 2] and dilation [1, 3]",
        arguments={"output_padding": 3, "stride": [5, 2], "dilation": [1, 3]},
    ),
    *(
        Refusal(
            f"empty_input_{shape}",
            f"input must have non-empty channels, height and width, got shape {list(shape)}",
            input=shape,
        )
        for shape in ((2, 8, 0, 4), (2, 8, 5, 0), (8, 0, 4), (8, 5, 0), (0, 8, 0, 4))
    ),
    Refusal(
        "output_height_0",
        "output size must be positive, got [0, 5] for input size [1, 4], kernel [2, 2], stride [1, 1], "
        "padding [1, 0], output_padding [0, 0], dilation [1, 1]",
        input=(2, 8, 1, 4),
        weight=(8, 3, 2, 2),
        arguments={"padding": [1, 0]},
    ),
    Refusal(
        "output_width_negative",
        "output size must be positive, got [12, -11] for input size [5, 4], kernel [3, 2], stride [2, 3], "
        "padding [1, 13], output_padding [1, 2], dilation [2, 3]",
        arguments={"padding": [1, 13], "stride": [2, 3], "output_padding": [1, 2], "dilation": [2, 3]},
    ),
    Refusal(
        "output_size_unbatched",
        "output size must be positive, got [-13, -15] for input size [5, 4], kernel [3, 2], stride [1, 1], "
        "padding [10, 10], output_padding [0, 0], dilation [1, 1]",
        input=(8, 5, 4),
        arguments={"padding": 10},
    ),
)

# Calls with two faults: the one that is checked first is named.
FIRST_OF_TWO = (
    Refusal("1_before_2", REFUSALS[1].text, input=(8,), weight=(8,)),
    Refusal(
        "2_before_3",
        "weight must be 4-D [Cin, Cout/groups, KH, KW], got shape [8, 3]",
        weight=(8, 3),
        dtypes=(torch.int64,) * 3,
    ),
    Refusal(
        "3_before_4",
        "input must be float16, bfloat16, float32 or float64, got int64",
        dtypes=(torch.int64, FLOAT32, FLOAT32),
    ),
    Refusal(
        "4_before_6",
        "weight must have the dtype of input (float32), got float64",
        dtypes=(FLOAT32, torch.float64, FLOAT32),
        arguments={"stride": []},
    ),
    Refusal(
        "stride_before_padding", "stride must hold 1 or 2 ints, got []", arguments={"stride": [], "padding": [1, 2, 3]}
    ),
    Refusal(
        "padding_before_output_padding",
        "padding must hold 1 or 2 ints, got []",
        arguments={"padding": [], "output_padding": []},
    ),
    Refusal(
        "output_padding_before_dilation",
        "output_padding must hold 1 or 2 ints, got []",
        arguments={"output_padding": [], "dilation": []},
    ),
    Refusal("6_before_7", "dilation must hold 1 or 2 ints, got []", arguments={"stride": 0, "dilation": []}),
    Refusal("7_before_8", "dilation must be positive, got [0, 0]", arguments={"dilation": 0, "groups": 0}),
    Refusal("8_before_9", "groups must be positive, got 0", weight=(8, 0, 3, 2), arguments={"groups": 0}),
    Refusal(
        "9_before_10",
        "weight must have at least one element on every side, got shape [4, 0, 3, 3]",
        weight=(4, 0, 3, 3),
    ),
    Refusal(
        "10_before_11",
        "weight must have input's channels first (8), got shape [4, 2, 3, 3]",
        weight=(4, 2, 3, 3),
        arguments={"groups": 3},
    ),
    Refusal("11_before_12", "groups must divide input's channels (8), got 3", bias=(1,), arguments={"groups": 3}),
    Refusal(
        "bias_shape_before_bias_dtype",
        "bias must be 1-D with one element per output channel (3), got shape [2]",
        bias=(2,),
        dtypes=(FLOAT32, FLOAT32, torch.float64),
    ),
    Refusal(
        "12_before_13",
        "bias must have the dtype of input (float32), got float64",
        bias=(3,),
        dtypes=(FLOAT32, FLOAT32, torch.float64),
        arguments={"output_padding": 1},
    ),
    Refusal(
        "13_before_14",
        "output_padding must be smaller than stride or dilation, "
        "got output_padding [1, 1] with stride [1, 1] and dilation [1, 1]",
        input=(2, 8, 0, 4),
        arguments={"output_padding": 1},
    ),
    Refusal(
        "14_before_15",
        "input must have non-empty channels, height and width, got shape [2, 8, 0, 4]",
        input=(2, 8, 0, 4),
        arguments={"padding": 5},
    ),
)

NAMES = "none, relu, leaky_relu, elu, silu, gelu, gelu_tanh, mish, sigmoid, tanh, hardtanh, clamp, hardswish"
NAN, INF = float("nan"), float("inf")
# Activation, params, and the error. The same in the library and where there is no data: two tables hold them.
ACTIVATION_REFUSALS: tuple[tuple[str, list[float], str], ...] = (
    *((name, [], f"activation must be one of {NAMES}, got '{name}'") for name in ("", "ReLU", "softmax", "relu ")),
    *(
        (name, params, f"params of {name} must hold 0 or 2 numbers (scale and shift), got {text}")
        for name in NAMES.split(", ")
        if name not in ("leaky_relu", "elu", "hardtanh", "clamp")
        for params, text in (([1.0], "[1]"), ([1, 2.5, -3e-20], "[1, 2.5, -3e-20]"))
    ),
    *(
        (name, params, f"params of {name} must hold 0, 1 or 3 numbers ({number}, then scale and shift), got {text}")
        for name, number in (("leaky_relu", "negative_slope"), ("elu", "alpha"))
        for params, text in (([1, 2], "[1, 2]"), ([1, 2, 3, 4], "[1, 2, 3, 4]"))
    ),
    *(
        (
            name,
            params,
            f"params of {name} must hold {counts} numbers (min_val, max_val, then scale and shift), got {text}",
        )
        for name, counts in (("hardtanh", "0, 2 or 4"), ("clamp", "2 or 4"))
        for params, text in (([1], "[1]"), ([1, 2, 3], "[1, 2, 3]"), ([1, 2, 3, 4, 1e9], "[1, 2, 3, 4, 1e+09]"))
    ),
    ("clamp", [], "params of clamp must hold 2 or 4 numbers (min_val, max_val, then scale and shift), got []"),
    ("elu", [NAN], "params of elu must not be NaN, got [nan]"),
    ("none", [1, NAN], "params of none must not be NaN, got [1, nan]"),
    ("clamp", [-INF, INF, NAN, 0], "params of clamp must not be NaN, got [-inf, inf, nan, 0]"),
    ("clamp", [1, 0.5], "params of clamp must hold a min_val that is at most max_val, got [1, 0.5]"),
    ("hardtanh", [2, 1, 3, 4], "params of hardtanh must hold a min_val that is at most max_val, got [2, 1, 3, 4]"),
)

SOURCES = ("cpu", pytest.param("cuda", marks=NEEDS_CUDA), "meta", "fake_cpu", "fake_cuda")


@contextmanager
def tensor_source(name: str) -> Iterator[str]:
    """The device type of a source; tensors made inside are fake if the source is."""
    with FakeTensorMode() if name.startswith("fake_") else nullcontext():
        yield name.removeprefix("fake_")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RuntimeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", REFUSALS + FIRST_OF_TWO, ids=lambda case: case.name)
def test_refusal(case: Refusal, source: str) -> None:
    with tensor_source(source) as device:
        x, w, b = case.tensors(device)
        text = refused(lambda: torch.ops.convt.conv_transpose2d(x, w, b, **case.arguments))
    assert text == PREFIX + case.text


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", REFUSALS[::5], ids=lambda case: case.name)
def test_refusal_of_the_operator_with_an_activation(case: Refusal, source: str) -> None:
    with tensor_source(source) as device:
        x, w, b = case.tensors(device)
        text = refused(lambda: torch.ops.convt.conv_transpose2d_act(x, w, b, **case.arguments, activation="relu"))
    assert text == PREFIX + case.text


@pytest.mark.parametrize("source", SOURCES)
def test_refusal_of_activations(source: str) -> None:
    """Even before the other arguments."""
    with tensor_source(source) as device:
        x, w = torch.zeros(2, 8, 5, 4, device=device), torch.zeros(8, 3, 3, 2, device=device)
        for activation, params, text in ACTIVATION_REFUSALS:
            for groups in (1, 3):
                got = refused(
                    lambda activation=activation, params=params, groups=groups: torch.ops.convt.conv_transpose2d_act(  # type: ignore[misc]
                        x, w, groups=groups, activation=activation, params=params
                    )
                )
                assert got == PREFIX + text


@pytest.mark.parametrize("case", REFUSALS[::3], ids=lambda case: case.name)
def test_refusal_through_the_function_and_autograd(case: Refusal, device: str) -> None:
    x, w, b = case.tensors(device)
    if x.is_floating_point():
        x.requires_grad_()
    assert refused(lambda: convt_ext.conv_transpose2d(x, w, b, **case.arguments)) == PREFIX + case.text


@pytest.mark.parametrize("case", REFUSALS[::3], ids=lambda case: case.name)
def test_plan_refuses_the_same(case: Refusal, device: str) -> None:
    x, w, b = case.tensors(device)
    assert refused(lambda: convt_ext.plan(x, w, b, **case.arguments)) == PREFIX + case.text


MIXED_DEVICES = (
    ("cpu", "meta", "cpu", "weight must be on the device of input (cpu), got meta"),
    ("meta", "cpu", "meta", "weight must be on the device of input (meta), got cpu"),
    ("cpu", "cpu", "meta", "bias must be on the device of input (cpu), got meta"),
    ("meta", "meta", "cpu", "bias must be on the device of input (meta), got cpu"),
)
MIXED_WITH_CUDA = (
    ("cuda:0", "cpu", "cuda:0", "weight must be on the device of input (cuda:0), got cpu"),
    ("cpu", "cuda:0", "cpu", "weight must be on the device of input (cpu), got cuda:0"),
    ("cuda:0", "cuda:0", "cpu", "bias must be on the device of input (cuda:0), got cpu"),
    ("cpu", "cpu", "cuda:0", "bias must be on the device of input (cpu), got cuda:0"),
)


@pytest.mark.parametrize(
    ("devices", "fake"),
    [
        *((mixed, False) for mixed in MIXED_DEVICES),
        *((mixed, True) for mixed in MIXED_WITH_CUDA),
        *(pytest.param(mixed, False, marks=NEEDS_CUDA) for mixed in MIXED_WITH_CUDA),
    ],
    ids=lambda value: "-".join(value[:3]) if isinstance(value, tuple) else ("fake" if value else "real"),
)
def test_mixed_devices(devices: tuple[str, str, str, str], fake: bool) -> None:
    *places, text = devices
    with FakeTensorMode() if fake else nullcontext():
        shapes = ((2, 8, 5, 4), (8, 3, 3, 2), (3,))
        tensors = [torch.zeros(shape, device=place) for shape, place in zip(shapes, places, strict=True)]
        assert refused(lambda: torch.ops.convt.conv_transpose2d(*tensors)) == PREFIX + text


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@pytest.mark.gpu
def test_two_gpus() -> None:
    x, w, b = REFUSALS[0].tensors("cuda:0")[0].new_zeros(2, 8, 5, 4), torch.zeros(8, 3, 3, 2, device="cuda:1"), None
    text = refused(lambda: torch.ops.convt.conv_transpose2d(x, w, b))
    assert text == PREFIX + "weight must be on the device of input (cuda:0), got cuda:1"


def test_refused_before_any_work(device: str) -> None:
    """No refusal allocates an output, calls another operator or launches a kernel."""
    op, activated = torch.ops.convt.conv_transpose2d, torch.ops.convt.conv_transpose2d_act
    calls = [(op, case.tensors(device), case.arguments) for case in REFUSALS]
    tensors = (torch.zeros(2, 8, 5, 4, device=device), torch.zeros(8, 3, 3, 2, device=device))
    calls += [(activated, (*tensors, None), {"activation": a, "params": p}) for a, p, _ in ACTIVATION_REFUSALS]
    if device == "cuda":
        torch.cuda.synchronize()
    with torch.profiler.profile() as profile:
        for called, given, arguments in calls:
            refused(lambda called=called, given=given, arguments=arguments: called(*given, **arguments))  # type: ignore[misc]
    events = {event.name for event in profile.events()}
    assert {name for name in events if "convt" in name}, "the profiler saw no call"
    assert not {name for name in events if name.startswith("aten::") or "kernel" in name.lower()}
