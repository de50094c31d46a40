"""Prints the hash of the sources that decide how fast the library is: cuda/, include/ and setup.py.

Benchmark results carry it, so that anyone can see which sources were measured. It depends on the paths inside the
project and the contents of the files alone, and is the same in every clone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCES = ("cuda", "include", "setup.py")


def source_hash(root: Path) -> str:
    """16 hexadecimal digits."""
    files = []
    for source in SOURCES:
        path = root / source
        files += [path] if path.is_file() else [file for file in path.rglob("*") if _is_source(file.relative_to(root))]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.relative_to(root).as_posix()):
        if file.is_file():
            name, contents = file.relative_to(root).as_posix().encode(), file.read_bytes()
            # With the lengths, no two sets of files give the same bytes.
            digest.update(b"%d %d\n%s%s" % (len(name), len(contents), name, contents))
    return digest.hexdigest()[:16]


def _is_source(path: Path) -> bool:
    """Not a cache, nor what an editor or a file manager leaves behind."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return not hidden and path.suffix not in {".o", ".so", ".pyc"} and not path.name.endswith("~")


if __name__ == "__main__":
    print(source_hash(Path(__file__).resolve().parents[1]))
