"""Large new tensors on disk instead of in memory, until the model that uses them is saved.

A pass that quantizes a 13 GB model computes gigabytes of new weights before anything is saved, and
computing them again at every read (as a lazy tensor would) is out of the question for a solver
that takes minutes per weight. So finished arrays go to a temporary folder and come back memory-
mapped; the folder is deleted when the last tensor in it is gone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

_IN_MEMORY_BYTES = 1 << 16
"""Arrays up to this size stay in memory: a file of their own would cost more than it saves."""


class Scratch:
    """A temporary folder of finished tensors, filled as a recipe runs."""

    def __init__(self, budget: int = 256 << 20) -> None:
        """Keep up to ``budget`` bytes in memory before anything is written to disk."""
        self._left_in_memory = budget
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def keep(self, array: np.ndarray, *, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """Return a tensor that holds ``array``, in memory or memory-mapped from the folder.

        Args:
            array: any NumPy array; for a sub-byte ``dtype`` the packed bytes are not wanted
                here but an array of the matching ml_dtypes type.
            dtype: ONNX type of the tensor; that of the array when None.
        """
        tensor = ir.Tensor(array, dtype=dtype)
        if tensor.nbytes <= _IN_MEMORY_BYTES or tensor.nbytes <= self._left_in_memory:
            if tensor.nbytes > _IN_MEMORY_BYTES:
                self._left_in_memory -= tensor.nbytes
            return tensor
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnxq-scratch-")
        name = f"{self._count}.bin"
        self._count += 1
        (Path(self._folder.name) / name).write_bytes(tensor.tobytes())
        external = ir.ExternalTensor(
            name,
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name="",
            base_dir=self._folder.name,
        )
        external.meta["onnxq.scratch"] = self._folder  # keeps the folder while the tensor lives
        return external
