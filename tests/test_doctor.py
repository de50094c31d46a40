"""`python -m convt_ext`, and importing the package where torch is missing or too old."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from processes import run, run_python

import convt_ext

PACKAGE_PARENT = str(Path(convt_ext.__file__).parent.parent)


def test_report_and_self_check() -> None:
    result = run(sys.executable, "-m", "convt_ext")
    text = result.stdout
    assert result.stderr == "" or "Warning" in result.stderr
    assert f"convt_ext {convt_ext.__version__}" in text
    assert f"torch {torch.__version__}" in text
    assert f"Python {sys.version.split()[0]}" in text
    assert "9.0a" in text or "+PTX" in text or "8." in text
    assert "float32: TF32 on CUDA, because torch allows TF32 for convolutions" in text
    assert text.rstrip().endswith("pass")
    assert "FAIL" not in text
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        assert dtype in text
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in text


def test_self_check_fails_on_wrong_results() -> None:
    """A kernel that computes something else is found, and the exit code says so."""
    code = """
import sys
from convt_ext import doctor, functional

right = functional.conv_transpose2d
functional.conv_transpose2d = lambda *args, **kwargs: right(*args, **kwargs) * 1.01
sys.argv = ["convt_ext"]
sys.exit(0 if doctor.report() else 1)
"""
    result = run_python(code, check=False)
    assert result.returncode == 1
    assert "FAIL" in result.stdout


def stub_torch(folder: Path, source: str) -> dict[str, str]:
    """An environment in which `import torch` finds this module, and convt_ext is still found."""
    (folder / "torch.py").write_text(source)
    return {"PYTHONPATH": f"{folder}:{PACKAGE_PARENT}"}


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.0", "2.9.0a0+git1234567"])
def test_import_with_an_old_torch(tmp_path: Path, version: str) -> None:
    env = stub_torch(tmp_path, f"__version__ = {version!r}\n")
    result = run_python("import convt_ext", env=env, check=False)
    assert result.returncode == 1
    assert f"ImportError: convt_ext needs PyTorch 2.10 or later, found {version}" in result.stderr


def test_import_without_torch(tmp_path: Path) -> None:
    env = stub_torch(tmp_path, "raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    result = run_python("import convt_ext", env=env, check=False)
    assert result.returncode == 1
    assert "ImportError: convt_ext needs PyTorch 2.10 or later, and torch cannot be imported" in result.stderr
    assert "No module named 'torch'" in result.stderr


def copy_python_files(folder: Path) -> Path:
    """Copies the package without its library, as in a source tree, and returns where it went."""
    package = folder / "convt_ext"
    package.mkdir()
    for file in Path(convt_ext.__file__).parent.glob("*.py"):
        (package / file.name).write_text(file.read_text())
    return package


def test_import_without_the_library(tmp_path: Path) -> None:
    copy_python_files(tmp_path)
    result = run_python("import convt_ext", env={"PYTHONPATH": str(tmp_path)}, check=False)
    assert result.returncode == 1
    assert "ImportError: convt_ext has no compiled library at" in result.stderr


def test_import_with_a_broken_library(tmp_path: Path) -> None:
    package = copy_python_files(tmp_path)
    (package / "_C.so").write_bytes(b"not a library")
    result = run_python("import convt_ext", env={"PYTHONPATH": str(tmp_path)}, check=False)
    assert result.returncode == 1
    assert "ImportError: convt_ext cannot load" in result.stderr
    assert torch.__version__ in result.stderr


def test_library_path() -> None:
    path = Path(convt_ext.library_path())
    assert path.is_absolute()
    assert path.name == "_C.so"
    assert path.is_file()
    assert path.parent == Path(convt_ext.__file__).resolve().parent


def test_public_names() -> None:
    operators = ["conv_transpose1d", "conv_transpose1d_act", "conv_transpose2d", "conv_transpose2d_act"]
    modules = ["ConvTranspose1d", "ConvTranspose2d"]
    conversion = ["conversion_report", "convert"]
    others = ["library_path", "plan"]
    assert sorted(convt_ext.__all__) == [*modules, "ConversionReport", "__version__", *operators, *conversion, *others]
    assert (Path(convt_ext.__file__).parent / "py.typed").is_file()
