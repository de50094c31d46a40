"""Whether torch allows TF32 for convolutions: that the library reads it, at every call, and computes accordingly."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from processes import run, run_python
from reference import (
    NEEDS_CUDA,
    TARGETS,
    TENSOR_CORE_TARGETS,
    Geometry,
    Target,
    assert_accurate,
    reference,
    suited,
    tf32_allowed,
)
from torch import Tensor

import convt_ext
from convt_ext._library import library_info

# Large enough for tensor cores in both modes.
DCGAN = Geometry("dcgan", (4, 64, 32, 32), 64, (4, 4), stride=(2, 2), padding=(1, 1))
GEOMETRIES = (
    DCGAN,
    Geometry("deep", (1, 512, 3, 4), 33, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1)),
    Geometry("groups", (2, 24, 6, 5), 12, (3, 3), stride=(2, 1), dilation=(2, 1), groups=4),
)
geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry.name)


# ---------------------------------------------------------------- reading the flag


def test_the_flag_is_followed() -> None:
    for allowed in (True, False, True, False):
        with tf32_allowed(allowed):
            info = library_info()
            assert info["tf32_flag"] == ("allowed" if allowed else "disallowed")
            assert info["fp32"] == ("tf32" if allowed else "ieee")


# torch refuses to mix some of these settings with the older one; what it answers for convolutions decides.
SETTINGS = """
import torch
from convt_ext._library import library_info

def check(what):
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"
    info = library_info()
    seen = (info["tf32_flag"], info["fp32"])
    assert seen == (("allowed", "tf32") if allowed else ("disallowed", "ieee")), (what, info)
    return allowed

assert check("the default")
seen = set()
for settings, precision in (
    (torch.backends.cudnn.conv, "ieee"),
    (torch.backends.cudnn.conv, "tf32"),
    (torch.backends.cudnn.rnn, "ieee"),
    (torch.backends.cudnn.conv, "none"),
    (torch.backends.cudnn, "ieee"),
    (torch.backends.cudnn, "tf32"),
    (torch.backends, "ieee"),
    (torch.backends.cudnn.conv, "ieee"),
    (torch.backends, "tf32"),
    (torch.backends.cuda.matmul, "tf32"),
    (torch.backends.cuda.matmul, "ieee"),
):
    settings.fp32_precision = precision
    seen.add(check((settings, precision)))
assert seen == {True, False}
torch.set_float32_matmul_precision("high")
check("matrix products alone")
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has no torch.backends.cudnn.conv")
def test_every_setting_of_torch_is_followed() -> None:
    """In a fresh process: whether TF32 is allowed by default, and after each of torch's ways to say so."""
    run_python(SETTINGS)


# A torch that answers itself but not the library: stands before torch's own function, under the name that is looked up.
SILENT_TORCH = """
#include <dlfcn.h>
#include <cstring>
#include <stdexcept>

bool answer() __asm__("_ZNK2at7Context14allowTF32CuDNNESt8optionalINS_9Float32OpEE");
bool answer() {
  Dl_info caller;
  const bool known = dladdr(__builtin_return_address(0), &caller) != 0;
  if (known && std::strstr(caller.dli_fname, "convt_ext") != nullptr) throw std::runtime_error("not told");
  return true;
}
"""


@pytest.fixture(scope="module")
def silent_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the library cannot read the flag."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on the PATH")
    folder = tmp_path_factory.mktemp("silent")
    source, library = folder / "silent.cpp", folder / "silent.so"
    source.write_text(SILENT_TORCH)
    run("g++", "-std=c++17", "-shared", "-fPIC", source, "-o", library, "-ldl")
    return {"LD_PRELOAD": str(library)}


IMPORT = """
import sys, warnings
import torch

torch.version.cuda = sys.argv[1] or None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import convt_ext
    from convt_ext._library import library_info, load_library
    convt_ext.conv_transpose2d(torch.ones(1, 4, 2, 2), torch.ones(4, 4, 2, 2))
print(library_info()["tf32_flag"], library_info()["fp32"])
for warning in caught:
    if "convt_ext" in str(warning.message):
        print(warning.category.__name__, warning.message)
"""


def test_an_unreadable_flag_means_ieee_and_one_warning(silent_torch: dict[str, str]) -> None:
    state, *warnings = run_python(IMPORT, "13.0", env=silent_torch).stdout.splitlines()
    assert state == "unreadable ieee"
    assert len(warnings) == 1
    assert warnings[0].startswith(f"RuntimeWarning convt_ext cannot read whether PyTorch {torch.__version__} allows")
    assert "IEEE" in warnings[0]


def test_no_warning_where_it_would_not_matter(silent_torch: dict[str, str]) -> None:
    """Where torch has no CUDA, and where it answers."""
    assert run_python(IMPORT, "", env=silent_torch).stdout.splitlines() == ["unreadable ieee"]
    assert run_python(IMPORT, "13.0").stdout.splitlines() == ["allowed tf32"]


REPORT = """
import sys
import torch
from convt_ext import doctor

if sys.argv[1]:
    torch.backends.cudnn.allow_tf32 = sys.argv[1] == "allowed"
sys.exit(0 if doctor.report() else 1)
"""


