"""The parts of the library that need neither torch nor a GPU, as plain C++ programs: tests/cpp."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import load_program, run

ROOT = Path(__file__).parent.parent
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all")
PLAN = tuple(str(file.relative_to(ROOT)) for file in sorted((ROOT / "cuda").glob("plan*.cpp")))
PROGRAMS: dict[str, tuple[str, ...]] = {
    "test_activate": (),
    "test_divisor": (),
    "test_phases": (),
    "test_plan": PLAN,
}
# Kernels on the emulator, whose headers are found before those that they stand in for. Code for a GPU reads the same
# bytes as several types, and its extern shared memory is no variable that is initialised when it is first used.
EMULATED: dict[str, tuple[str, ...]] = {
    "test_emulator": (),
    "test_emulated_implicit_gemm": (
        *(f"cuda/implicit_gemm_{dtype}.cu" for dtype in ("fp16", "bf16", "tf32", "ieee")),
        *(f"cuda/halo_gemm_{precision}.cu" for precision in ("tf32", "ieee")),
        "cuda/turn_operands.cu",
        *PLAN,
    ),
}
EMULATOR = ROOT / "tests" / "cpp" / "emulator"
EMULATED_FLAGS = (
    *("-std=c++20", "-O2", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-fno-strict-aliasing", "-fno-extern-tls-init"),
    # A GPU's accesses must be aligned. Addresses that are not read may be none; the other checks left out find nothing
    # here, and take the compiler long.
    *("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    "-fno-sanitize=pointer-overflow,null,object-size,return,vptr",
)

pytestmark = [
    pytest.mark.slow_matrix,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH"),
]


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_host_program(name: str, tmp_path: Path) -> None:
    sources = [ROOT / "tests" / "cpp" / f"{name}.cpp", *(ROOT / source for source in PROGRAMS[name])]
    program = tmp_path / name
    run("g++", *FLAGS, f"-I{ROOT / 'include'}", *sources, "-o", program)
    run(program)


def build_emulated(name: str, sources: Sequence[str], folder: Path) -> Path:
    """Compiles a program of kernels on the emulator, and returns it."""
    setup = load_program(ROOT / "setup.py")
    try:
        toolkit = setup.find_toolchain()
    except setup.PlatformError:
        pytest.skip("no CUDA headers")
    headers = [f"-I{EMULATOR}", f"-I{ROOT / 'include'}"]
    headers += [flag for path in toolkit.include_dirs for flag in ("-isystem", str(path))]

    def compile_one(source: Path) -> Path:
        output = folder / f"{source.name}.o"
        run("g++", *EMULATED_FLAGS, *headers, "-x", "c++", "-c", source, "-o", output)
        return output

    files = [*(ROOT / source for source in sources), ROOT / "tests" / "cpp" / f"{name}.cpp", *EMULATOR.glob("*.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, files))
    program = folder / name
    run("g++", "-fsanitize=undefined", *objects, "-o", program)
    return program


@pytest.mark.parametrize("name", sorted(EMULATED))
def test_emulated_program(name: str, tmp_path: Path) -> None:
    program = build_emulated(name, EMULATED[name], tmp_path)
    if name == "test_emulator":
        run(program)
        return
    parts = os.cpu_count() or 1
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(lambda part: run(program, "--part", f"{part}/{parts}"), range(parts)))


def test_programs_are_all_run() -> None:
    programs = [*PROGRAMS, *EMULATED]
    assert sorted(file.stem for file in (ROOT / "tests" / "cpp").glob("test_*.cpp")) == sorted(programs)
