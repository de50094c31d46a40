"""``python -m convt_ext bench``: times transposed convolutions in both memory layouts, ours beside PyTorch's.

Of one layer whose sizes are given, or of each that a model calls. On a GPU the times are those of replayed CUDA graphs,
and cuDNN runs with ``benchmark=True``. Where a layer fits in the L2 cache its buffers rotate, so that none is still in
it when its turn comes again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import functional
from ._layers import DTYPES, LAYOUTS, Found, Layer, Search, dtype_name, find
from ._library import library_info
from ._timing import Timing, rotation, time_graph, time_wall
from .doctor import environment

FORMAT = 1  # of the JSON file
LAYOUT_TITLES = {"nchw": "NCHW", "nhwc": "channels_last"}
PLOT_FORMATS = (".png", ".svg", ".pdf")
# Of ||ours - PyTorch's|| / ||PyTorch's||: several times what two correct sums in each precision differ by.
_TOLERANCES = {"fp16": 4e-3, "bf16": 3e-2, "tf32": 4e-3, "ieee": 1e-5, "fp64": 1e-12}
_GEOMETRY = ("out_channels", "kernel", "stride", "padding", "output_padding", "dilation", "groups", "bias")


@dataclass
class Row:
    """One layer in one layout. Times are microseconds per call; None is "not measured", and `faults` says why."""

    layout: str  # a name in LAYOUTS
    kernel: str = ""  # the plan line of ours
    ours_us: float | None = None  # median
    ours_range_us: tuple[float, float] | None = None  # fastest and slowest sample
    pytorch_us: float | None = None
    pytorch_range_us: tuple[float, float] | None = None
    difference: float | None = None  # ||ours - PyTorch's|| / ||PyTorch's||
    buffers: int = 1  # sets of tensors that the timed calls rotate through
    faults: list[str] = field(default_factory=list)

    @property
    def speedup(self) -> float | None:
        """PyTorch's time over ours, in this layout."""
        return None if self.ours_us is None or self.pytorch_us is None else self.pytorch_us / self.ours_us


@dataclass
class Result:
    """A layer and its rows, one for each layout."""

    found: Found
    rows: list[Row]


Progress = Callable[[str], None]


