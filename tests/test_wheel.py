"""The wheel's name, contents and metadata, and what its library needs of and shows to the process that loads it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
VERSION = "0.1.0"
DIST_INFO = f"convt_ext-{VERSION}.dist-info"

ALLOWED_LIBRARIES = {
    "libtorch.so",
    "libtorch_cpu.so",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
    # The parts of glibc; from 2.34 on all of them are in libc.so.6.
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
}


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The one wheel that was built: CONVT_WHEEL names it, else it is in dist/."""
    named = os.environ.get("CONVT_WHEEL")
    wheels = [Path(named)] if named else sorted((ROOT / "dist").glob("*.whl"))
    assert len(wheels) == 1, f"expected one wheel in dist/, or CONVT_WHEEL to name it, found {wheels}"
    return wheels[0]


@pytest.fixture(scope="module")
def library() -> Path:
    """The installed convt_ext/_C.so, found without importing the package."""
    spec = importlib.util.find_spec("convt_ext")
    assert spec is not None, "convt_ext is not installed"
    assert spec.origin is not None
    return Path(spec.origin).with_name("_C.so")


def _binutils(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} (binutils) is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _symbols(path: Path, *options: str) -> dict[str, str]:
    """Dynamic symbols, as name -> the type letter of nm. Versioned ones, as those of glibc, keep their version."""
    lines = _binutils("nm", "-D", *options, path).splitlines()
    return {line.split()[-1]: line.split()[-2] for line in lines}


def _metadata(wheel: Path, name: str) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"{DIST_INFO}/{name}").decode())


def _platform(wheel: Path) -> str:
    found = re.fullmatch(rf"convt_ext-{re.escape(VERSION)}-py3-none-(\w+)\.whl", wheel.name)
    assert found is not None, wheel.name
    return found[1]


def test_name(wheel: Path) -> None:
    # What `make gpu` builds, CONVT_WHEEL names: it stays on its machine, and is not repaired.
    not_repaired = "CONVT_WHEEL" in os.environ and _platform(wheel) == "linux_x86_64"
    assert not_repaired or re.fullmatch(r"manylinux_2_\d+_x86_64", _platform(wheel))


def test_contents(wheel: Path) -> None:
    modules = {f"convt_ext/{path.name}" for path in (ROOT / "src" / "convt_ext").glob("*.py")}
    assert "convt_ext/__init__.py" in modules
    dist_info = {f"{DIST_INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    assert files == modules | dist_info | {"convt_ext/_C.so", "convt_ext/py.typed"}


def test_size(wheel: Path) -> None:
    assert wheel.stat().st_size < 20_000_000


def test_metadata(wheel: Path) -> None:
    tags = _metadata(wheel, "WHEEL")
    assert tags.get_all("Tag") == [f"py3-none-{_platform(wheel)}"]
    assert tags["Root-Is-Purelib"] == "false"
    metadata = _metadata(wheel, "METADATA")
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert always == ["torch>=2.10"]


def test_the_wheel_is_what_is_installed(wheel: Path, library: Path) -> None:
    """So that the other tests test it, and not the source tree."""
    assert ROOT / "src" not in library.parents
    installed = Path(str(importlib.metadata.distribution("convt_ext").locate_file("convt_ext/_C.so")))
    assert installed.samefile(library)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("convt_ext/_C.so") == library.read_bytes()


def test_import_takes_the_installed_library(library: Path) -> None:
    import convt_ext

    assert Path(convt_ext.library_path()).samefile(library)
    assert convt_ext.__version__ == VERSION


def test_libraries_needed(library: Path) -> None:
    dynamic = _binutils("readelf", "--dynamic", "--wide", library)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert set(needed) <= ALLOWED_LIBRARIES
    # Named even where no symbol of theirs is used: they load the operators of a host that has only this library.
    assert {"libtorch.so", "libtorch_cpu.so"} <= set(needed)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_undefined_symbols(library: Path) -> None:
    undefined = _symbols(library, "--undefined-only")
    assert undefined
    assert not [name for name in undefined if name.lstrip("_").startswith("Py")]
    assert not [name for name in undefined if re.match(r"_*cu(da)?[A-Z]", name)]
    # torch's CPU builds have none but the number of the device type: the others must be allowed to be missing.
    of_torch_cuda = {name: kind for name, kind in undefined.items() if "cuda" in name}
    of_torch_cuda.pop("aoti_torch_device_type_cuda", None)
    assert of_torch_cuda.get("aoti_torch_get_current_cuda_stream") == "w"
    assert set(of_torch_cuda.values()) == {"w"}


def test_this_torch_has_the_functions_used(library: Path) -> None:
    """A missing one would not show before the first call of it: functions are bound when they are first called."""
    used = {name for name, kind in _symbols(library, "--undefined-only").items() if kind == "U" and "@" not in name}
    libraries = Path(torch.__file__).parent / "lib"
    offered = {
        name for path in ("libtorch_cpu.so", "libc10.so") for name in _symbols(libraries / path, "--defined-only")
    }
    from_torch = {name for name in used if re.match(r"_*(aoti_)?torch", name)}
    assert from_torch
    assert from_torch <= offered


def test_the_tag_promises_no_older_glibc(wheel: Path, library: Path) -> None:
    needed = re.findall(r"Name: GLIBC_2\.(\d+)", _binutils("readelf", "--version-info", "--wide", library))
    assert needed
    tag = re.fullmatch(r"manylinux_2_(\d+)_x86_64", _platform(wheel))
    if tag is None:
        pytest.skip("a wheel that make gpu has built for its machine names no glibc")
    assert max(map(int, needed)) <= int(tag[1])


def test_nothing_is_exported(library: Path) -> None:
    """The process may hold another CUDA runtime, or another library with kernels of the same names."""
    exported = _symbols(library, "--defined-only")
    assert not [name for name in exported if "cuda" in name.lower() or "convt" in name]


def test_no_path_of_the_build_machine(library: Path) -> None:
    contents = library.read_bytes()
    assert str(ROOT).encode() + b"/" not in contents
    assert b"site-packages" not in contents
