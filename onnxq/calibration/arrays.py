"""Samples stored as NumPy files: a folder of ``.npz``, or one ``.npz`` or ``.npy``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxq.calibration.samples import Sample, Samples
from onnxq.errors import CalibrationError
from onnxq.runtime import TensorSpec

__all__ = ["array_file", "npz_folder"]


def npz_folder(folder: Path) -> Samples:
    """One sample per ``.npz`` file, in the order of their names; array names are input names.

    Raises:
        CalibrationError: while iterating, when a file is damaged.
    """
    files = sorted(folder.glob("*.npz"))
    return Samples(lambda: (_load(file) for file in files), label=f"folder {folder.name!r}")


def array_file(path: Path, inputs: Sequence[TensorSpec]) -> Samples:
    """Samples stacked along the first axis of the arrays of one file.

    A ``.npy`` file feeds the only input of the model and is memory-mapped. Samples are as long as
    the model's batch axis when that is static, and 1 otherwise. Arrays that share no first axis
    (or that need none, as scalars) are one sample.

    Raises:
        CalibrationError: the file is damaged; or it is a ``.npy`` and the model has several inputs.
    """
    if path.suffix == ".npz":
        return Samples(lambda: _rows(_load(path), inputs), label=f"file {path.name!r}")
    if len(inputs) != 1:
        raise CalibrationError(
            f"{path.name!r} holds one unnamed array, and the model has {len(inputs)} inputs "
            f"({', '.join(spec.name for spec in inputs)}): store them by name with numpy.savez."
        )
    name = inputs[0].name
    return Samples(lambda: _rows({name: _load_one(path)}, inputs), label=f"file {path.name!r}")


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _load_one(path: Path) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, error) from error
    return array


def _damaged(path: Path, error: Exception) -> CalibrationError:
    return CalibrationError(
        f"{path.name!r} cannot be read as arrays ({error}): write it again with numpy.savez or "
        "numpy.save, without Python objects in it."
    )


def _rows(arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> Iterator[Sample]:
    lengths = {array.shape[:1] for array in arrays.values()}
    batches = {spec.shape[:1] for spec in inputs}
    if len(lengths) != 1 or () in lengths or () in batches:
        yield arrays
        return
    (length,) = next(iter(lengths))
    static = [batch for (batch,) in batches if isinstance(batch, int)]
    step = static[0] if static else 1
    for begin in range(0, length, step):
        yield {name: np.array(array[begin : begin + step]) for name, array in arrays.items()}