def measure(
    layer: Layer, device: torch.device, budget_ms: float = 60.0, progress: Progress = lambda what: None
) -> list[Row]:
    """Compares the results of a layer, then times it, ours and PyTorch's, in each layout.

    Args:
        layer: what to compute.
        device: where; on the CPU the times are wall times.
        budget_ms: time for the samples of one measurement, of which there are at least three.
        progress: called with the name of each measurement before it.

    Returns:
        A row for each layout. What fails, a lack of memory for one, is noted in it.
    """
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        # Streams and graphs are those of the current device.
        with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return [_measure(layer, layout, device, budget_ms, progress) for layout in LAYOUTS]
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _measure(layer: Layer, layout: str, device: torch.device, budget_ms: float, progress: Progress) -> Row:
    row = Row(layout)

    def timing(calls: Sequence[Callable[[], Tensor]]) -> tuple[float, tuple[float, float]]:
        found: Timing = time_graph(calls, budget_ms) if device.type == "cuda" else time_wall(calls, budget_ms)
        return found.median_us, (found.min_us, found.max_us)

    with _recording(row.faults, "the set-up"):
        first = layer.tensors(device, layout)
        row.kernel = functional.plan(*_in_two_dimensions(layer, *first))
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        size = sum(tensor.nbytes for tensor in first if tensor is not None)
        size += math.prod(layer.output()) * layer.dtype.itemsize
        row.buffers = rotation(size, l2_bytes) if l2_bytes else 1
        sets = [first, *(layer.tensors(device, layout) for _ in range(row.buffers - 1))]
        ours, pytorch = (
            [partial(operator, *tensors, *layer.arguments) for tensors in sets]
            for operator in (layer.ours, layer.torchs)
        )
        progress(f"{LAYOUT_TITLES[layout]}: comparing results")
        with _recording(row.faults, "the comparison"):
            row.difference = _difference(ours[0](), pytorch[0]())
            limit = _TOLERANCES[_precision(layer, device)]
            if not row.difference <= limit:
                row.faults.append(f"the results differ by {row.difference:.1e}, expected at most {limit:.0e}")
        progress(f"{LAYOUT_TITLES[layout]}: timing PyTorch")
        with _recording(row.faults, "PyTorch"):
            row.pytorch_us, row.pytorch_range_us = timing(pytorch)
        progress(f"{LAYOUT_TITLES[layout]}: timing convt_ext")
        with _recording(row.faults, "convt_ext"):
            row.ours_us, row.ours_range_us = timing(ours)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def _in_two_dimensions(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """Arguments of the plan, which knows images only: those of one dimension are one pixel high."""
    if x.dim() == 4:
        return x, weight, bias, *layer.arguments
    (stride,), (padding,), (output_padding,), groups, (dilation,) = layer.arguments
    geometry = (1, stride), (0, padding), (0, output_padding), groups, (1, dilation)
    return x.unsqueeze(-2), weight.unsqueeze(-2), bias, *geometry


def _difference(ours: Tensor, pytorch: Tensor) -> float:
    wide = torch.float64 if ours.dtype == torch.float64 else torch.float32
    norm = float(torch.linalg.vector_norm(pytorch, dtype=wide))
    difference = float(torch.linalg.vector_norm(ours.to(wide) - pytorch.to(wide)))
    return difference / norm if norm else difference


def _precision(layer: Layer, device: torch.device) -> str:
    """What the sums are computed in: a name in _TOLERANCES."""
    if layer.dtype == torch.float32:
        return library_info()["fp32"] if device.type == "cuda" else "ieee"
    return next(name for name, dtype in DTYPES.items() if dtype == layer.dtype)


@contextmanager
def _recording(faults: list[str], what: str) -> Iterator[None]:
    """Turns a refusal or a lack of memory into a message."""
    try:
        yield
    except RuntimeError as error:
        faults.append(f"{what}: {str(error).splitlines()[0]}")


# ---------------------------------------------------------------- models


def load_model(name: str) -> tuple[nn.Module, tuple[Any, ...] | None]:
    """The model that "module:callable" names, and its inputs where the callable returns them too.

    The callable takes no arguments. It returns a module, or a module and its input: a tensor, or a tuple of arguments.
    A module itself may stand in its place.

    Raises:
        ValueError: there is no such module or callable, or it returns something else.
    """
    module_name, separator, attribute = name.partition(":")
    if not (module_name and separator and attribute):
        example = "torchvision.models.segmentation:fcn_resnet50"
        raise ValueError(f"got {name!r}, expected module:callable, such as {example}")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise ValueError(f"no module named {error.name}; the current folder and PYTHONPATH are searched") from None
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ValueError(f"{module_name} has no {attribute}")
        value = getattr(value, part)
    if not isinstance(value, nn.Module):
        if not callable(value):
            raise ValueError(f"{name} must be callable, got {type(value).__name__}")
        value = value()
    model, inputs = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, or one and its input, got {type(value).__name__}")
    return model, inputs if inputs is None or isinstance(inputs, tuple) else (inputs,)


def layers_of(
    model: nn.Module, inputs: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None = None
) -> Search:
    """Runs the model in eval mode on the device, in `dtype` if it is given, and returns what it called."""

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else None)

    return find(model.eval().to(device, dtype), *map(cast, inputs))


