"""How wheels are made and released: cibuildwheel's configuration, the smoke test, the workflows, the last check."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from processes import run

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


smoke_test = _script("smoke_test")
repair_wheel = _script("repair_wheel")
faults = _script("check_release").faults


def test_cibuildwheel_builds_for_every_cpython_and_nothing_else() -> None:
    pytest.importorskip("cibuildwheel", reason="cibuildwheel is not installed; make test has it from Python 3.11 on")
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
    named = os.environ.get("CONVT_WHEEL")
    (wheel,) = [Path(named)] if named else (ROOT / "dist").glob("*.whl")
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


def test_commands_name_what_there_is() -> None:
    """Scripts and make's targets that the workflows and cibuildwheel's configuration run."""
    makefile = (ROOT / "Makefile").read_text()
    texts = [path.read_text() for path in (*WORKFLOWS, ROOT / ".ci" / "run", ROOT / "pyproject.toml")]
    scripts = {name for text in texts for name in re.findall(r"\b(scripts/\w+\.py)\b", text)}
    targets = {name for text in texts for name in re.findall(r"^\s*(?:- run: )?make ([\w-]+)$", text, re.MULTILINE)}
    assert {"scripts/repair_wheel.py", "scripts/smoke_test.py", "scripts/test_matrix.py"} <= scripts
    assert {"lint", "test"} <= targets
    assert all((ROOT / name).is_file() for name in scripts)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "wheels.yml", "release.yml"}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


WHEEL = "convt_ext-1.2.0-py3-none-manylinux_2_28_x86_64.whl"
PYPROJECT = '[project]\nname = "convt_ext"\nversion = "1.2.0"\n'
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-01\n"


def test_a_release_that_fits() -> None:
    assert faults("v1.2.0", WHEEL, PYPROJECT, CHANGELOG) == []
    assert faults("v1.2.0", None, PYPROJECT, CHANGELOG) == []  # before the wheel is built


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tag": "1.2.0"}, "the tag is 1.2.0, pyproject.toml has version 1.2.0: expected v1.2.0"),
        ({"tag": "v1.3.0"}, "the tag is v1.3.0, pyproject.toml has version 1.2.0: expected v1.2.0"),
        ({"wheel": WHEEL.replace("_2_28", "_2_34")}, f"expected {WHEEL}"),
        ({"wheel": WHEEL.replace("manylinux_2_28", "linux")}, f"expected {WHEEL}"),
        ({"changelog": "## [Unreleased]\n"}, "CHANGELOG.md has no section ## [1.2.0]"),
    ],
)
def test_a_release_that_does_not_fit(change: dict[str, str], expected: str) -> None:
    arguments = {"tag": "v1.2.0", "wheel": WHEEL, "pyproject": PYPROJECT, "changelog": CHANGELOG} | change
    (fault,) = faults(**arguments)
    assert expected in fault


@pytest.mark.parametrize("wheel", [[], [WHEEL.replace("1.2.0", "0.0.0")]], ids=["before", "with a wheel"])
def test_the_last_check_refuses_another_tag(wheel: list[str]) -> None:
    result = run(sys.executable, ROOT / "scripts" / "check_release.py", "v0.0.0", *wheel, check=False)
    assert result.returncode == 1
    assert "the tag is v0.0.0, pyproject.toml has version" in result.stderr
    assert ("the wheel is" in result.stderr) == bool(wheel)
