"""Large new tensors on disk instead of in memory, until the model that uses them is saved.

A pass that quantizes a 13 GB model computes gigabytes of new weights before anything is saved, and
computing them again at every read (as a lazy tensor would) is out of the question for a solver
that takes minutes per weight. So finished arrays beyond a budget are appended to one temporary
file that has no name any more: it vanishes with the last tensor in it, also when the run is killed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph.data_file import DataFile, FileTensor

_SMALL_BYTES = 1 << 14
"""Arrays up to this size always stay in memory."""


class Scratch:
    """Finished tensors of one recipe run: in memory up to a budget, then in a temporary file."""

    def __init__(self, budget: int = 256 << 20) -> None:
        """Keep up to ``budget`` bytes in memory before anything is written to disk."""
        self._left_in_memory = budget
        self._end = 0
        self._file: DataFile | None = None
        self._writer: Any = None

    def keep(self, array: np.ndarray[Any, Any], dtype: ir.DataType) -> ir.TensorProtocol:
        """Return a tensor that holds ``array``, in memory or in the temporary file.

        Args:
            array: an array in ``dtype.numpy()``, one element each for types below 8 bits.
            dtype: ONNX type of the tensor.
        """
        tensor = ir.Tensor(array, dtype=dtype)
        if tensor.nbytes <= _SMALL_BYTES:
            return tensor
        if tensor.nbytes <= self._left_in_memory:
            self._left_in_memory -= tensor.nbytes
            return tensor
        if self._file is None:
            with tempfile.NamedTemporaryFile(prefix="onnxq-scratch-") as named:
                self._file = DataFile(Path(named.name))
                self._writer = Path(named.name).open("ab")  # noqa: SIM115 - lives as long as self
        packed = dtype.bitwidth < 8 or not array.flags.c_contiguous
        self._writer.write(tensor.tobytes() if packed else array.data.cast("B"))
        self._writer.flush()
        start, self._end = self._end, self._end + tensor.nbytes
        return FileTensor(self._file, start, dtype, ir.Shape(array.shape))
