"""Saved, compiled and exported models: TorchScript with and without Python, torch.compile, torch.export, AOTI."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from processes import load_program, run, run_python
from reference import assert_promised_strides
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import convt_ext

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CPP_EXAMPLE = EXAMPLES / "cpp"
example = load_program(EXAMPLES / "deploy.py")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")


class Direct(nn.Module):
    """Calls the operator itself, with every argument."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 2) / 4)
        self.bias = nn.Parameter(torch.randn(8))
        self.narrow = nn.Parameter(torch.randn(8, 1, 3, 3) / 4)

    def forward(self, input: Tensor) -> Tensor:
        first = torch.ops.convt.conv_transpose2d(input, self.weight, self.bias, [2, 3], [1, 0], [1, 2], 2, [2, 1])
        return torch.ops.convt.conv_transpose2d(first.relu(), self.narrow, None, stride=2, groups=2) + 1


class Layers(nn.Module):
    """A small decoder of convt_ext.ConvTranspose2d layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convt_ext.ConvTranspose2d(6, 8, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            convt_ext.ConvTranspose2d(8, 3, 3, stride=3, padding=1, output_padding=2),
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.layers(input).tanh()


def fused() -> nn.Module:
    """A converted model that applies its activations in the operator, one with numbers."""
    layers = nn.Sequential(
        nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.ConvTranspose2d(8, 3, 2), nn.Tanh()
    )
    return convt_ext.convert(layers.eval())


MODELS = {"direct": Direct, "layers": Layers, "fused": fused}
OPERATORS = (torch.ops.convt.conv_transpose2d.default, torch.ops.convt.conv_transpose2d_act.default)
models = pytest.mark.parametrize("name", sorted(MODELS))


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- TorchScript


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input, and for each model its scripted, traced and exported form and its output here."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(1)
    traced_on, x = torch.randn(1, 6, 4, 5), torch.randn(3, 6, 7, 5)
    torch.save(x, folder / "input.pt")
    for name in MODELS:
        model = make_model(name)
        with torch.no_grad():
            torch.save(model(x), folder / f"{name}.expected.pt")
            torch.jit.script(model).save(folder / f"{name}.scripted.ts")
            torch.jit.trace(model, traced_on).save(folder / f"{name}.traced.ts")
        torch.export.save(export(model), folder / f"{name}.exported.pt2")
    return folder


def export(model: nn.Module, device: str = "cpu") -> torch.export.ExportedProgram:
    batch, height, width = (torch.export.Dim(side, min=1, max=64) for side in ("batch", "height", "width"))
    return torch.export.export(
        model, (torch.randn(2, 6, 4, 5, device=device),), dynamic_shapes={"input": {0: batch, 2: height, 3: width}}
    )


FRESH_PROCESS = """
import sys
import torch

library, folder, device, *names = sys.argv[1:]
torch.ops.load_library(library)
torch.backends.cudnn.allow_tf32 = False
x = torch.load(f"{folder}/input.pt", weights_only=True).to(device)
for name in names:
    if name.endswith(".package.pt2"):
        import torch._inductor.codecache  # torch 2.10 does not import all that it loads packages with
        model = torch._inductor.aoti_load_package(f"{folder}/{name}")
    elif name.endswith(".pt2"):
        model = torch.export.load(f"{folder}/{name}").module().to(device)
    else:
        model = torch.jit.load(f"{folder}/{name}", map_location=device)
    with torch.inference_mode():
        torch.save(model(x).cpu(), f"{folder}/{name}.fresh")
assert "convt_ext" not in sys.modules
"""


def test_saved_models_in_a_fresh_process(saved: Path, device: str) -> None:
    """A process that loads the library, not the package."""
    run_in_a_fresh_process(
        saved, device, [f"{name}.{form}" for name in MODELS for form in ("scripted.ts", "traced.ts", "exported.pt2")]
    )


def run_in_a_fresh_process(saved: Path, device: str, files: list[str]) -> None:
    run_python(FRESH_PROCESS, convt_ext.library_path(), saved, device, *files)
    for file in files:
        expected = torch.load(saved / f"{file.split('.')[0]}.expected.pt", weights_only=True)
        close(torch.load(saved / f"{file}.fresh", weights_only=True), expected)


def test_saved_model_without_the_library_names_the_operator(saved: Path) -> None:
    code = "import sys, torch; torch.jit.load(sys.argv[1])"
    result = run_python(code, saved / "direct.scripted.ts", check=False)
    assert result.returncode != 0
    assert "convt::conv_transpose2d" in result.stderr


@pytest.fixture(scope="session")
def cpp_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/cpp, compiled against the torch of this Python."""
    program = tmp_path_factory.mktemp("cpp") / "convt_run"
    run(CPP_EXAMPLE / "build.sh", program, env={"PYTHON": sys.executable})
    return program


