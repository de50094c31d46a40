"""convt_ext.onnx: what the exporter of torch writes with its table, run by onnxruntime."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import load_program, run_python
from torch import Tensor, nn

import convt_ext
import convt_ext.onnx

onnx = pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxscript", reason="needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "deploy.py"


def export(model: nn.Module, x: Tensor, path: Path, **arguments: Any) -> Any:
    """Exports a model, checks the file by ONNX's own rules, and returns it."""
    torch.onnx.export(
        model.eval(),
        (x,),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        custom_translation_table=convt_ext.onnx.translation_table(),
        **arguments,
    )
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    assert {node.domain for node in written.graph.node} == {""}, "standard operators alone"
    return written


def nodes(written: Any) -> list[str]:
    return [node.op_type for node in written.graph.node]


def attributes(node: Any) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def compute(path: Path, x: Tensor) -> list[Tensor]:
    """The outputs of a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return [torch.from_numpy(np.asarray(output)) for output in session.run(None, {entry.name: x.numpy()})]


class Call(nn.Module):
    """One call of the operator; arguments that are not given keep their defaults."""

    def __init__(self, weight: tuple[int, ...], bias: int | None, *arguments: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(weight))
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.convt.conv_transpose2d(x, self.weight, self.bias, *self.arguments)


class Calls(nn.Module):
    """Several calls with one input."""

    def __init__(self, *calls: tuple[Any, ...]) -> None:
        super().__init__()
        self.calls = nn.ModuleList([Call(*arguments) for arguments in calls])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(x) for call in self.calls)


# Shape of the weight, channels of the bias, then stride, padding, output_padding, groups, dilation.
CALLS: dict[str, tuple[Any, ...]] = {
    "defaults": ((6, 4, 3, 2), None),
    "bias": ((6, 4, 3, 2), 4),
    "unequal axes": ((6, 4, 3, 2), 4, [2, 3], [1, 0], [1, 2]),
    "one int each": ((6, 4, 3, 3), None, [2], [1], [1], 1, [2]),
    "groups": ((6, 4, 3, 2), 8, [2, 1], [0, 1], [0, 0], 2),
    "one channel a group": ((6, 1, 3, 3), 6, [2, 2], [1, 1], [1, 1], 6),
    "dilation": ((6, 4, 3, 2), 4, [2, 3], [2, 1], [0, 1], 1, [3, 2]),
    "output padding above the stride": ((6, 2, 3, 3), 2, [1, 2], [1, 1], [1, 2], 1, [2, 3]),
}


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (6, 4, 5)], ids=["batch", "no batch"])
def test_each_argument(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, path = Calls(*CALLS.values()), torch.randn(shape), tmp_path / "model.onnx"
    written = export(model, x, path)
    counts = Counter(nodes(written))
    assert counts["ConvTranspose"] == len(CALLS)
    assert set(counts) == ({"ConvTranspose"} if len(shape) == 4 else {"Unsqueeze", "ConvTranspose", "Squeeze"})
    for name, actual, expected in zip(CALLS, compute(path, x), model(x), strict=True):
        torch.testing.assert_close(
            actual, expected.detach(), rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_attributes(tmp_path: Path) -> None:
    model = Call((6, 4, 3, 2), 8, [2, 3], [1, 0], [1, 2], 2, [2, 1])
    (node,) = export(model, torch.randn(2, 6, 4, 5), tmp_path / "model.onnx").graph.node
    expected = {
        "strides": [2, 3],
        "pads": [1, 0, 1, 0],
        "output_padding": [1, 2],
        "group": 2,
        "dilations": [2, 1],
    }
    written = attributes(node)
    assert {name: written[name] for name in expected} == expected


@pytest.mark.parametrize("opset", [18, 22])
def test_converted_model_for_any_size(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, 2)
    ).eval()
    path = tmp_path / "model.onnx"
    written = export(
        convt_ext.convert(original),
        torch.randn(2, 6, 4, 5),
        path,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        opset_version=opset,
    )
    # The activation, which the conversion has made part of the operator, is a node again.
    assert nodes(written) == ["ConvTranspose", "Relu", "ConvTranspose"]
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [opset]
    for shape in ((2, 6, 4, 5), (1, 6, 7, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(compute(path, x)[0], original(x).detach(), rtol=1e-5, atol=1e-5)


ACTIVATIONS = {
    "none": ((), []),
    "relu": ((), ["Relu"]),
    "leaky_relu": ((0.2,), ["LeakyRelu"]),
    "elu": ((1.5,), ["Elu"]),
    "silu": ((), ["Sigmoid", "Mul"]),
    "gelu": ((), ["Mul", "Mul", "Erf", "Add", "Mul"]),
    "gelu_tanh": ((), ["Mul", "Mul", "Mul", "Add", "Mul", "Mul", "Tanh", "Add", "Mul"]),
    "mish": ((), ["Mish"]),
    "sigmoid": ((), ["Sigmoid"]),
    "tanh": ((), ["Tanh"]),
    "hardtanh": ((-0.25, 0.75), ["Clip"]),
    "clamp": ((0.0, 0.5), ["Clip"]),
    "hardswish": ((), ["HardSwish"]),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, tmp_path: Path) -> None:
    """Standard nodes behind the convolution, then scale and shift."""
    torch.manual_seed(0)
    params, expected = ACTIVATIONS[activation]
    model, x, path = convt_ext.ConvTranspose2d(6, 4, 3, 2), torch.randn(2, 6, 4, 5), tmp_path / "model.onnx"
    model.activation, model.params = activation, (*params, 1.75, -0.375)
    assert nodes(export(model, x, path)) == ["ConvTranspose", *expected, "Mul", "Add"]
    torch.testing.assert_close(compute(path, x)[0], model(x).detach(), rtol=1e-5, atol=1e-5)


def test_one_dimension(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = convt_ext.ConvTranspose1d(6, 4, 5, 3, 2, 1, 2), torch.randn(2, 6, 9)
    written = export(model, x, tmp_path / "model.onnx")
    assert nodes(written).count("ConvTranspose") == 1
    torch.testing.assert_close(compute(tmp_path / "model.onnx", x)[0], model(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_valid(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whether they can be run is the runtime's own matter."""
    model, x = Call((6, 4, 3, 2), 4, [2, 2]).to(dtype), torch.randn(2, 6, 4, 5, dtype=dtype)
    (node,) = export(model, x, tmp_path / "model.onnx", opset_version=22).graph.node
    assert node.op_type == "ConvTranspose"


