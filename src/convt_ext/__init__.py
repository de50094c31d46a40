"""Transposed 2-D convolution for NVIDIA GPUs, as one operator: ``torch.ops.convt.conv_transpose2d``.

Importing the package loads the library and registers the operator with autograd, autocast, vmap and the compiler. A
program that only runs inference, or has no Python, can load the library alone: see :func:`library_path`.
"""

from ._library import library_path, load_library

load_library()

from . import _registration as _registration  # noqa: E402  (needs the library; registers when imported)
from .conversion import ConversionReport, conversion_report, convert  # noqa: E402
from .functional import conv_transpose1d, conv_transpose2d, plan  # noqa: E402
from .modules import ConvTranspose1d, ConvTranspose2d  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConversionReport",
    "__version__",
    "conv_transpose1d",
    "conv_transpose2d",
    "conversion_report",
    "convert",
    "library_path",
    "plan",
]
