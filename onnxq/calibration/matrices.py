"""Matrices of zeros to sum into, in memory or in a file without a name that is mapped."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import CalibrationError

__all__ = ["zeros"]


def zeros(shape: tuple[int, ...], *, on_disk: bool) -> npt.NDArray[Any]:
    """Zeros in float64.

    Args:
        shape: of the array.
        on_disk: in a temporary file, which vanishes with the array: its pages count as memory of
            this process only while the system has room for them.

    Raises:
        CalibrationError: there is no space for the file.
    """
    count = math.prod(shape)
    if not on_disk or not count:
        return np.zeros(shape)
    try:
        with tempfile.TemporaryFile(prefix="onnxq-hessian-") as file:
            os.posix_fallocate(file.fileno(), 0, 8 * count)  # a full disk is no error of a mapping
            mapped = mmap.mmap(file.fileno(), 8 * count)
    except OSError as error:
        raise CalibrationError(
            f"A Hessian of {8 * count} bytes could not be put into the folder for temporary files "
            f"{tempfile.gettempdir()} ({error.strerror}). Make room there, point TMPDIR elsewhere, "
            "or give more --memory."
        ) from error
    return np.frombuffer(memoryview(mapped), np.float64).reshape(shape)
