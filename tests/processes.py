"""Running other programs from tests, and importing those that are no modules of a package."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


def run(
    *command: str | Path, env: Mapping[str, str | None] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a command with the environment changed by `env` (None removes a variable); a failure shows its output."""
    variables = {**os.environ, **(env or {})}
    result = subprocess.run(
        [str(part) for part in command],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=900,  # the longest compile for a minute or two
    )
    assert not check or result.returncode == 0, f"{command[0]} exited with {result.returncode}:\n{result.stderr}"
    return result


def run_python(
    code: str, *arguments: str | Path, env: Mapping[str, str | None] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a program text in a fresh Python process."""
    return run(sys.executable, "-c", code, *arguments, env=env, check=check)


def load_program(path: Path) -> ModuleType:
    """Imports a Python program by its file."""
    name = f"program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
