"""The build's own decisions, from the source tree: which architectures, which compiler, which sources are hashed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from processes import load_program
from setuptools.errors import OptionError, PlatformError

ROOT = Path(__file__).resolve().parents[1]


setup = load_program(ROOT / "setup.py")
source_hash = load_program(ROOT / "scripts" / "source_hash.py").source_hash


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, ["8.0", "8.6", "9.0a", "10.0+PTX", "12.0"]),
        ("", ["8.0", "8.6", "9.0a", "10.0+PTX", "12.0"]),
        ("9.0a", ["9.0a"]),
        ("8.0;8.6+PTX", ["8.0", "8.6+PTX"]),
        (" 8.0  9.0a; 12.0+PTX ;", ["8.0", "9.0a", "12.0+PTX"]),
        ("8.0 8.0", ["8.0"]),
    ],
)
def test_arch_list(spec: str | None, expected: list[str]) -> None:
    assert setup.arch_list(spec) == expected


@pytest.mark.parametrize("spec", ["Hopper", "sm_90", "90", "9", "9.0b", "9.0a+ptx", "8.0,9.0", "8.0;all"])
def test_arch_list_refuses_what_it_does_not_know(spec: str) -> None:
    with pytest.raises(OptionError, match=r"TORCH_CUDA_ARCH_LIST: got '.+', expected capabilities such as 8\.0"):
        setup.arch_list(spec)


@pytest.mark.parametrize("spec", ["7.5", "8.0 7.0+PTX", "5.2"])
def test_arch_list_refuses_gpus_without_kernels(spec: str) -> None:
    with pytest.raises(OptionError, match=r"got [57]\.\d\S*, but the kernels need compute capability 8\.0 or later"):
        setup.arch_list(spec)


def compiled(*pairs: tuple[str, str]) -> list[str]:
    return [f"-gencode=arch=compute_{virtual},code={real}" for virtual, real in pairs]


def test_gencode_flags() -> None:
    """One pass of the front end for capabilities below 9.0, one for those above it, one for 9.0 and each `a` target."""
    assert setup.gencode_flags(setup.arch_list(None)) == compiled(
        ("80", "sm_80"),
        ("80", "sm_86"),
        ("90a", "sm_90a"),
        ("100", "sm_100"),
        ("100", "compute_100"),
        ("100", "sm_120"),
    )
    assert setup.gencode_flags(["8.9", "8.6"]) == compiled(("86", "sm_89"), ("86", "sm_86"))
    assert setup.gencode_flags(["9.0", "9.0a"]) == compiled(("90", "sm_90"), ("90a", "sm_90a"))
    assert setup.gencode_flags(["10.0a", "12.0+PTX", "10.0"]) == compiled(
        ("100a", "sm_100a"), ("100", "sm_120"), ("120", "compute_120"), ("100", "sm_100")
    )


# What the sources may ask of the architecture that they are compiled for: whether it is below 9.0, 9.0 or above. `thin`
# hands it to thin_threads, which compares it with 9.0 alone.
QUESTIONS = (
    "#if defined(__CUDA_ARCH__)",
    "#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900",
    "#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000",
    "#if defined(__CUDA_ARCH_FEAT_SM90_ALL)",
    "inline constexpr int kComputeCapability = __CUDA_ARCH__ / 10;",
)


def test_sources_tell_no_more_architectures_apart() -> None:
    """What gencode_flags compiles once is the same for all that it is compiled for."""
    asked = {
        line
        for folder in ("cuda", "include")
        for path in (ROOT / folder).rglob("*.*")
        for line in path.read_text().splitlines()
        if "__CUDA_ARCH" in line
    }
    assert asked == set(QUESTIONS)


def _toolkit(root: Path, version: str = "13.0", library_dir: str = "lib64") -> Path:
    """A folder that looks like a CUDA toolkit; its nvcc knows its version and its place, as the real one does."""
    (root / "bin").mkdir(parents=True)
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(
        f"#!/bin/sh\ncase $1 in --dryrun) echo '#$ TOP={root}/bin/..' >&2;; "
        f"*) echo 'Cuda compilation tools, release {version}, V{version}.1';; esac\n"
    )
    nvcc.chmod(0o755)
    for file in ("include/cuda_runtime.h", f"{library_dir}/libcudart_static.a"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_toolchain_order(tmp_path: Path) -> None:
    """CUDA_HOME, then the pip packages, then the system location, then the PATH; each taken away in turn."""
    home = _toolkit(tmp_path / "home")
    package = _toolkit(tmp_path / "site" / "nvidia" / "cu13", library_dir="lib")
    system = _toolkit(tmp_path / "system")
    on_path = _toolkit(tmp_path / "on_path")
    env = {"CUDA_HOME": str(home), "PATH": f"{on_path}/bin:/bin"}
    packages = [str(tmp_path / "site")]

    assert setup.find_toolchain(env, packages, system).root == home
    del env["CUDA_HOME"]
    found = setup.find_toolchain(env, packages, system)
    assert (found.root, found.library_dir) == (package, package / "lib")
    assert setup.find_toolchain(env, [], system).root == system
    assert setup.find_toolchain(env, [], tmp_path / "absent").root == on_path


def test_toolchain_behind_a_wrapper_script(tmp_path: Path) -> None:
    toolkit = _toolkit(tmp_path / "toolkit")
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    found = setup.find_toolchain({"PATH": f"{wrapper.parent}:/bin"}, [], tmp_path / "absent")
    assert found == setup.Toolchain(toolkit, (13, 0), toolkit / "lib64")


def test_toolchain_passes_over_what_is_unusable(tmp_path: Path) -> None:
    """Packages without the compiler, as torch installs them, and an old system toolkit are no reason to fail."""
    runtime_only = _toolkit(tmp_path / "site" / "nvidia" / "cu13")
    (runtime_only / "bin" / "nvcc").unlink()
    system = _toolkit(tmp_path / "system", version="12.4")
    on_path = _toolkit(tmp_path / "on_path", version="12.8")
    found = setup.find_toolchain({"PATH": f"{on_path}/bin:/bin"}, [str(tmp_path / "site")], system)
    assert (found.root, found.version) == (on_path, (12, 8))


def test_no_toolchain_is_one_error_that_names_every_place(tmp_path: Path) -> None:
    system = _toolkit(tmp_path / "system", version="12.4")
    incomplete = _toolkit(tmp_path / "site" / "nvidia" / "cu13")
    (incomplete / "lib64" / "libcudart_static.a").unlink()
    with pytest.raises(PlatformError) as error:
        setup.find_toolchain({"PATH": "/nowhere"}, [str(tmp_path / "site")], system)
    text = str(error.value)
    assert text.startswith("no CUDA compiler of version 12.8 or later was found; set CUDA_HOME, or ")
    assert f"no libcudart_static.a under {incomplete}" in text
    assert f"system: {system}/bin/nvcc is version 12.4" in text
    assert "nvcc on the PATH: not found" in text


@pytest.mark.parametrize("version", [None, "12.7", "11.8"])
def test_cuda_home_is_taken_at_its_word(tmp_path: Path, version: str | None) -> None:
    """A CUDA_HOME that cannot be used is an error even where another compiler could be found."""
    system = _toolkit(tmp_path / "system")
    home = tmp_path / "home" if version is None else _toolkit(tmp_path / "home", version)
    with pytest.raises(
        PlatformError, match=r"CUDA_HOME names no CUDA compiler of version 12\.8 or later: .*home/bin/nvcc"
    ):
        setup.find_toolchain({"CUDA_HOME": str(home), "PATH": ""}, [], system)


def _copy_of_sources(tmp_path: Path) -> Path:
    for folder in ("cuda", "include"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "setup.py", tmp_path)
    return tmp_path


def test_source_hash_is_that_of_any_clone(tmp_path: Path) -> None:
    expected = source_hash(ROOT)
    assert len(expected) == 16
    assert int(expected, 16) >= 0
    copy = _copy_of_sources(tmp_path)
    (copy / "README.md").write_text("not hashed")
    (copy / "cuda" / "__pycache__").mkdir()
    (copy / "cuda" / "__pycache__" / "x.pyc").touch()
    (copy / "cuda" / ".plan.cpp.swp").touch()
    assert source_hash(copy) == expected


def test_source_hash_notices_every_change(tmp_path: Path) -> None:
    copy = _copy_of_sources(tmp_path)
    hashes = [source_hash(copy)]
    (copy / "cuda" / "plan.cpp").write_text("// changed\n")
    hashes.append(source_hash(copy))
    (copy / "cuda" / "plan.cpp").rename(copy / "cuda" / "plan2.cpp")
    hashes.append(source_hash(copy))
    (copy / "include" / "empty.h").touch()
    hashes.append(source_hash(copy))
    (copy / "setup.py").write_text((copy / "setup.py").read_text() + "\n")
    hashes.append(source_hash(copy))
    assert len(set(hashes)) == len(hashes)


def test_sdist_holds_what_a_build_needs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    skipped = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis", "__pycache__"
    )
    shutil.copytree(ROOT, tree, ignore=skipped)
    command = [sys.executable, "-c", "import setuptools.build_meta as b; print(b.build_sdist('sdist'))"]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (sdist,) = (tree / "sdist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[-1] for name in archive.getnames()}
    folders = ("cuda", "include", "src/convt_ext")
    needed = [path for folder in folders for path in (tree / folder).rglob("*") if path.is_file()]
    names = {str(path.relative_to(tree)) for path in needed}
    assert len(names) > 20
    assert names | {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"} <= packed