def random_inputs(shapes: Sequence[tuple[int, ...]], model: nn.Module) -> tuple[Tensor, ...]:
    """Inputs of these shapes in the dtype of the model's parameters."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


# ---------------------------------------------------------------- what is printed and written


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(results: Sequence[Result]) -> str:
    """The results as text. A layout with * is one that the model calls the layer in."""
    lines = [
        f"{'layout':15} {'convt_ext us':>12} {'PyTorch us':>12} {'speed-up':>9} {'difference':>11}  kernel",
    ]
    for result in results:
        names = result.found.names
        if names:
            counts = {name or "the model itself": names.count(name) for name in names}
            called = ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in counts.items())
            lines += ["", f"{called}: {result.found.layer}"]
        for row in result.rows:
            title = LAYOUT_TITLES[row.layout] + (" *" if row.layout in result.found.layouts else "")
            lines.append(
                f"{title:15} {_cell(row.ours_us, '.1f'):>12} {_cell(row.pytorch_us, '.1f'):>12}"
                f" {_cell(row.speedup, '.2f') + 'x' if row.speedup else '-':>9} {_cell(row.difference, '.1e'):>11}"
                f"  {row.kernel.split(' ')[0]}"
            )
            lines += [f"    {fault}" for fault in row.faults]
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> list[str]:
    """Lines on all layers together: the time of a run in each layout, and in the faster one of each library."""
    totals: dict[str, tuple[float, float]] = {}
    for index, layout in enumerate(LAYOUTS):
        times = [(len(r.found.names) or 1, r.rows[index].ours_us, r.rows[index].pytorch_us) for r in results]
        if times and all(ours is not None and pytorch is not None for _, ours, pytorch in times):
            totals[layout] = (
                sum(calls * (ours or 0.0) for calls, ours, _ in times),
                sum(calls * (pytorch or 0.0) for calls, _, pytorch in times),
            )
    lines = []
    if any(result.found.names for result in results):
        for layout, (ours, pytorch) in totals.items():
            lines.append(
                f"all calls of a run in {LAYOUT_TITLES[layout]}: convt_ext {ours:.1f} us, PyTorch {pytorch:.1f} us"
                f" ({pytorch / ours:.2f}x)"
            )
    if len(totals) == len(LAYOUTS):
        best = [min(times) for times in zip(*totals.values(), strict=True)]
        lines.append(f"each library in its better layout: {best[1] / best[0]:.2f}x")
    return lines


def as_json(results: Sequence[Result], left: dict[str, str], meta: dict[str, Any]) -> str:
    """The file of --json: all that was measured, and on what."""
    layers = []
    for result in results:
        layer = asdict(result.found.layer) | {"dtype": dtype_name(result.found.layer.dtype)}
        rows = [asdict(row) | {"speedup": row.speedup} for row in result.rows]
        layers.append({"names": result.found.names, "layouts": result.found.layouts, **layer, "rows": rows})
    return json.dumps({"format": FORMAT, "meta": meta, "layers": layers, "left": left}, indent=1) + "\n"


# ---------------------------------------------------------------- the command line


def _ints(least: int, counts: Sequence[int]) -> Callable[[str], tuple[int, ...]]:
    """An argument type: so many ints, none below `least`, separated by commas."""
    number = " or ".join(map(str, counts))
    expected = f"expected {number} {'int' if counts == (1,) else 'ints separated by commas'}, at least {least}"

    def parse(text: str) -> tuple[int, ...]:
        try:
            values = tuple(map(int, text.split(",")))
        except ValueError:
            values = ()
        if len(values) not in counts or min(values) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, {expected}")
        return values

    return parse


def _shape(text: str) -> tuple[int, ...]:
    return _ints(1, range(1, 9))(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``bench``."""
    add = parser.add_argument
    add(
        "--input",
        type=_shape,
        action="append",
        metavar="N,Cin,H,W",
        help="sizes of the input; N,Cin,L in one dimension. With --model: of the model's input, once for each",
    )
    pair = _ints(0, (1, 2))
    add("--out-channels", type=_ints(1, (1,)), metavar="Cout")
    add("--kernel", type=_ints(1, (1, 2)), metavar="K[,K]", help="height and width of the filter")
    add("--stride", type=_ints(1, (1, 2)), metavar="S[,S]", help="default: 1")
    add("--padding", type=pair, metavar="P[,P]", help="default: 0")
    add("--output-padding", type=pair, metavar="P[,P]", help="default: 0")
    add("--dilation", type=_ints(1, (1, 2)), metavar="D[,D]", help="default: 1")
    add("--groups", type=_ints(1, (1,)), metavar="G", help="default: 1")
    add("--bias", action="store_true", help="add a bias")
    add(
        "--model",
        metavar="MODULE:CALLABLE",
        help="time each transposed convolution of the model that the callable returns; it may return the model's input"
        " too, in a tuple (model, input)",
    )
    add("--dtype", choices=list(DTYPES), help="default: fp32, or what the model has")
    add("--ieee", action="store_true", help="float32 in IEEE arithmetic, in both libraries (default: as torch is set)")
    add("--device", default="cuda", help="default: cuda")
    add("--budget-ms", type=_positive, default=60.0, help="time for the samples of one measurement (default: 60)")
    add("--json", type=Path, metavar="FILE", help="write the results to a file")
    add("--plot", type=Path, metavar="FILE", help=f"draw the results: {', '.join(PLOT_FORMATS)}; needs matplotlib")


