"""`python -m convt_ext bench`: which layers it times, what it prints and writes, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run
from reference import NEEDS_CUDA
from torch import nn

import convt_ext
from convt_ext import __main__ as program
from convt_ext import _layers, bench
from convt_ext._layers import Layer

LAYER = ("--input", "2,6,5,4", "--out-channels", "4", "--kernel", "3", "--stride", "2")
QUICK = ("--budget-ms", "0.1")


class Net(nn.Module):
    """Every way to call a transposed convolution: modules of both libraries, functions, in one to three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.ConvTranspose2d(6, 4, 4, 2, 1), convt_ext.ConvTranspose2d(4, 4, (3, 1), groups=2))
        self.twice = nn.ConvTranspose2d(4, 4, 1, bias=False)
        self.deep = nn.ConvTranspose3d(4, 4, 1)
        self.weight = nn.Parameter(torch.randn(4, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        y = self.twice(self.twice(y).contiguous(memory_format=torch.channels_last))
        y = self.deep(y.unsqueeze(2)).squeeze(2)
        return nn.functional.conv_transpose1d(y.flatten(2), self.weight, stride=3, output_padding=1)


def net_with_input() -> tuple[nn.Module, torch.Tensor]:
    return Net(), torch.randn(2, 6, 5, 4)


def no_layers() -> nn.Module:
    return nn.Conv2d(6, 4, 3)


def only_deep() -> tuple[nn.Module, torch.Tensor]:
    return nn.ConvTranspose3d(4, 4, 1), torch.randn(1, 4, 2, 2, 2)


def no_model() -> int:
    return 3


A_NUMBER = 3


def layer(**changes: Any) -> Layer:
    values: dict[str, Any] = {
        "input": (2, 6, 5, 4),
        "weight": (6, 4, 3, 3),
        "bias": False,
        "stride": (2, 2),
        "padding": (0, 0),
        "output_padding": (0, 0),
        "groups": 1,
        "dilation": (1, 1),
        "dtype": torch.float32,
    }
    return Layer(**(values | changes))


def test_find_sees_every_call() -> None:
    model, x = net_with_input()
    search = _layers.find(model, x)
    up = layer(weight=(6, 4, 4, 4), bias=True, padding=(1, 1))
    inner = layer(input=(2, 4, 10, 8), weight=(4, 2, 3, 1), bias=True, stride=(1, 1), groups=2)
    twice = layer(input=(2, 4, 12, 8), weight=(4, 4, 1, 1), stride=(1, 1))
    flat = layer(
        input=(2, 4, 96),
        weight=(4, 2, 3),
        stride=(3,),
        padding=(0,),
        output_padding=(1,),
        dilation=(1,),
    )
    assert [found.layer for found in search.found] == [up, inner, twice, flat]
    assert [found.names for found in search.found] == [["up.0"], ["up.1"], ["twice", "twice"], [""]]
    assert [found.layouts for found in search.found][:3] == [["nchw"], ["nchw"], ["nchw", "nhwc"]]
    assert search.left == {"deep": "it has three dimensions"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_find_sees_converted_scripted_and_inference_models() -> None:
    model, x = net_with_input()
    expected = [found.layer for found in _layers.find(model, x).found]
    scripted = torch.jit.script(model)
    assert [found.layer for found in _layers.find(scripted, x).found] == expected

    class Inference(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return model(x)

    assert [found.layer for found in _layers.find(Inference(), x).found] == expected
    # The package's one-dimensional layers are images one pixel high.
    converted = convt_ext.convert(nn.Sequential(nn.ConvTranspose1d(4, 2, 3, stride=3)))
    (found,) = _layers.find(converted, torch.randn(2, 4, 96)).found
    assert (found.layer.input, found.layer.weight, found.layer.stride) == ((2, 4, 1, 96), (4, 2, 1, 3), (1, 3))


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = Net()
    with pytest.raises(RuntimeError):
        _layers.find(model, torch.randn(2, 5, 5, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("sizes", [(2, 6, 5, 4), (2, 6, 5)])
def test_layouts(sizes: tuple[int, ...], layout: str) -> None:
    x = _layers.in_layout(torch.randn(sizes), layout)
    assert tuple(x.shape) == sizes
    assert _layers.layout_of(x) == layout
    assert x.stride(1) == (1 if layout == "nhwc" else x[0, 0].numel())


def test_output_sizes_are_the_operators() -> None:
    assert layer().output() == (2, 4, 11, 9)
    flat = layer(input=(2, 6, 5), weight=(6, 4, 3), stride=(2,), padding=(0,), output_padding=(1,), dilation=(1,))
    assert flat.output() == (2, 4, 12)
    assert str(flat) == "input 2x6x5, weight 6x4x3, stride 2, output_padding 1, float32"


def call(*arguments: str, device: str = "cpu") -> int:
    return program.main(["bench", "--device", device, *QUICK, *arguments])


@pytest.fixture
def json_of(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def main(*arguments: str, device: str = "cpu") -> dict[str, Any]:
        assert call(*arguments, "--json", str(tmp_path / "bench.json"), device=device) == 0
        values: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
        return values

    return main


@pytest.mark.parametrize("dtype", list(_layers.DTYPES))
def test_a_layer(json_of: Callable[..., dict[str, Any]], dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = json_of(*LAYER, "--padding", "1,0", "--groups", "2", "--bias", "--dtype", dtype)
    (found,) = values["layers"]
    assert (found["input"], found["weight"], found["stride"]) == ([2, 6, 5, 4], [6, 2, 3, 3], [2, 2])
    assert (found["padding"], found["groups"], found["bias"]) == ([1, 0], 2, True)
    assert found["dtype"] == _layers.dtype_name(_layers.DTYPES[dtype])
    assert [row["layout"] for row in found["rows"]] == ["nchw", "nhwc"]
    for row in found["rows"]:
        assert row["kernel"] == "aten"
        assert row["ours_us"] > 0
        assert row["pytorch_us"] > 0
        assert row["speedup"] == pytest.approx(row["pytorch_us"] / row["ours_us"])
        assert row["difference"] <= 1e-6
        assert row["faults"] == []
    assert (values["meta"]["device"], values["meta"]["timer"]) == ("cpu", "wall")
    out, err = capsys.readouterr()
    assert "Both run PyTorch's own operator there" in out
    assert err.splitlines()[1:3] == ["[1/1] NCHW: timing PyTorch", "[1/1] NCHW: timing convt_ext"]


def test_a_layer_of_one_dimension(json_of: Callable[..., dict[str, Any]]) -> None:
    (found,) = json_of("--input", "2,6,50", "--out-channels", "4", "--kernel", "16", "--stride", "8")["layers"]
    assert (found["input"], found["weight"], found["stride"]) == ([2, 6, 50], [6, 4, 16], [8])
    assert all(row["speedup"] and not row["faults"] for row in found["rows"])


def test_a_model(json_of: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    values = json_of("--model", "test_bench:net_with_input")
    assert [found["names"] for found in values["layers"]] == [["up.0"], ["up.1"], ["twice", "twice"], [""]]
    assert values["left"] == {"deep": "it has three dimensions"}
    text = capsys.readouterr().out
    assert "up.0: input 2x6x5x4, weight 6x4x4x4, stride 2, padding 1, bias, float32" in text
    assert "twice (2 times): " in text
    assert "deep was not timed: it has three dimensions" in text
    ours = sum(len(found["names"]) * found["rows"][0]["ours_us"] for found in values["layers"])
    assert f"all calls of a run in NCHW: convt_ext {ours:.1f} us" in text


def test_a_models_input_and_dtype(json_of: Callable[..., dict[str, Any]]) -> None:
    values = json_of("--model", "test_bench:Net", "--input", "1,6,3,3", "--dtype", "fp64")
    assert values["layers"][0]["input"] == [1, 6, 3, 3]
    assert {found["dtype"] for found in values["layers"]} == {"float64"}


def test_wrong_results_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = _layers.conv_transpose2d
    monkeypatch.setattr(_layers, "conv_transpose2d", lambda *args: right(*args) * 1.01)
    assert call(*LAYER) == 1
    assert "the results differ by 1.0e-02, expected at most 1e-05" in capsys.readouterr().out


def test_a_failure_is_told_beside_the_other_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = _layers.conv_transpose2d

    def refuse(*arguments: Any) -> torch.Tensor:
        if arguments[0].device.type != "meta":
            raise RuntimeError("out of memory\nmore")
        return right(*arguments)

    monkeypatch.setattr(_layers, "conv_transpose2d", refuse)
    assert call(*LAYER) == 1
    text = capsys.readouterr().out
    assert "convt_ext: out of memory" in text
    assert "more" not in text
    (nchw,) = [line for line in text.splitlines() if line.startswith("NCHW")]
    ours, pytorch = nchw.split()[1:3]
    assert ours == "-"
    assert float(pytorch) > 0


def test_cudnns_search_is_on_only_while_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    right = _layers.conv_transpose2d

    def note(*arguments: Any) -> torch.Tensor:
        seen.append((torch.backends.cudnn.benchmark, torch.is_inference_mode_enabled()))
        return right(*arguments)

    monkeypatch.setattr(_layers, "conv_transpose2d", note)
    before = torch.backends.cudnn.benchmark
    bench.measure(layer(), torch.device("cpu"), 0.1)
    assert set(seen) == {(True, True)}
    assert torch.backends.cudnn.benchmark == before


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:], "big")


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; make test has it")
    assert call(*LAYER, "--plot", str(tmp_path / "layer.png")) == 0
    assert call("--model", "test_bench:net_with_input", "--plot", str(tmp_path / "model.png")) == 0
    layer_size, model_size = png_size(tmp_path / "layer.png"), png_size(tmp_path / "model.png")
    assert layer_size[0] == model_size[0] == 1200
    assert model_size[1] > 2 * layer_size[1]  # four layers instead of one


def test_plot_shows_the_times(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; make test has it")
    from convt_ext import _plot

    rows = [
        bench.Row("nchw", "generic", 12.3, None, 45.6, None),
        bench.Row("nhwc", "generic", None, None, 78.9, None),
    ]
    meta = {"timer": "graph", "device": "a GPU", "torch": "2", "cudnn": "9"}
    # An SVG with its texts as texts.
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        _plot.draw([bench.Result(_layers.Found(layer()), rows)], meta, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for part in ("12.3", "45.6", "78.9", "not measured", "channels_last", "a GPU", "input 2x6x5x4", "on the GPU"):
        assert part in text


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_info:
        call(*LAYER, "--plot", "layer.png")
    assert exit_info.value.code == 2
    assert "--plot needs matplotlib: pip install matplotlib, or convt_ext[plot]" in capsys.readouterr().err


MODEL = "--model test_bench:"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--input, --out-channels, --kernel missing: give a layer's sizes, or a --model"),
        ("--input 1,4 --out-channels 4 --kernel 3", "--input: got 1,4, expected N,Cin,H,W, or N,Cin,L"),
        ("--input 1,4,5,5 --input 1,4,5,5 --out-channels 4 --kernel 3", "got 1,4,5,5 and 1,4,5,5, expected N,Cin,H,W"),
        ("--input 1,4,5,0 --out-channels 4 --kernel 3", "argument --input: got '1,4,5,0', expected"),
        ("--input 1,4,5,5 --out-channels 4,4 --kernel 3", "--out-channels: got '4,4', expected 1 int, at least 1"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3,x", "--kernel: got '3,x', expected 1 or 2 ints"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --stride 0", "--stride: got '0', expected 1 or 2 ints"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --padding -1", "--padding: got '-1', expected 1 or 2 ints"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --groups 3", "--groups: got 3, expected a divisor"),
        ("--input 1,4,5 --out-channels 4 --kernel 3,3", "--kernel: got 3,3, expected one int for an input of one"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --padding 9", "output size must be positive, got [-11, -11]"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --output-padding 1", "output_padding must be smaller"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --dtype fp8", "--dtype: invalid choice: 'fp8'"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --budget-ms 0", "got '0', expected a positive number"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --json nowhere/x.json", "--json: there is no folder"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --json .", "--json: . is a folder, expected the name of a file"),
        ("--input 1,4,5,5 --out-channels 4 --kernel 3 --plot x.gif", "expected a name that ends in .png, .svg, .pdf"),
        (f"{MODEL}Net --kernel 3 --bias", "--kernel, --bias: a --model says this by itself"),
        (f"{MODEL}Net", "test_bench:Net returns no input for the model: give its sizes with --input"),
        (f"{MODEL}no_layers --input 1,6,5,5", "test_bench:no_layers called no transposed convolution"),
        (f"{MODEL}only_deep", "called no transposed convolution that can be timed (the model itself: it has three"),
        (f"{MODEL}no_model", "must return a torch.nn.Module, or one and its input, got int"),
        (f"{MODEL}A_NUMBER", "test_bench:A_NUMBER must be callable, got int"),
        (f"{MODEL}Missing.name", "test_bench has no Missing.name"),
        ("--model test_bench", "got 'test_bench', expected module:callable"),
        ("--model convt_nowhere.models:Net", "no module named convt_nowhere; the current folder and PYTHONPATH"),
        ("--device tpu", "--device: got 'tpu', expected cuda, cuda:N or cpu"),
        ("--device mps", "--device: got 'mps', expected cuda, cuda:N or cpu"),
    ],
)
def test_refusals(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        call(*arguments.split())
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_import_of_the_models_module_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imports_nothing.py").write_text("import convt_nowhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="convt_nowhere"):
        bench.load_model("imports_nothing:Net")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        program.main(["bench", *LAYER])
    assert exit_info.value.code == 2
    assert "torch sees no GPU. On the CPU the operator is PyTorch's own" in capsys.readouterr().err


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])
def test_on_a_gpu(device: str, json_of: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """Times of graphs in every dtype, and of a model in float16."""
    for dtype in _layers.DTYPES:
        values = json_of(*LAYER, "--dtype", dtype, device=device)
        assert values["meta"]["timer"] == "graph"
        assert all(row["kernel"] != "aten" and row["speedup"] for row in values["layers"][0]["rows"])
        assert all(row["buffers"] > 1 for row in values["layers"][0]["rows"])  # it fits in the L2 cache
    values = json_of("--model", "test_bench:net_with_input", "--dtype", "fp16", device=device)
    assert {found["dtype"] for found in values["layers"]} == {"float16"}
    assert len(values["layers"]) == 4
    capsys.readouterr()
    with pytest.raises(SystemExit):
        call(*LAYER, device=f"cuda:{torch.cuda.device_count()}")
    assert f"torch sees {torch.cuda.device_count()} GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])
def test_ieee_on_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert call(*LAYER, device=device) == 0
    assert "float32 in TF32" in capsys.readouterr().out
    assert call(*LAYER, "--ieee", device=device) == 0
    assert "float32 in IEEE" in capsys.readouterr().out


def test_as_a_program(tmp_path: Path) -> None:
    """The current folder is searched for the model's module."""
    (tmp_path / "here.py").write_text(
        "from torch import nn, ones\ndef make():\n    return nn.ConvTranspose2d(2, 2, 2), ones(1, 2, 3, 3)\n"
    )
    command = [sys.executable, "-m", "convt_ext", "bench", "--device", "cpu", *QUICK, "--model", "here:make"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "the model itself: input 1x2x3x3, weight 2x2x2x2, bias, float32" in result.stdout
    assert run(sys.executable, "-m", "convt_ext", "--version").stdout.strip() == f"convt_ext {convt_ext.__version__}"
    assert run(sys.executable, "-m", "convt_ext", "nonsense", check=False).returncode == 2
