"""What is kept comes back the same, from memory and from the file, and leaves nothing behind."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.data_file import FileTensor
from onnxq.graph.scratch import Scratch

ARRAYS = [
    (np.arange(20000, dtype=np.float32).reshape(100, 200), ir.DataType.FLOAT),
    (np.arange(60000, dtype=np.int64).astype(np.uint8).reshape(3, 200, 100), ir.DataType.UINT8),
    (np.arange(80000).reshape(200, 400).astype(np.int8).astype(ml_dtypes.int4), ir.DataType.INT4),
    (np.arange(20000, dtype=np.float32).reshape(100, 200).T, ir.DataType.FLOAT),
]


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_arrays_come_back_the_same(budget, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch = Scratch(budget)
    kept = [scratch.keep(array, dtype) for array, dtype in ARRAYS]
    assert all(isinstance(tensor, FileTensor) == (budget == 0) for tensor in kept)
    for tensor, (array, dtype) in zip(kept, ARRAYS, strict=True):
        assert tensor.dtype == dtype and tuple(tensor.shape) == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_tensors_outlive_the_scratch():
    array = np.arange(50000, dtype=np.float32)
    tensor = Scratch(0).keep(array, ir.DataType.FLOAT)
    np.testing.assert_array_equal(tensor.numpy(), array)
