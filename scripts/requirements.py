"""Prints requirements that pyproject.toml names, one per line.

    python scripts/requirements.py [--torch VERSION] GROUP...

A GROUP is "build" (build-system.requires), "run" (the dependencies), an extra ("onnx", "plot") or a dependency group
("test", "dev", "wheel", "docs").
With --torch, requirements on torch give way to that version.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def requirements(groups: list[str], torch: str | None = None) -> list[str]:
    """The requirements of the groups, in order, each once."""
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    by_group = {
        "build": pyproject["build-system"]["requires"],
        "run": pyproject["project"]["dependencies"],
        **pyproject["project"]["optional-dependencies"],
        **pyproject["dependency-groups"],
    }
    lines = [line for group in groups for line in by_group[group]]
    if torch is not None:
        lines = [line for line in lines if not re.match(r"torch\b(?!-)", line)]
        lines.insert(0, f"torch=={torch}")
    return list(dict.fromkeys(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", metavar="GROUP", nargs="+")
    parser.add_argument("--torch", metavar="VERSION")
    args = parser.parse_args()
    print("\n".join(requirements(args.groups, args.torch)))


if __name__ == "__main__":
    main()