@needs_compiler
@models
@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_saved_models_in_cpp(cpp_program: Path, saved: Path, name: str, form: str, device: str) -> None:
    run_in_cpp(cpp_program, saved, f"{name}.{form}.ts", device)


def run_in_cpp(cpp_program: Path, saved: Path, file: str, device: str) -> None:
    output = saved / f"{file}.{device}.cpp"
    result = run(cpp_program, convt_ext.library_path(), saved / file, saved / "input.pt", output, device)
    expected = torch.load(saved / f"{file.split('.')[0]}.expected.pt", weights_only=True)
    actual = torch.load(output, weights_only=True)
    # The program leaves torch's default alone, which allows TF32.
    close(actual, expected, 1e-2 if device == "cuda" else 1e-5)
    assert str(list(expected.shape)) in result.stdout


@needs_compiler
def test_cpp_program_says_what_is_wrong(cpp_program: Path, saved: Path, tmp_path: Path) -> None:
    module, output = saved / "direct.scripted.ts", tmp_path / "output.pt"
    library = convt_ext.library_path()
    assert run(cpp_program, check=False).returncode == 2
    missing = run(cpp_program, tmp_path / "none.so", module, "1x6x4x4", output, check=False)
    assert missing.returncode == 1
    assert "none.so" in missing.stderr
    refused = run(cpp_program, library, module, "1x5x4x4", output, check=False)
    assert refused.returncode == 1
    assert (
        "convt::conv_transpose2d: weight must have input's channels first (5), got shape [6, 4, 3, 2]" in refused.stderr
    )
    assert not output.exists()
    assert run(cpp_program, library, module, "2x6x4x4", output).stdout.startswith("output [2, 2, ")


# ---------------------------------------------------------------- torch.compile


def sizes() -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.randn(shape) for shape in ((2, 6, 4, 5), (3, 6, 7, 5), (5, 6, 4, 9))]


@needs_compiler
@models
def test_compile_for_inference(name: str, device: str) -> None:
    """No graph break, and one compilation for every size."""
    model = make_model(name).to(device)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    first, *others = (x.to(device) for x in sizes())
    with torch.no_grad():
        close(compiled(first), model(first))
        compilations = counter.frame_count
        for x in others:
            out = compiled(x)
            close(out, model(x))
            assert out.stride() == model(x).stride()
    assert counter.frame_count == compilations > 0


