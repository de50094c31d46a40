"""Checks that a tag, the package's version, the changelog and the wheel are of one release.

    python scripts/check_release.py TAG [WHEEL]

Prints what does not fit, and exits with 1 then. Before there is a wheel, the others are checked alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def faults(tag: str, wheel: str | None, pyproject: str, changelog: str) -> list[str]:
    """What does not fit, a sentence each. `wheel` is a file name or None, the last two are the texts of the files."""
    stated = re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)
    version = stated[1] if stated else ""
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, pyproject.toml has version {version}: expected v{version}")
    if not re.search(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section ## [{version}]")
    expected = f"convt_ext-{version}-py3-none-manylinux_2_28_x86_64.whl"
    if wheel not in (None, expected):
        found.append(f"the wheel is {wheel}, expected {expected}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks that tag, version, changelog and wheel are of one release.")
    parser.add_argument("tag")
    parser.add_argument("wheel", type=Path, nargs="?")
    args = parser.parse_args()
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CHANGELOG.md")]
    found = faults(args.tag, args.wheel and args.wheel.name, *texts)
    print("\n".join(found) or f"{args.tag} can be released", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
