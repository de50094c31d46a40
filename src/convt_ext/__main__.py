"""``python -m convt_ext``: the report of :mod:`convt_ext.doctor`, or with ``bench`` that of :mod:`convt_ext.bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__, bench, doctor


def parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser of the command line, and that of ``bench`` in it."""
    parser = argparse.ArgumentParser(
        prog="python -m convt_ext",
        description="Without a command: versions, GPUs, the precision in force, and a self-check.",
    )
    parser.add_argument("--version", action="version", version=f"convt_ext {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    bench_parser = commands.add_parser(
        "bench",
        help="time transposed convolutions, ours beside PyTorch's",
        description="Times a transposed convolution, or those of a model, in both memory layouts beside PyTorch's.",
    )
    bench.add_arguments(bench_parser)
    return parser, bench_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if the self-check or a measurement failed."""
    parser, bench_parser = parsers()
    options = parser.parse_args(arguments)
    if options.command == "bench":
        return bench.main(bench_parser, options)
    return 0 if doctor.report() else 1


if __name__ == "__main__":
    sys.exit(main())
