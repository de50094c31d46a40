"""Uses the installed wheel as its users do, with the source tree out of reach.

    python scripts/smoke_test.py

Each check is a program of its own, run by this interpreter from an empty folder with -I: of Python's search path only
the installed packages are left. The exit code is 1 when one of them fails. Nothing but torch is needed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

# Programs, by what they show. A later one may read the files of an earlier one.
CHECKS: Mapping[str, str] = {
    "the package is the installed one": """
import sysconfig
from pathlib import Path
import convt_ext

package = Path(convt_ext.__file__).resolve()
installed = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
assert any(folder in package.parents for folder in installed), f"{package} is not under {installed}"
assert Path(convt_ext.library_path()).parent == package.parent
""",
    "results and gradients are torch's": """
import torch, convt_ext

torch.manual_seed(0)
x = torch.randn(2, 6, 9, 7, dtype=torch.float64, requires_grad=True)
w = torch.randn(6, 4, 3, 4, dtype=torch.float64, requires_grad=True)
b = torch.randn(8, dtype=torch.float64, requires_grad=True)
geometry = dict(stride=(2, 3), padding=1, output_padding=(1, 0), groups=2, dilation=(1, 2))
ours = convt_ext.conv_transpose2d(x, w, b, **geometry)
torchs = torch.nn.functional.conv_transpose2d(x, w, b, **geometry)
torch.testing.assert_close(ours, torchs)
found, expected = (torch.autograd.grad(y.square().sum(), (x, w, b)) for y in (ours, torchs))
torch.testing.assert_close(found, expected)
""",
    "a model is converted, exported and scripted": """
import torch, convt_ext

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 3, 4, 2, 1), torch.nn.ReLU()).eval()
x = torch.randn(1, 4, 5, 6)
converted = convt_ext.convert(model)
assert isinstance(converted[0], convt_ext.ConvTranspose2d)
exported = torch.export.export(converted, (x,))
assert "convt.conv_transpose2d_act" in exported.graph_module.code
torch.testing.assert_close(exported.module()(x), model(x))
torch.jit.script(converted).save("model.pt")
torch.save((x, model(x).detach(), convt_ext.library_path()), "expected.pt")
""",
    "the scripted model runs with the library alone": """
import sys
import torch

x, expected, library = torch.load("expected.pt")
torch.ops.load_library(library)
with torch.inference_mode():
    torch.testing.assert_close(torch.jit.load("model.pt")(x), expected)
assert "convt_ext" not in sys.modules
""",
    "the self-check passes": """
import runpy
import sys

sys.argv = ["convt_ext"]
runpy.run_module("convt_ext", run_name="__main__")
""",
}


def run(code: str, folder: str, python: Sequence[str] = (sys.executable, "-I")) -> subprocess.CompletedProcess[str]:
    """Runs a program from the folder; switches of this package in the caller's environment do not reach it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVT_")}
    command = [*python, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        version = run("import torch; print(torch.__version__)", folder).stdout.strip() or "missing"
        print(f"Python {platform.python_version()}, torch {version}")
        for name, code in CHECKS.items():
            result = run(code, folder)
            print(f"  {'FAIL' if result.returncode else 'pass'}  {name}", flush=True)
            if result.returncode:
                failed += 1
                print(result.stdout + result.stderr, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
