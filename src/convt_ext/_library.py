"""Finding and loading the compiled library."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

OLDEST_TORCH = (2, 10)


def library_path() -> str:
    """Returns the absolute path of the compiled library.

    Loading it registers the operator for CPU and CUDA inference, with no Python needed: ``dlopen`` it in a C++ program
    that links LibTorch, or ``torch.ops.load_library`` it, before a model that calls the operator is loaded.

    Example:
        >>> import convt_ext
        >>> convt_ext.library_path().endswith("convt_ext/_C.so")
        True
    """
    return str(Path(__file__).resolve().parent / "_C.so")


def _check_torch() -> None:
    oldest = ".".join(map(str, OLDEST_TORCH))
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"convt_ext needs PyTorch {oldest} or later, and torch cannot be imported: {error}"
        ) from error
    found = torch.__version__.split("+")[0].split(".")
    if (int(found[0]), int(found[1])) < OLDEST_TORCH:
        raise ImportError(f"convt_ext needs PyTorch {oldest} or later, found {torch.__version__}")


def library_info() -> dict[str, str]:
    """Returns what the library says of itself, and of torch as it is set at the moment.

    ``fp32`` is what float32 is computed in on CUDA, "tf32" or "ieee"; ``tf32_flag`` whether torch allows TF32 for
    convolutions: "allowed", "disallowed" or "unreadable".
    """
    import torch

    info: dict[str, str] = json.loads(torch.ops.convt._info())
    return info


def _warn_of_an_unreadable_flag() -> None:
    """Says once, when the package is imported, that a torch with CUDA does not tell whether it allows TF32."""
    import torch

    if torch.version.cuda is not None and library_info()["tf32_flag"] == "unreadable":
        warnings.warn(
            f"convt_ext cannot read whether PyTorch {torch.__version__} allows TF32 for convolutions, and computes"
            " float32 in IEEE arithmetic, which is slower",
            RuntimeWarning,
            stacklevel=2,
        )


def load_library() -> None:
    """Loads the compiled library into torch, and warns if it cannot read torch's TF32 flag.

    Raises:
        ImportError: torch is missing or too old, or the library cannot be loaded.
    """
    _check_torch()
    import torch

    path = library_path()
    if not os.path.exists(path):
        raise ImportError(
            f"convt_ext has no compiled library at {path}: install a wheel, or build one with `pip wheel .`"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(f"convt_ext cannot load {path} into PyTorch {torch.__version__}: {error}") from error
    _warn_of_an_unreadable_flag()