def _layer(options: argparse.Namespace) -> Layer:
    """The layer of the command line; ValueError where it is none."""
    missing = [name for name in ("input", "out_channels", "kernel") if getattr(options, name) is None]
    if missing:
        raise ValueError(f"{', '.join(map(_option, missing))} missing: give a layer's sizes, or a --model")
    sizes = options.input[-1]
    if len(options.input) > 1 or len(sizes) not in (3, 4):
        given = " and ".join(",".join(map(str, shape)) for shape in options.input)
        raise ValueError(f"--input: got {given}, expected N,Cin,H,W, or N,Cin,L for one dimension")
    axes = len(sizes) - 2

    def each_axis(name: str, default: int) -> tuple[int, ...]:
        values: tuple[int, ...] = getattr(options, name) or (default,)
        if len(values) > axes:
            given = ",".join(map(str, values))
            raise ValueError(f"{_option(name)}: got {given}, expected one int for an input of one dimension")
        return values * (axes // len(values))

    (out_channels,), (groups,) = options.out_channels, options.groups or (1,)
    if sizes[1] % groups or out_channels % groups:
        raise ValueError(
            f"--groups: got {groups}, expected a divisor of the input's channels ({sizes[1]}) and of"
            f" --out-channels ({out_channels})"
        )
    layer = Layer(
        sizes,
        (sizes[1], out_channels // groups, *each_axis("kernel", 1)),
        options.bias,
        each_axis("stride", 1),
        each_axis("padding", 0),
        each_axis("output_padding", 0),
        groups,
        each_axis("dilation", 1),
        DTYPES[options.dtype or "fp32"],
    )
    try:
        layer.output()
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return layer


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _device(name: str) -> torch.device:
    """The device of that name; ValueError where nothing can be timed on it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: got {name!r}, expected cuda, cuda:N or cpu") from None
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"--device: got {name!r}, expected cuda, cuda:N or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "torch sees no GPU. On the CPU the operator is PyTorch's own, and there is nothing to compare;"
            " --device cpu times it all the same"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: got {name!r}, torch sees {torch.cuda.device_count()} GPUs")
    return device


def _check_files(options: argparse.Namespace) -> None:
    """Raises ValueError for files that could not be written, before anything is measured."""
    for name in ("json", "plot"):
        path: Path | None = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"--{name}: there is no folder {path.absolute().parent}")
        if path is not None and path.is_dir():
            raise ValueError(f"--{name}: {path} is a folder, expected the name of a file")
    if options.plot is None:
        return
    if options.plot.suffix.lower() not in PLOT_FORMATS:
        raise ValueError(f"--plot: got {options.plot}, expected a name that ends in {', '.join(PLOT_FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install matplotlib, or convt_ext[plot]")


def _search(options: argparse.Namespace, device: torch.device) -> Search:
    """The layers to time: that of the command line, or those of the model."""
    if options.model is None:
        return Search([Found(_layer(options))])
    needless = [name for name in _GEOMETRY if getattr(options, name)]
    if needless:
        raise ValueError(f"{', '.join(map(_option, needless))}: a --model says this by itself")
    try:
        model, inputs = load_model(options.model)
    except ValueError as error:
        raise ValueError(f"--model: {error}") from None
    if options.input is not None:
        inputs = random_inputs(options.input, model)
    if inputs is None:
        raise ValueError(f"--model: {options.model} returns no input for the model: give its sizes with --input")
    search = layers_of(model, inputs, device, DTYPES[options.dtype] if options.dtype else None)
    del model
    if not search.found:
        reasons = "; ".join(f"{name or 'the model itself'}: {reason}" for name, reason in search.left.items())
        what = f"no transposed convolution that can be timed ({reasons})" if reasons else "no transposed convolution"
        raise ValueError(f"--model: {options.model} called {what}")
    return search


def _show_progress(where: str, what: str) -> None:
    print(where + what, file=sys.stderr, flush=True)


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Runs the command. Returns 1 if a result is wrong or missing, else 0; leaves through `parser` if asked wrongly."""

    def refuse(error: ValueError) -> NoReturn:
        parser.error(str(error))

    try:
        device = _device(options.device)
        _check_files(options)
        if options.ieee:
            torch.backends.cudnn.allow_tf32 = False
        search = _search(options, device)
    except ValueError as error:
        refuse(error)
    meta = environment(device) | {"budget_ms": options.budget_ms, "forced_kernel": os.environ.get("CONVT_KERNEL")}
    print(f"convt_ext {meta['version']} on {meta['device']}, torch {meta['torch']}, cuDNN {meta['cudnn']}")
    if device.type == "cuda":
        print("GPU time per call from replayed CUDA graphs, median")
    else:
        print("Wall time per call of the CPU, median. Both run PyTorch's own operator there: differences are noise")
    if meta["forced_kernel"]:
        print(f"CONVT_KERNEL is set: {meta['forced_kernel']} runs instead of the kernel that would be chosen")
    if options.model is None:
        print(search.found[0].layer)
    if any(found.layer.dtype == torch.float32 for found in search.found):
        print(f"float32 in {'IEEE' if device.type == 'cpu' else library_info()['fp32'].upper()}")
    results = []
    for number, found in enumerate(search.found, 1):
        where = f"[{number}/{len(search.found)}] " + (f"{found.names[0]} " if found.names else "")
        rows = measure(found.layer, device, options.budget_ms, partial(_show_progress, where))
        results.append(Result(found, rows))
    print()
    print(table(results))
    for name, reason in search.left.items():
        print(f"{name or 'the model itself'} was not timed: {reason}")
    print()
    print("\n".join(summary(results)))
    if options.json is not None:
        options.json.write_text(as_json(results, search.left, meta), encoding="utf-8")
    if options.plot is not None:
        from ._plot import draw

        draw(results, meta, options.plot)
    return 1 if any(row.faults for result in results for row in result.rows) else 0
