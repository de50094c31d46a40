"""Installs the built wheel into environments of several Pythons and torch versions, and runs the tests in each.

    python scripts/test_matrix.py [--wheel WHEEL] [--smoke] [--keep] [PYTHON:TORCH ...]

Without pairs: every supported minor version of torch, that used for development first, then the oldest and the newest.
scripts/smoke_test.py comes before the tests; with --smoke, it is all that runs.
A Python that this machine lacks is reported as "not run". An environment takes several GB, and is deleted after its run
unless --keep is given.
Exits with 0 when every pair that could be run passed, and at least one could.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from requirements import requirements

ROOT = Path(__file__).resolve().parents[1]
PAIRS = ["3.11:2.13.0", "3.10:2.10.0", "3.13:2.15.0", "3.12:2.11.0", "3.12:2.12.1", "3.12:2.14.1"]


@dataclass(frozen=True)
class Outcome:
    python: str
    torch: str
    result: str  # "passed", "FAILED" or "not run"
    detail: str


def find_python(version: str) -> str | None:
    """An interpreter of the version, such as "3.12": on the PATH, or installed by pyenv."""
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True)
    for candidate in [*([on_path] if on_path else []), *map(str, installed)]:
        # A shim of pyenv may be on the PATH for a version that is not active: see if it runs.
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        asked = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == version:
            return candidate
    return None


def run_pair(python: str, torch: str, wheel: Path, smoke: bool, keep: bool) -> Outcome:
    interpreter = find_python(python)
    if interpreter is None:
        return Outcome(python, torch, "not run", f"no Python {python} on this machine")
    venv = ROOT / "build" / "matrix" / f"python{python}-torch{torch}"
    venv_python = venv / "bin" / "python"
    # The wheel's own requirement on torch is left to pip: the version asked for must satisfy it.
    needed = [f"torch=={torch}"] if smoke else requirements(["onnx", "test"], torch)
    install = [venv_python, "-m", "pip", "install", *needed, wheel]
    test = [venv_python, "-m", "pytest", "-m", "not slow_matrix"]
    try:
        for step, command in (
            ("making the environment", [interpreter, "-m", "venv", "--clear", venv]),
            ("the install", install),
            ("the smoke test", [venv_python, ROOT / "scripts" / "smoke_test.py"]),
        ):
            if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
                return Outcome(python, torch, "FAILED", f"{step} failed")
        if smoke:
            return Outcome(python, torch, "passed", "the smoke test")
        environment = {**os.environ, "CONVT_WHEEL": str(wheel)}
        with subprocess.Popen(test, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = ""
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip("= \n") or last
        return Outcome(python, torch, "passed" if process.returncode == 0 else "FAILED", last)
    finally:
        if not keep:
            shutil.rmtree(venv, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", metavar="PYTHON:TORCH", nargs="*", default=PAIRS)
    parser.add_argument("--wheel", type=Path, help="default: the one in dist/")
    parser.add_argument("--smoke", action="store_true", help="run the smoke test alone")
    parser.add_argument("--keep", action="store_true", help="keep the environments, under build/matrix")
    args = parser.parse_args()
    wheels = [args.wheel] if args.wheel else sorted((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        parser.error(f"expected one wheel in dist/, found {len(wheels)}: run make wheel, or name it with --wheel")

    outcomes = []
    for pair in args.pairs:
        python, _, torch = pair.partition(":")
        print(f"\n=== Python {python}, torch {torch}", flush=True)
        begin = time.monotonic()
        outcomes.append(run_pair(python, torch, wheels[0].resolve(), args.smoke, args.keep))
        print(f"=== {outcomes[-1].result} after {time.monotonic() - begin:.0f} s", flush=True)

    print(f"\n{'python':8}{'torch':10}{'result':10}")
    for outcome in outcomes:
        print(f"{outcome.python:8}{outcome.torch:10}{outcome.result:10}{outcome.detail}")
    results = {outcome.result for outcome in outcomes}
    return 0 if "passed" in results and "FAILED" not in results else 1


if __name__ == "__main__":
    sys.exit(main())
