"""Finding and loading the compiled library."""

import os
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


def load_library() -> None:
    """Loads the compiled library into torch.

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
