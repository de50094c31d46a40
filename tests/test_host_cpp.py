"""The parts of the library that need neither torch nor a GPU, as plain C++ programs: tests/cpp."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from processes import run

ROOT = Path(__file__).parent.parent
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all")
PROGRAMS: dict[str, tuple[str, ...]] = {
    "test_activate": (),
    "test_divisor": (),
    "test_phases": (),
    "test_plan": (
        "cuda/plan.cpp",
        "cuda/plan_depthwise.cpp",
        "cuda/plan_tile_mma.cpp",
        "cuda/plan_col2im.cpp",
        "cuda/plan_implicit_gemm.cpp",
        "cuda/plan_phase_gemm.cpp",
        "cuda/plan_pixel_gemm.cpp",
        "cuda/plan_scatter_gemm.cpp",
        "cuda/plan_thin.cpp",
        "cuda/plan_thin_simt.cpp",
        "cuda/plan_tile_wgmma.cpp",
    ),
}

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


def test_programs_are_all_run() -> None:
    assert sorted(file.stem for file in (ROOT / "tests" / "cpp").glob("test_*.cpp")) == sorted(PROGRAMS)
