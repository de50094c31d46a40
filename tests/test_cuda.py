"""What only a GPU shows: streams, graphs, devices, memory, 64-bit sizes and the choice of kernel."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from reference import (
    CUDA_KERNELS,
    HALF_KERNELS,
    KERNEL_DTYPES,
    LAYOUTS,
    NEEDS_CUDA,
    ONE_PIXEL_KERNELS,
    TENSOR_CORE_KERNELS,
    TENSOR_CORE_PRECISIONS,
    Geometry,
    assert_accurate,
    assert_promised_strides,
    lacks_room,
    poison,
    skip_without_code_for,
    suited,
    takes,
    takes_precision,
    tf32_allowed,
)
from torch import Tensor

import convt_ext

pytestmark = list(NEEDS_CUDA)
kernels = pytest.mark.parametrize("kernel", CUDA_KERNELS)
all_kernels = pytest.mark.parametrize("kernel", KERNEL_DTYPES)

DCGAN = Geometry("dcgan", (4, 64, 16, 16), 32, (4, 4), stride=(2, 2), padding=(1, 1))
SMALL = Geometry("small", (2, 6, 5, 4), 9, (3, 3), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=3)


def dtype_of(kernel: str) -> torch.dtype:
    """float32 where the kernel takes it."""
    return torch.float32 if takes(kernel, torch.float32) else torch.float16


@pytest.fixture
def forced(kernel: str, monkeypatch: pytest.MonkeyPatch) -> str:
    skip_without_code_for(kernel)
    monkeypatch.setenv("CONVT_KERNEL", kernel)
    return kernel


def call(tensors: tuple[Tensor, Tensor, Tensor | None], geometry: Geometry) -> Tensor:
    return convt_ext.conv_transpose2d(*tensors, **geometry.arguments)


# ---------------------------------------------------------------- streams and graphs


@all_kernels
def test_graph_capture_and_replay(forced: str) -> None:
    """A captured call computes with what the inputs hold at each replay."""
    geometry = suited(DCGAN, forced)
    x, w, b = geometry.tensors(dtype_of(forced), "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call((x, w, b), geometry)
    for seed in range(3):
        new_x, new_w, new_b = geometry.tensors(dtype_of(forced), "cuda", seed)
        for held, new in zip((x, w, b), (new_x, new_w, new_b), strict=True):
            assert held is not None
            assert new is not None
            held.copy_(new)
        out.fill_(float("nan"))
        graph.replay()
        assert_accurate(out, x, w, b, forced, **geometry.arguments)


@all_kernels
def test_first_call_of_a_shape_can_be_captured(forced: str) -> None:
    """No warm-up is needed: nothing is allocated outside of the graph's pool or synchronised by a plan's first use."""
    geometry = suited(Geometry("never_seen", (3, 7, 11, 13), 5, (3, 5), stride=(2, 1)), forced)
    dtype = torch.float16 if takes(forced, torch.float16) else torch.float32
    x, w, b = geometry.tensors(dtype, "cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call((x, w, b), geometry)
    graph.replay()
    assert_accurate(out, x, w, b, **geometry.arguments)


@all_kernels
def test_side_stream(forced: str) -> None:
    """The kernel runs on the current stream, after what that stream has been given before."""
    geometry = suited(DCGAN, forced)
    x, w, b = geometry.tensors(dtype_of(forced), "cuda")
    expected = call((x, w, b), geometry)
    stream = torch.cuda.Stream()
    held = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        held.copy_(x)
        out = call((held, w, b), geometry)
        copy = out.clone()
    assert not stream.query(), "the call waited for the stream"
    stream.synchronize()
    assert torch.equal(copy, expected)


@all_kernels
def test_calls_wait_for_the_calls_before(forced: str) -> None:
    """Without a gap between calls, none reads what is still being written, or writes over what is still read."""
    geometry = suited(Geometry("grows", (16, 8, 64, 64), 8, (4, 4), stride=(2, 2), padding=(1, 1)), forced)
    x, w, _ = geometry.tensors(dtype_of(forced), "cuda")
    w *= x.std() / call((x, w, None), geometry).std()  # so that numbers neither grow nor fade

    def chain(between: Callable[[], None]) -> Tensor:
        """Each call's input is a part of the output of the call before, and its output lies where another one lay."""
        held = x
        for _ in range(20):
            held = call((held.flatten()[: x.numel()].view_as(x), w, None), geometry)
            between()
        return held

    expected = chain(torch.cuda.synchronize)
    assert expected.isfinite().all()
    for _ in range(5):
        assert torch.equal(chain(lambda: None), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(lambda: None)
    for _ in range(5):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)


