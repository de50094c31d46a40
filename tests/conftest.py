"""Devices, precision and hypothesis profiles of the test suite, which runs against the installed package."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from ranks import Ranks
from reference import NEEDS_CUDA, TARGETS, Target, skip_without_code_for, tf32_allowed

try:
    import hypothesis
except ImportError:  # tests/test_generated.py says that it was skipped
    pass
else:
    # The same examples on every run; HYPOTHESIS_PROFILE=explore draws new ones, and more of them.
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=300)
    hypothesis.settings.register_profile("explore", deadline=None, database=None, max_examples=5000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _clean_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch set in the caller's shell must not choose the kernels under test."""
    for name in ("CONVT_KERNEL", "CONVT_PRINT_PLAN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _ieee_float32() -> Iterator[None]:
    """float32 is IEEE in this process, torch's own included; a test that wants TF32 says so.

    Nor does one test get the flags that a benchmark has set in another.
    """
    backends = torch.backends
    before = backends.cudnn.benchmark, backends.cuda.matmul.allow_tf32
    with tf32_allowed(False):
        yield
    backends.cudnn.benchmark, backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request: pytest.FixtureRequest) -> str:
    """Device under test; "cuda" is skipped where there is no GPU."""
    return str(request.param)


@pytest.fixture(params=TARGETS, ids=str)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """The CPU; and on CUDA the kernel that the plan chooses, then each kernel by force."""
    chosen: Target = request.param
    if chosen.kernel is not None:
        skip_without_code_for(chosen.kernel)
        monkeypatch.setenv("CONVT_KERNEL", chosen.kernel)
    return chosen


@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < Ranks.SIZE, reason="needs two CUDA GPUs"),
            ],
        ),
    ],
)
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Two processes: gloo on the CPU, NCCL on two GPUs."""
    processes = Ranks(request.param)
    yield processes
    processes.stop()
