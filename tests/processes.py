"""Running other programs from tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


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
    )
    assert not check or result.returncode == 0, f"{command[0]} exited with {result.returncode}:\n{result.stderr}"
    return result


def run_python(
    code: str, *arguments: str | Path, env: Mapping[str, str | None] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a program text in a fresh Python process."""
    return run(sys.executable, "-c", code, *arguments, env=env, check=check)
