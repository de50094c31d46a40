"""How wheels are made: cibuildwheel's configuration, the repair, the smoke test."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from processes import run

ROOT = Path(__file__).resolve().parents[1]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


smoke_test = _script("smoke_test")
repair_wheel = _script("repair_wheel")


def test_cibuildwheel_builds_for_every_cpython_and_nothing_else() -> None:
    pytest.importorskip("cibuildwheel", reason="cibuildwheel is not installed; make test has it")
    listed = run(
        sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", "linux", ROOT
    ).stdout.split()
    found = [re.fullmatch(r"cp3(\d+)-manylinux_x86_64", identifier) for identifier in listed]
    assert all(found), listed
    minors = [int(match[1]) for match in found if match]
    assert minors == list(range(10, minors[-1] + 1))
    assert minors[-1] >= 13


def test_torch_is_left_out_of_the_wheel() -> None:
    """Every library of torch that the built one names; tests/test_wheel.py shows that none was put in."""
    command = repair_wheel.command(Path("a.whl"), Path("folder"), "manylinux_2_28_x86_64")
    excluded = {command[i + 1] for i, part in enumerate(command) if part == "--exclude"}
    assert {"libtorch.so", "libtorch_cpu.so", "libc10.so", "libtorch_cuda.so", "libc10_cuda.so"} == excluded
    assert command[command.index("--plat") + 1] == "manylinux_2_28_x86_64"


def test_a_wheel_that_does_not_fit_its_tag_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("auditwheel", reason="auditwheel is not installed; make test has it")
    (wheel,) = (ROOT / "build" / "wheel").glob("*.whl")
    script = ROOT / "scripts" / "repair_wheel.py"
    # manylinux2010 has glibc 2.12: too old for any C++20 compiler.
    result = run(sys.executable, script, "--plat", "manylinux_2_12_x86_64", wheel, tmp_path, check=False)
    assert result.returncode != 0
    assert "cannot repair" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", list(smoke_test.CHECKS))
def test_smoke_checks_fail_without_the_package(name: str, tmp_path: Path) -> None:
    # -S leaves the installed packages out.
    result = smoke_test.run(smoke_test.CHECKS[name], str(tmp_path), (sys.executable, "-I", "-S"))
    assert result.returncode != 0
    assert "Error" in result.stderr


def test_smoke_checks_see_wrong_results(tmp_path: Path) -> None:
    code = """
import convt_ext
right = convt_ext.conv_transpose2d
convt_ext.conv_transpose2d = lambda *args, **kwargs: right(*args, **kwargs) * 1.01
"""
    result = smoke_test.run(
        code + smoke_test.CHECKS["results and gradients are torch's"], str(tmp_path), (sys.executable,)
    )
    assert result.returncode != 0
    assert "Tensor-likes are not close" in result.stderr


def test_smoke_checks_see_the_source_tree(tmp_path: Path) -> None:
    (tmp_path / "convt_ext").mkdir()
    (tmp_path / "convt_ext" / "__init__.py").touch()
    # Without -I the current folder comes first.
    result = smoke_test.run(smoke_test.CHECKS["the package is the installed one"], str(tmp_path), (sys.executable,))
    assert result.returncode != 0
    assert "is not under" in result.stderr
