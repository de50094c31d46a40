"""Converts a model and saves it in a form that runs without its Python source; then loads the file and compares.

    python examples/deploy.py torchscript model.pt [--device cpu|cuda]
    python examples/deploy.py export model.pt2
    python examples/deploy.py aot-inductor model.pt2
    python examples/deploy.py onnx model.onnx                       (needs onnx, onnxscript and onnxruntime)

Each form is one function below, which saves a converted model and returns what it loads from the file.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import convt_ext
import convt_ext.onnx

Loaded = Callable[[Tensor], Tensor]
TOLERANCE = 1e-4  # of outputs between -1 and 1, in IEEE float32


def make_model() -> nn.Module:
    """A small generator of images, as one would have it from elsewhere: nothing in it is of convt_ext."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 3, stride=(1, 2), padding=1, output_padding=(0, 1), groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
        nn.Tanh(),
    )
    return model.eval()


def torchscript(model: nn.Module, x: Tensor, path: Path) -> Loaded:
    """For examples/cpp, and for Python programs that only load the library: torch.ops.load_library(library_path())."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # newer torch prefers torch.export
        torch.jit.script(model).save(str(path))
        return torch.jit.load(str(path), map_location=x.device)


def exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """The graph of the model for any batch, height and width."""
    batch, height, width = (torch.export.Dim(side, min=1, max=4096) for side in ("batch", "height", "width"))
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch, 2: height, 3: width},))


def export(model: nn.Module, x: Tensor, path: Path) -> Loaded:
    """For Python programs; the operator stays one node of the graph."""
    torch.export.save(exported(model, x), path)
    return torch.export.load(path).module()


def aot_inductor(model: nn.Module, x: Tensor, path: Path) -> Loaded:
    """For examples/cpp and Python: machine code for the device of `x`, with calls of the operator."""
    torch._inductor.aoti_compile_and_package(exported(model, x), package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))


def onnx(model: nn.Module, x: Tensor, path: Path) -> Loaded:
    """For other runtimes, which compute the standard ConvTranspose by themselves, without this package."""
    import onnxruntime

    torch.onnx.export(
        exported(model, x),
        f=path,
        dynamo=True,
        verbose=False,
        external_data=False,  # one file
        input_names=["input"],
        output_names=["output"],
        custom_translation_table=convt_ext.onnx.translation_table(),
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["output"], {"input": x.cpu().numpy()})[0]).to(x.device)


FORMS: dict[str, Callable[[nn.Module, Tensor, Path], Loaded]] = {
    "torchscript": torchscript,
    "export": export,
    "aot-inductor": aot_inductor,
    "onnx": onnx,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Converts a model and saves it in a form without Python source.")
    parser.add_argument("form", choices=list(FORMS))
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if not options.output.parent.is_dir():
        parser.error(f"output must be in a folder that exists, got {options.output}")

    torch.backends.cudnn.allow_tf32 = False  # the difference below is then that of the forms
    original = make_model().to(options.device)
    model = convt_ext.convert(original)
    print(convt_ext.conversion_report(model))
    x = torch.randn(2, 16, 7, 5, device=options.device)
    worst = 0.0
    with torch.no_grad():
        loaded = FORMS[options.form](model, x, options.output)
        for size in ((2, 16, 7, 5), (5, 16, 4, 9), (1, 16, 3, 3)):
            x = torch.randn(size, device=options.device)
            worst = max(worst, (loaded(x) - original(x)).abs().max().item())
    print(f"wrote {options.output}; largest difference from the original model {worst:.1e}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
