"""Builds convt_ext/_C.so: one library for every Python >= 3.10 and every torch >= 2.10, with or without CUDA.

The library is no Python extension module: it registers operators with torch through the LibTorch stable ABI, and
contains CUDA code whether or not the torch it is built with does. Where torch's BuildExtension assumes
otherwise, the assumption is undone here, with the reason beside it.

Environment: CUDA_HOME (compiler to use), TORCH_CUDA_ARCH_LIST (architectures), MAX_JOBS (parallel compilations).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.utils.cpp_extension as cpp_extension
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.errors import CompileError, OptionError, PlatformError  # printed without a traceback

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "8.0 8.6 9.0a 10.0+PTX 12.0"
MIN_ARCH = (8, 0)
MIN_NVCC = (12, 8)  # the first to know compute capabilities 10.0 and 12.0

CXX_STANDARD = "-std=c++20"
HOST_FLAGS = ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]
STABLE_ABI_FLAGS = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY", "-DUSE_CUDA"]
NVCC_FLAGS = [
    "-O3",
    "-Werror=all-warnings",
    # A third less than by default, in the wheel, too.
    "-compress-mode=size",
    "-Xcompiler=" + ",".join([*HOST_FLAGS, "-fPIC"]),
    # A kernel whose registers spill, or whose arrays end up in local memory, is slow without a word: make it an error.
    "-Xptxas=--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error",
]


def arch_list(spec: str | None) -> list[str]:
    """Compute capabilities such as ["8.0", "9.0a", "12.0+PTX"] from a TORCH_CUDA_ARCH_LIST, or the default list."""
    archs = re.split(r"[;\s]+", (spec or "").strip("; \t\n") or DEFAULT_ARCHS)
    for arch in archs:
        parts = re.fullmatch(r"(\d+)\.(\d)a?(\+PTX)?", arch)
        if parts is None:
            raise OptionError(
                f"TORCH_CUDA_ARCH_LIST: got {arch!r}, expected capabilities such as 8.0, 9.0a or 12.0+PTX, "
                "separated by spaces or semicolons"
            )
        if (int(parts[1]), int(parts[2])) < MIN_ARCH:
            raise OptionError(f"TORCH_CUDA_ARCH_LIST: got {arch}, but the kernels need compute capability 8.0 or later")
    return list(dict.fromkeys(archs))


def gencode_flags(archs: Sequence[str]) -> list[str]:
    """nvcc's options for the list: machine code for each architecture, and PTX for those that end in +PTX.

    The sources tell apart capabilities below 9.0, 9.0 and those above: one pass of the front end, which is half of the
    work, serves all of a kind.
    """
    virtual: dict[str, str] = {}  # of each kind: the least, whose PTX the assembler takes for the others
    numbers = [arch.removesuffix("+PTX").replace(".", "") for arch in archs]
    for number in sorted(numbers, key=lambda number: int(number.removesuffix("a"))):
        virtual.setdefault(_kind(number), number)
    flags = []
    for arch, number in zip(archs, numbers, strict=True):
        flags.append(f"-gencode=arch=compute_{virtual[_kind(number)]},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _kind(number: str) -> str:
    """What the sources are compiled to the same for; "90a" and its like are each their own."""
    if number.endswith("a") or number.startswith("9"):
        return number
    return "below 9.0" if int(number) < 90 else "above 9.0"


class NoToolchain(Exception):
    """A place that holds no usable CUDA compiler; the message says why."""


@dataclass(frozen=True)
class Toolchain:
    """A CUDA compiler with the headers and the static runtime library that belong to it."""

    root: Path
    version: tuple[int, int]
    library_dir: Path  # holds libcudart_static.a

    @classmethod
    def at(cls, root: Path) -> Toolchain:
        nvcc = root / "bin" / "nvcc"
        if not nvcc.is_file():
            raise NoToolchain(f"no {nvcc}")
        release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
        if release is None:
            raise NoToolchain(f"{nvcc} --version does not run")
        version = (int(release[1]), int(release[2]))
        if version < MIN_NVCC:
            raise NoToolchain(f"{nvcc} is version {release[1]}.{release[2]}")
        if not (root / "include" / "cuda_runtime.h").is_file():
            raise NoToolchain(f"no {root}/include/cuda_runtime.h beside nvcc")
        for sub in ("lib64", "lib", "targets/x86_64-linux/lib"):  # the pip packages have lib only
            if (root / sub / "libcudart_static.a").is_file():
                return cls(root, version, root / sub)
        raise NoToolchain(f"no libcudart_static.a under {root}")

    @property
    def include_dirs(self) -> list[Path]:
        # CUDA 13 moved the headers of CCCL (cuda/std, cub) one folder down.
        return [path for path in (self.root / "include" / "cccl", self.root / "include") if path.is_dir()]


def find_toolchain(
    env: Mapping[str, str] = os.environ,
    packages: Iterable[str] = tuple(sys.path),
    system: Path = Path("/usr/local/cuda"),
) -> Toolchain:
    """The first usable CUDA compiler of: CUDA_HOME, the pip packages, the usual system location, nvcc on the PATH."""
    if env.get("CUDA_HOME"):
        # Asked for by name: taking another one instead would hide the mistake.
        try:
            return Toolchain.at(Path(env["CUDA_HOME"]))
        except NoToolchain as refusal:
            raise PlatformError(f"CUDA_HOME names no CUDA compiler of version 12.8 or later: {refusal}") from None
    refusals = []
    for place, root in _toolchain_places(env, packages, system):
        try:
            if root is None:
                raise NoToolchain("not found")
            return Toolchain.at(root)
        except NoToolchain as refusal:
            refusals.append(f"\n  {place}: {refusal}")
    raise PlatformError(
        "no CUDA compiler of version 12.8 or later was found; set CUDA_HOME, or install the packages that "
        f"pyproject.toml names under build-system.requires. Looked in:{''.join(refusals)}"
    )


def _toolchain_places(
    env: Mapping[str, str], packages: Iterable[str], system: Path
) -> Iterator[tuple[str, Path | None]]:
    in_packages = [Path(path) / "nvidia" / "cu13" for path in packages if (Path(path) / "nvidia" / "cu13").is_dir()]
    # torch's own requirements use the same folder, without a compiler: a build environment above it may hold one.
    for root in in_packages or [None]:
        yield "pip packages (nvidia-cuda-nvcc and others)", root
    yield "system", system
    nvcc = shutil.which("nvcc", path=env.get("PATH", ""))
    if nvcc is None:
        yield "nvcc on the PATH", None
    else:
        # It may be a link or a wrapper script: nvcc itself says where its files are.
        top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "none.cu"), re.MULTILINE)
        yield "nvcc on the PATH", Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parent.parent


def _output(*command: str | Path) -> str:
    """What a command prints, on either stream; empty if it cannot be run."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    except OSError:
        return ""


