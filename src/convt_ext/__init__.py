"""Transposed 2-D convolution for NVIDIA GPUs, as the operator ``torch.ops.convt.conv_transpose2d``.

``torch.ops.convt.conv_transpose2d_act`` is the same operator with an activation behind it.
Importing the package loads the library and registers both with autograd, autocast, vmap and the compiler. A
program that only runs inference, or has no Python, can load the library alone: see :func:`library_path`.
"""

from ._library import library_path, load_library

load_library()

from . import _registration as _registration  # noqa: E402  (needs the library; registers when imported)
from .conversion import ConversionReport, conversion_report, convert  # noqa: E402
from .functional import (  # noqa: E402
    conv_transpose1d,
    conv_transpose1d_act,
    conv_transpose2d,
    conv_transpose2d_act,
    plan,
)
from .modules import ConvTranspose1d, ConvTranspose2d  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConversionReport",
    "__version__",
    "conv_transpose1d",
    "conv_transpose1d_act",
    "conv_transpose2d",
    "conv_transpose2d_act",
    "conversion_report",
    "convert",
    "library_path",
    "plan",
]