def mode_reported(setting: str, env: dict[str, str] | None = None) -> str:
    lines = run_python(REPORT, setting, env=env).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("float32:")]
    return line


def test_the_report_says_which_mode_and_why(silent_torch: dict[str, str]) -> None:
    """Its self-check passes in each."""
    assert mode_reported("allowed").startswith("float32: TF32 on CUDA, because torch allows TF32 for convolutions;")
    assert mode_reported("").startswith("float32: TF32 on CUDA, because torch allows")
    assert mode_reported("disallowed").startswith("float32: IEEE on CUDA, because torch does not allow TF32")
    assert mode_reported("", silent_torch).startswith("float32: IEEE on CUDA, because this torch does not tell whether")
    assert mode_reported("allowed").endswith("always IEEE on the CPU")


# ---------------------------------------------------------------- computing accordingly


def plan_line(tensors: tuple[Tensor, Tensor, Tensor | None], geometry: Geometry) -> str:
    return convt_ext.plan(*tensors, **geometry.arguments)


def is_ieee(out: Tensor, tensors: tuple[Tensor, Tensor, Tensor | None], geometry: Geometry) -> bool:
    """Whether the largest error is within the promise for IEEE."""
    expected, magnitude = reference(*tensors, **geometry.arguments)
    return bool(((out.double().to(expected.device) - expected).abs() <= 1e-6 * magnitude).all())


@geometries
@pytest.mark.parametrize("target", TENSOR_CORE_TARGETS, indirect=True, ids=str)
def test_tensor_cores_compute_what_the_flag_says(geometry: Geometry, target: Target) -> None:
    geometry = suited(geometry, target.kernel)
    tensors = geometry.tensors(torch.float32, target.device)
    results: dict[bool, Tensor] = {}
    for allowed in (True, False, True, False):
        with tf32_allowed(allowed):
            assert f" precision={'tf32' if allowed else 'ieee'}" in plan_line(tensors, geometry)
            out = convt_ext.conv_transpose2d(*tensors, **geometry.arguments)
            assert_accurate(out, *tensors, **geometry.arguments)
        assert is_ieee(out, tensors, geometry) == (not allowed)
        assert torch.equal(out, results.setdefault(allowed, out))


@geometries
def test_other_kernels_stay_ieee(geometry: Geometry, target: Target) -> None:
    """The CPU, and the kernels for the FMA units; those that the plan chooses may be either."""
    tensors = geometry.tensors(torch.float32, target.device)
    results = []
    for allowed in (True, False):
        with tf32_allowed(allowed):
            line = plan_line(tensors, geometry)
            if target.device == "cuda" and target.kernel is None and "precision=" in line:
                return
            assert "precision=" not in line
            results.append(convt_ext.conv_transpose2d(*tensors, **geometry.arguments))
    assert torch.equal(*results)
    assert is_ieee(results[0], tensors, geometry)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_do_not_depend_on_the_flag(dtype: torch.dtype, device: str) -> None:
    tensors = DCGAN.tensors(dtype, device)
    lines, results = [], []
    for allowed in (True, False):
        with tf32_allowed(allowed):
            lines.append(plan_line(tensors, DCGAN))
            results.append(convt_ext.conv_transpose2d(*tensors, **DCGAN.arguments))
    assert lines[0] == lines[1]
    assert torch.equal(*results)


@pytest.mark.parametrize("target", [pytest.param(Target("cuda"), marks=NEEDS_CUDA)], indirect=True, ids=str)
def test_a_plan_of_one_mode_is_not_taken_in_the_other(target: Target) -> None:
    """Plans are remembered when no kernel is forced: a shape is called in TF32, in IEEE, and in TF32 again."""
    tensors = DCGAN.tensors(torch.float32, target.device)
    lines, results = [], []
    for allowed in (True, False, True):
        with tf32_allowed(allowed):
            results.append(convt_ext.conv_transpose2d(*tensors, **DCGAN.arguments))
            lines.append(plan_line(tensors, DCGAN))
    assert " precision=tf32" in lines[0]
    assert "precision=tf32" not in lines[1]
    assert lines[2] == lines[0]
    assert [is_ieee(out, tensors, DCGAN) for out in results] == [False, True, False]
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("target", [*TARGETS, *TENSOR_CORE_TARGETS], indirect=True, ids=str)
def test_threads_see_the_flag_at_each_call(target: Target) -> None:
    """While one thread changes the flag, the results of the others are those of one mode or of the other."""
    geometry = suited(DCGAN, target.kernel)
    tensors = geometry.tensors(torch.float32, target.device)

    def call(_: object = None) -> Tensor:
        with torch.no_grad():
            return convt_ext.conv_transpose2d(*tensors, **geometry.arguments)

    with ThreadPoolExecutor(4) as pool:
        expected = {}
        for allowed in (True, False, True, False):
            with tf32_allowed(allowed):
                # The same threads, whichever plans they remember.
                results = list(pool.map(call, range(8)))
            assert all(torch.equal(out, expected.setdefault(allowed, results[0])) for out in results)
        with tf32_allowed(True):
            running = [pool.submit(call) for _ in range(64)]
            while not all(future.done() for future in running):
                torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32
                time.sleep(1e-4)
        for future in running:
            assert any(torch.equal(future.result(), out) for out in expected.values())