def test_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, path = load_program(EXAMPLE), tmp_path / "model.onnx"
    assert example.main(["onnx", str(path)]) == 0
    assert "1 folded into 0" in capsys.readouterr().out
    assert nodes(onnx.load(path)).count("ConvTranspose") == 3
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    x = torch.randn(3, 16, 6, 8)
    with torch.no_grad():
        torch.testing.assert_close(compute(path, x)[0], example.make_model()(x), rtol=1e-5, atol=1e-5)


def test_file_runs_without_torch(tmp_path: Path) -> None:
    model, x, path = Call((6, 4, 3, 2), 4, [2, 2]), torch.randn(2, 6, 4, 5), tmp_path / "model.onnx"
    export(model, x, path)
    np.save(tmp_path / "x.npy", x.numpy())
    code = """
import sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
(output,) = session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[1] + "/x.npy")})
np.save(sys.argv[1] + "/output.npy", output)
assert "torch" not in sys.modules
"""
    run_python(code, tmp_path)
    output = torch.from_numpy(np.load(tmp_path / "output.npy"))
    torch.testing.assert_close(output, model(x).detach(), rtol=1e-5, atol=1e-5)


def test_missing_onnxscript_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'convt_ext\.onnx needs onnxscript \(pip install "convt_ext\[onnx\]"\)'):
        convt_ext.onnx.translation_table()