class BuildExt(cpp_extension.BuildExtension):
    """Compiles with ninja, for our architectures, and prints the time of each file."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.include_dirs = []  # no Python.h: the library must not depend on CPython

    def build_extensions(self) -> None:
        if not self.use_ninja:
            raise PlatformError("the build needs ninja: pip install ninja")
        os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
        toolchain = find_toolchain()
        archs = arch_list(os.environ.get("TORCH_CUDA_ARCH_LIST"))
        print(f"CUDA {'.'.join(map(str, toolchain.version))} at {toolchain.root}, for {' '.join(archs)}", flush=True)

        # A torch without CUDA leaves this unset, and CUDAExtension reads it.
        cpp_extension.CUDA_HOME = str(toolchain.root)
        os.environ["CUDA_HOME"] = str(toolchain.root)
        # It compares nvcc with torch.version.cuda, which does not matter here: the CUDA runtime is linked statically.
        cpp_extension._check_cuda_version = lambda *_: None
        # They take the arithmetic operators of half and bfloat16 away.
        cpp_extension.COMMON_NVCC_FLAGS = []
        # Python's own link command may carry an rpath to the interpreter that builds.
        link = [cpp_extension.get_cxx_compiler(), "-shared", *os.environ.get("LDFLAGS", "").split()]
        self.compiler.set_executables(linker_so=link, linker_so_cxx=link)

        for ext in self.extensions:
            # In place: setuptools has already noted things of its own on the object.
            vars(ext).update(vars(cuda_extension(ext, toolchain, archs, self.distribution.get_version())))
        self._discard_outdated_objects()
        begin = time.time()
        try:
            super().build_extensions()
        except RuntimeError as error:
            raise CompileError(f"{error}: the compiler's messages are above") from error
        self._print_times(begin)

    def _discard_outdated_objects(self) -> None:
        # With a torch built without CUDA, BuildExtension does not tell ninja which headers a .cu file includes.
        headers = [path for folder in ("include", "cuda") for path in (ROOT / folder).rglob("*.*h*") if path.is_file()]
        newest = max((path.stat().st_mtime for path in headers), default=0.0)
        for path in Path(self.build_temp).rglob("*.o"):
            if path.stat().st_mtime < newest:
                path.unlink()

    def _print_times(self, begin: float) -> None:
        folder = Path(self.build_temp).resolve()
        milliseconds = {}
        for line in (folder / ".ninja_log").read_text().splitlines()[1:]:  # the first line is the format's version
            start, end, _, output, _ = line.split("\t")
            milliseconds[Path(output)] = int(end) - int(start)  # earlier builds come first
        print("\nseconds  file")
        for path, time_taken in milliseconds.items():
            if path.is_file() and path.stat().st_mtime >= begin:
                print(f"{time_taken / 1000:7.1f}  {path.relative_to(folder).with_suffix('')}")
        print(f"{time.time() - begin:7.1f}  in all, {os.environ['MAX_JOBS']} at a time", flush=True)

    def _add_compile_flag(self, extension: Extension, flag: str) -> None:
        """Leaves out the macros that BuildExtension defines for Python extension modules."""

    def get_ext_filename(self, ext_name: str) -> str:
        # Neither an ABI tag nor a Python version: no interpreter imports it.
        return os.path.join(*ext_name.split(".")) + ".so"


def cuda_extension(ext: Extension, toolchain: Toolchain, archs: list[str], version: str) -> Extension:
    """What to compile and link, and how."""
    # As system headers, so that their warnings are not errors. Kernels see no torch: nvcc finds CUDA's by itself.
    headers = [cpp_extension.include_paths()[0], *map(str, toolchain.include_dirs)]
    # Messages and symbols name files by their place in the project, not on the machine that built.
    prefixes = [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, headers[0])]
    macros = [f'-DCONVT_VERSION="{version}"', f'-DCONVT_ARCHS="{" ".join(archs)}"']
    host_only = [
        "-Werror",
        "-Wshadow",
        "-g0",
        *STABLE_ABI_FLAGS,
        *(flag for path in headers for flag in ("-isystem", path)),
    ]
    made = cpp_extension.CUDAExtension(
        ext.name,
        ext.sources,
        py_limited_api=True,  # no libtorch_python
        extra_compile_args={
            "cxx": [CXX_STANDARD, *HOST_FLAGS, *host_only, *prefixes, *macros],
            "nvcc": [CXX_STANDARD, *NVCC_FLAGS, f"-Xcompiler={','.join(prefixes)}", *gencode_flags(archs), *macros],
        },
        extra_link_args=[
            # A host may load the library first: it brings libtorch, though it uses no symbol of libtorch.so itself.
            "-Wl,--no-as-needed,-ltorch,-ltorch_cpu,--as-needed",
            "-lcudart_static",
            "-lpthread",
            "-ldl",
            "-lrt",
            # The process may hold another CUDA runtime: ours stays private. A symbol missing is an error here.
            "-Wl,--exclude-libs,ALL,-z,defs",
        ],
    )
    made.include_dirs = [str(ROOT / "include")]
    made.libraries = []  # torch's list has libc10_cuda, libtorch_cuda and the shared CUDA runtime
    made.library_dirs = [*cpp_extension.library_paths(), str(toolchain.library_dir)]
    return made


class BdistWheel(bdist_wheel):
    """Tags the wheel for any Python 3: the library uses none of CPython's symbols."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


if __name__ == "__main__":
    sources = sorted(str(path.relative_to(ROOT)) for kind in ("*.cpp", "*.cu") for path in (ROOT / "cuda").glob(kind))
    setup(
        ext_modules=[Extension("convt_ext._C", sources, py_limited_api=True)],
        cmdclass={"build_ext": BuildExt, "bdist_wheel": BdistWheel},
    )