@needs_compiler
@models
def test_compile_for_training(name: str, device: str) -> None:
    eager, compiled_model = make_model(name).to(device), make_model(name).to(device)
    compiled = torch.compile(compiled_model, fullgraph=True, dynamic=True)
    for x in sizes():
        ours, theirs = x.to(device).requires_grad_(), x.to(device).requires_grad_()
        eager(theirs).square().mean().backward()
        compiled(ours).square().mean().backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        close(ours.grad, theirs.grad)
    for ours_parameter, theirs_parameter in zip(compiled_model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours_parameter.grad, theirs_parameter.grad, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_compile_keeps_channels_last(device: str) -> None:
    w = torch.randn(6, 3, 3, 3, device=device)
    compiled = torch.compile(lambda x: convt_ext.conv_transpose2d(x * 2, w, stride=2), fullgraph=True, dynamic=True)
    for x in sizes():
        x = x.to(device).contiguous(memory_format=torch.channels_last)
        out = compiled(x)
        assert_promised_strides(out, x)
        close(out, convt_ext.conv_transpose2d(x * 2, w, stride=2))


def test_compile_under_autocast(device: str) -> None:
    w = torch.randn(6, 3, 3, 3, device=device)

    def lowered(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return convt_ext.conv_transpose2d(x, w, stride=2)

    x = sizes()[0].to(device)
    out = torch.compile(lowered, fullgraph=True, backend="aot_eager")(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, lowered(x))


# ---------------------------------------------------------------- torch.export, AOTInductor


@models
def test_export_with_dynamic_sizes(name: str, device: str) -> None:
    model = make_model(name)
    program = export(model)
    calls = [node.target for node in program.graph.nodes if node.target in OPERATORS]
    assert calls == [OPERATORS[name == "fused"]] * 2
    module, model = program.module().to(device), model.to(device)
    with torch.no_grad():
        for x in (*sizes(), torch.randn(1, 6, 1, 64)):
            close(module(x.to(device)), model(x.to(device)))


def test_export_decomposes_for_training() -> None:
    """Decompositions leave the operators alone."""
    for name, operator in zip(("layers", "fused"), OPERATORS, strict=True):
        program = export(make_model(name)).run_decompositions()
        assert any(node.target is operator for node in program.graph.nodes)


AOT_INDUCTOR_PROBE = """
import sys, torch
program = torch.export.export(torch.nn.ReLU(), (torch.randn(3),))
package = torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1])
torch._inductor.aoti_load_package(package)(torch.randn(3))
"""


@pytest.fixture(scope="session")
def aot_inductor(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where torch and the C++ compiler at hand cannot run any package: loading one ends the process."""
    probe = run_python(AOT_INDUCTOR_PROBE, tmp_path_factory.mktemp("probe") / "relu.pt2", check=False)
    if probe.returncode < 0:
        pytest.skip(f"an AOTInductor package without our operator ends the process with signal {-probe.returncode}")


@pytest.fixture(scope="module")
def packages(saved: Path, device: str, aot_inductor: None) -> Path:
    """The folder of saved models, with an AOTInductor package of each."""
    for name in MODELS:
        program = export(make_model(name).to(device), device)
        torch._inductor.aoti_compile_and_package(program, package_path=str(saved / f"{name}.{device}.package.pt2"))
    return saved


@needs_compiler
@models
def test_aot_inductor_package(packages: Path, name: str, device: str) -> None:
    model = make_model(name).to(device)
    compiled = torch._inductor.aoti_load_package(str(packages / f"{name}.{device}.package.pt2"))
    with torch.no_grad():
        for x in sizes():
            close(compiled(x.to(device)), model(x.to(device)))


@needs_compiler
def test_aot_inductor_packages_in_a_fresh_process(packages: Path, device: str) -> None:
    run_in_a_fresh_process(packages, device, [f"{name}.{device}.package.pt2" for name in MODELS])


@needs_compiler
@models
def test_aot_inductor_packages_in_cpp(cpp_program: Path, packages: Path, name: str, device: str) -> None:
    run_in_cpp(cpp_program, packages, f"{name}.{device}.package.pt2", device)


@needs_compiler
def test_cpp_program_names_the_device_of_a_package(
    cpp_program: Path, packages: Path, device: str, tmp_path: Path
) -> None:
    package = packages / f"direct.{device}.package.pt2"
    library, output = convt_ext.library_path(), tmp_path / "output.pt"
    refused = run(cpp_program, library, package, "1x6x4x4", output, "meta", check=False)
    assert refused.returncode == 1
    assert f"{package} was compiled for {device}, got DEVICE meta" in refused.stderr
    assert not output.exists()


# ---------------------------------------------------------------- examples/deploy.py


def run_example(form: str, path: Path, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the example, which compares what it loads from the file with the model before conversion."""
    assert example.main([form, str(path), "--device", device]) == 0
    printed = capsys.readouterr().out
    assert "3 replaced: 0, 3, 5\n1 folded into 0\n" in printed
    assert f"wrote {path}; largest difference from the original model " in printed


def example_case(device: str) -> tuple[Tensor, Tensor]:
    """An input of the example's model, of a size that the example has not seen, and the output."""
    torch.manual_seed(3)
    x = torch.randn(3, 16, 6, 8)
    with torch.no_grad():
        return x.to(device), example.make_model()(x).to(device)


def test_example_torchscript(tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("torchscript", tmp_path / "model.pt", device, capsys)
    loaded = torch.jit.load(tmp_path / "model.pt", map_location=device)
    assert str(loaded.inlined_graph).count("convt::conv_transpose2d") == 3
    x, expected = example_case(device)
    with torch.no_grad():
        close(loaded(x), expected)


def test_example_export_from_a_shell(tmp_path: Path, device: str) -> None:
    done = run(sys.executable, EXAMPLES / "deploy.py", "export", tmp_path / "model.pt2", "--device", device)
    assert "largest difference" in done.stdout
    program = torch.export.load(tmp_path / "model.pt2")
    calls = [node for node in program.graph.nodes if node.target in OPERATORS]
    assert len(calls) == 3
    x, expected = example_case(device)
    with torch.no_grad():
        close(program.module()(x), expected)


@needs_compiler
@pytest.mark.usefixtures("aot_inductor")
def test_example_aot_inductor(
    cpp_program: Path, tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package runs in the C++ example."""
    package, output = tmp_path / "model.pt2", tmp_path / "output.pt"
    run_example("aot-inductor", package, device, capsys)
    x, expected = example_case(device)
    torch.save(x.cpu(), tmp_path / "input.pt")
    run(cpp_program, convt_ext.library_path(), package, tmp_path / "input.pt", output, device)
    close(torch.load(output, weights_only=True), expected.cpu(), 1e-2 if device == "cuda" else 1e-5)


def test_example_fails_if_the_results_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, x: Tensor, path: Path) -> nn.Module:
        return nn.Sequential(model, nn.Threshold(-2, 0), nn.Hardtanh(-1, 0.01))

    monkeypatch.setitem(example.FORMS, "export", wrong)
    assert example.main(["export", str(tmp_path / "model.pt2")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pickle", "model.pt"], "argument form: invalid choice: 'pickle'"),
        (["export"], "the following arguments are required: output"),
        (["export", "nowhere/model.pt2"], "output must be in a folder that exists, got nowhere/model.pt2"),
        (["export", "model.pt2", "--device", "cuda"], "--device cuda: torch sees no GPU"),
    ],
)
def test_example_refuses_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_info:
        example.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