def test_several_streams_at_once() -> None:
    streams = [torch.cuda.Stream() for _ in range(4)]
    cases = [DCGAN.tensors(torch.float16, "cuda", seed) for seed in range(4)]
    expected = [call(tensors, DCGAN) for tensors in cases]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[] for _ in streams]
    for _ in range(20):
        for stream, tensors, outputs in zip(streams, cases, results, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(call(tensors, DCGAN))
    torch.cuda.synchronize()
    for want, outputs in zip(expected, results, strict=True):
        assert all(torch.equal(out, want) for out in outputs)


@contextmanager
def synchronising_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@all_kernels
def test_no_synchronisation(forced: str) -> None:
    geometry = suited(DCGAN, forced)
    tensors = geometry.tensors(dtype_of(forced), "cuda")
    call(tensors, geometry)  # the first launch of a kernel loads its code, which may wait
    stream = torch.cuda.current_stream()
    torch.cuda.synchronize()
    with synchronising_is_an_error():
        torch.cuda._sleep(200_000_000)
        call(tensors, geometry)
        assert not stream.query(), "the call waited for the GPU"
    torch.cuda.synchronize()


# ---------------------------------------------------------------- devices and memory


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@all_kernels
def test_second_device(forced: str) -> None:
    geometry = suited(SMALL, forced)
    x, w, b = geometry.tensors(dtype_of(forced), "cuda:1")
    assert torch.cuda.current_device() == 0
    out = call((x, w, b), geometry)
    assert out.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_accurate(out, x, w, b, forced, **geometry.arguments)
    with torch.cuda.device(1):
        first = geometry.tensors(dtype_of(forced), "cuda:0")
        assert_accurate(call(first, geometry), *first, forced, **geometry.arguments)
        assert torch.cuda.current_device() == 1


@kernels
def test_memory_is_the_output_alone(forced: str) -> None:
    """A call allocates its output and keeps nothing, call after call."""
    tensors = DCGAN.tensors(torch.float32, "cuda")
    out = call(tensors, DCGAN)
    size = out.numel() * out.element_size()
    del out
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(500):
        call(tensors, DCGAN)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before <= 2 * size


def test_a_refused_call_leaves_the_gpu_usable() -> None:
    x, w, b = SMALL.tensors(torch.float32, "cuda")
    allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        with pytest.raises(RuntimeError, match="groups must divide"):
            convt_ext.conv_transpose2d(x, w, b, groups=4)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocations
    assert_accurate(call((x, w, b), SMALL), x, w, b, **SMALL.arguments)


# ---------------------------------------------------------------- the choice of kernel


@kernels
def test_forced_kernel_is_the_one_that_runs(forced: str) -> None:
    tensors = DCGAN.tensors(torch.float16, "cuda")
    assert convt_ext.plan(*tensors, **DCGAN.arguments).split()[0] == forced
    call(tensors, DCGAN)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(tensors, DCGAN)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert [name for name in names if forced in name], names
    assert not [name for name in names for other in CUDA_KERNELS if other != forced and other in name], names


def test_unknown_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = SMALL.tensors(torch.float32, "cuda")
    monkeypatch.setenv("CONVT_KERNEL", "fastest")
    for function in (convt_ext.conv_transpose2d, convt_ext.plan):
        with pytest.raises(
            RuntimeError,
            match=r"CONVT_KERNEL must be generic, depthwise, thin, thin_simt, .* or phase_gemm, got fastest",
        ):
            function(*tensors, **SMALL.arguments)


@pytest.mark.parametrize(
    ("kernel", "geometry", "dtype", "reason"),
    [
        ("tile_simt", SMALL, torch.float64, "float64"),
        ("tile_simt", Geometry("taps", (1, 8, 3, 3), 8, (16, 65)), torch.float32, "taps"),
        ("tile_simt", Geometry("stride", (1, 8, 1, 2), 8, (1, 1), stride=(1, 1000)), torch.float32, "stride"),
        ("depthwise", SMALL, torch.float64, "float64"),
        ("col2im", SMALL, torch.float64, "float64"),
        ("implicit_gemm", SMALL, torch.float64, "float64"),
        ("pixel_gemm", SMALL, torch.float64, "float64"),
        ("depthwise", Geometry("far", (1, 1, 1, 2), 1, (1, 1), stride=(1, 10000)), torch.float32, "stride"),
    ],
    ids=[
        "simt-float64",
        "simt-taps",
        "simt-stride",
        "depthwise-float64",
        "col2im-float64",
        "implicit-gemm-float64",
        "pixel-gemm-float64",
        "depthwise-stride",
    ],
)
def test_forced_kernel_that_cannot(
    kernel: str, geometry: Geometry, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forced kernel is refused by name; the plan's own choice computes the problem."""
    x, w, b = geometry.tensors(dtype, "cuda")
    assert_accurate(call((x, w, b), geometry), x, w, b, **geometry.arguments)
    assert convt_ext.plan(x, w, b, **geometry.arguments).split()[0] == "generic"
    monkeypatch.setenv("CONVT_KERNEL", kernel)
    with pytest.raises(RuntimeError, match=f"CONVT_KERNEL={kernel} cannot compute this problem: .*{reason}"):
        call((x, w, b), geometry)


def test_one_pixel_kernel_refuses_larger_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along either axis."""
    monkeypatch.setenv("CONVT_KERNEL", "pixel_gemm")
    for size in ((2, 1), (1, 2)):
        geometry = Geometry("two_pixels", (2, 16, *size), 8, (4, 4), stride=(2, 2))
        with pytest.raises(RuntimeError, match=r"CONVT_KERNEL=pixel_gemm cannot .*: .* one pixel"):
            call(geometry.tensors(torch.float16, "cuda"), geometry)


def test_empty_switches_do_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = DCGAN.tensors(torch.float32, "cuda")
    chosen = convt_ext.plan(*tensors, **DCGAN.arguments)
    monkeypatch.setenv("CONVT_KERNEL", "")
    monkeypatch.setenv("CONVT_PRINT_PLAN", "0")
    assert convt_ext.plan(*tensors, **DCGAN.arguments) == chosen
    call(tensors, DCGAN)
    assert capfd.readouterr().err == ""


@all_kernels
def test_print_plan(forced: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    geometry = suited(DCGAN, forced)
    tensors = geometry.tensors(dtype_of(forced), "cuda")
    call(tensors, geometry)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("CONVT_PRINT_PLAN", "1")
    call(tensors, geometry)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert convt_ext.plan(*tensors, **geometry.arguments) in printed.err
    assert re.search(rf"\b{forced}\b", printed.err)


def test_empty_batch_launches_nothing() -> None:
    x, w = torch.empty(0, 4, 5, 5, device="cuda"), torch.ones(4, 3, 3, 3, device="cuda")
    assert convt_ext.plan(x, w).split()[0] == "none"
    assert convt_ext.conv_transpose2d(x, w).shape == (0, 3, 7, 7)


# ---------------------------------------------------------------- more than 2^31 elements

GIB = 2**30


def free_memory() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def random_large(shape: tuple[int, ...], channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=torch.float16, device="cuda", memory_format=memory_format).normal_()


def check_images(
    out: Tensor, x: Tensor, w: Tensor, geometry: Geometry, rows: slice, out_rows: slice, skip: int
) -> None:
    """Compares output rows with the reference of the input rows that reach them; `skip` trims the cut edges."""
    part = x[:, :, rows].contiguous()
    actual = out[:, :, out_rows].contiguous()
    expected = torch.nn.functional.conv_transpose2d(part.double().cpu(), w.double().cpu(), **geometry.arguments)
    magnitude = torch.nn.functional.conv_transpose2d(
        part.double().cpu().abs(), w.double().cpu().abs(), **geometry.arguments
    )
    expected, magnitude = (t[:, :, skip : skip + actual.shape[2]] for t in (expected, magnitude))
    error = (actual.double().cpu() - expected).abs()
    assert (error <= 2**-11 * 1.01 * expected.abs() + 1e-6 * magnitude + 1e-7).all()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@kernels
def test_output_of_more_than_2_31_elements(forced: str, channels_last: bool) -> None:
    """One image, whose last rows lie beyond 2^31 elements in either layout."""
    geometry = Geometry("large_output", (1, 2, 16400, 16390), 2, (2, 2), stride=(2, 2), bias=False)
    if free_memory() < 12 * GIB:
        pytest.skip("needs 12 GiB of free GPU memory")
    x, w = random_large(geometry.input, channels_last), torch.randn(geometry.weight, device="cuda").half()
    out = convt_ext.conv_transpose2d(x, w, **geometry.arguments)
    assert out.numel() > 2**31
    assert tuple(out.shape) == geometry.output
    assert_promised_strides(out, x)
    for row in (0, 8192, 16380):
        check_images(out, x, w, geometry, slice(row, row + 20), slice(2 * row, 2 * row + 40), 0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@kernels
def test_input_of_more_than_2_31_elements(forced: str, channels_last: bool) -> None:
    """Many channels into one: the sum runs over all of the input."""
    geometry = Geometry("large_input", (1, 8, 16400, 16390), 1, (3, 1), padding=(1, 0), bias=False)
    if free_memory() < 12 * GIB:
        pytest.skip("needs 12 GiB of free GPU memory")
    x, w = random_large(geometry.input, channels_last), torch.randn(geometry.weight, device="cuda").half()
    assert x.numel() > 2**31
    out = convt_ext.conv_transpose2d(x, w, **geometry.arguments)
    for row in (1, 8192, 16370):
        check_images(out, x, w, geometry, slice(row - 1, row + 21), slice(row, row + 20), 1)


@kernels
def test_strides_of_more_than_2_31_elements(forced: str) -> None:
    """A small input whose second image lies far from its first."""
    if free_memory() < 12 * GIB:
        pytest.skip("needs 12 GiB of free GPU memory")
    geometry = Geometry("far", (2, 3, 5, 4), 4, (3, 3), stride=(2, 2))
    storage = torch.zeros(2**31 + 4096, dtype=torch.float16, device="cuda")
    x, w, b = geometry.tensors(torch.float16, "cuda")
    far = storage.as_strided(geometry.input, (2**31 + 64, 20, 4, 1))
    far.copy_(x)
    assert_accurate(call((far, w, b), geometry), far, w, b, **geometry.arguments)


# ---------------------------------------------------------------- for compute-sanitizer

SANITIZED = (
    Geometry("odd", (3, 5, 7, 9), 7, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    Geometry("all_arguments", (2, 6, 5, 7), 33, (3, 2), (4, 3), (2, 1), (3, 2), (2, 2), groups=3),
    Geometry("two_steps", (5, 70, 2, 3), 65, (4, 4), stride=(2, 2), padding=(1, 1)),
    Geometry("vectors", (2, 12, 9, 10), 12, (4, 4), stride=(2, 2), padding=(1, 1), groups=12),
    Geometry("rolling", (2, 6, 9, 12), 12, (4, 4), stride=(2, 2), padding=(1, 1), groups=6),
    Geometry("rolling_cropped", (2, 5, 7, 14), 5, (3, 3), padding=(2, 0), groups=5),
    Geometry("folded", (2, 9, 5, 6), 7, (4, 8), stride=(2, 4)),
    Geometry("folded_odd", (3, 16, 1, 9), 6, (1, 16), stride=(1, 8), padding=(0, 4), output_padding=(0, 4)),
    Geometry("pairs", (2, 17, 7, 45), 20, (3, 4), padding=(1, 2)),
    Geometry("odd_taps", (2, 20, 5, 6), 24, (3, 3), stride=(2, 2), padding=(1, 1)),
)


def check_small_problems(layout: str, dtype: torch.dtype, kernel: str) -> None:
    for geometry in (suited(each, kernel) for each in SANITIZED):
        if min(geometry.output) < 1:  # padding crops all that one pixel reaches
            continue
        x, w, b = geometry.tensors(dtype, "cuda")
        x = LAYOUTS[layout](x)
        if lacks_room(kernel, x, w, b, **geometry.arguments):
            continue
        poison(geometry.output, dtype, "cuda")
        out = call((x, w, b), geometry)
        assert_accurate(out, x, w, b, geometry.name, **geometry.arguments)


@pytest.mark.sanitize
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("kernel", "dtype"), [(kernel, dtype) for kernel in CUDA_KERNELS for dtype in KERNEL_DTYPES[kernel]], ids=str
)
def test_small_problems(forced: str, layout: str, dtype: torch.dtype) -> None:
    """Every kernel, dtype and layout on odd sizes: what runs under compute-sanitizer."""
    check_small_problems(layout, dtype, forced)


@pytest.mark.sanitize
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("kernel", "precision"),
    [
        (kernel, precision)
        for kernel in (*TENSOR_CORE_KERNELS, *HALF_KERNELS, *ONE_PIXEL_KERNELS)
        for precision in TENSOR_CORE_PRECISIONS
        if takes_precision(kernel, precision)
    ],
)
def test_small_problems_on_tensor_cores(forced: str, layout: str, precision: str) -> None:
    with tf32_allowed(precision == "tf32"):
        check_small_problems(layout, TENSOR_CORE_PRECISIONS[precision], forced)
