"""Activations between two runs: in memory up to a budget, beyond it in a file without a name.

The file is unlinked as soon as it is open, so nothing is left of it when the process ends, however
it ends. Space given back by an array is used again by the next one of the same size: the live
values of a network have few sizes, so the file does not grow from layer to layer.
"""

from __future__ import annotations

import os
import tempfile
from typing import IO, Any

import numpy as np

from onnxq.errors import CalibrationError
from onnxq.runtime.closing import Closing

__all__ = ["ActivationStore", "Held"]

_SMALL_BYTES = 1 << 14
"""Arrays up to this size always stay in memory."""


class Held:
    """One array of a store; its memory or its place in the file is free when it is dropped."""

    def __init__(self, store: ActivationStore, array: np.ndarray, offset: int | None) -> None:
        """Made by `ActivationStore.hold`."""
        self.nbytes = array.nbytes
        self._store = store
        self._offset = offset
        self._shape, self._dtype = array.shape, array.dtype
        self._array = array if offset is None else None

    def read(self) -> np.ndarray[Any, Any]:
        """The array: itself when it is in memory, else a copy read from the file."""
        if self._array is not None:
            return self._array
        return self._store.fetch(self._offset or 0, self._shape, self._dtype)

    def __del__(self) -> None:
        """Give the space back."""
        self._store.release(self.nbytes, self._offset)


class ActivationStore(Closing):
    """Arrays that must outlive a run. A context manager: leaving it closes the file.

    Args:
        budget: bytes kept in memory; what does not fit is written to a temporary file.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}
        self.spilled_bytes = 0

    def close(self) -> None:
        """Close the file, with which it vanishes."""
        if self._file is not None:
            self._file.close()

    def hold(self, array: np.ndarray[Any, Any]) -> Held:
        """Keep ``array`` until the result is dropped; it must not be changed after.

        Raises:
            CalibrationError: the temporary file could not be written.
        """
        if array.nbytes <= max(_SMALL_BYTES, self._left) or array.dtype.hasobject:
            self._left -= array.nbytes
            return Held(self, array, None)
        places = self._free.get(array.nbytes)
        offset = places.pop() if places else self._end
        self._write(np.ascontiguousarray(array), offset)
        self._end = max(self._end, offset + array.nbytes)
        return Held(self, array, offset)

    def release(self, nbytes: int, offset: int | None) -> None:
        """Take back the space of an array; called by `Held`."""
        if offset is None:
            self._left += nbytes
        else:
            self._free.setdefault(nbytes, []).append(offset)

    def fetch(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Read an array of the file; called by `Held`."""
        if self._file is None:
            raise ValueError("nothing was written to the file of this store")
        array = np.empty(shape, dtype)
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            count = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if count == 0:
                raise CalibrationError(
                    "The temporary file of activations is shorter than what was written to it: "
                    "something else truncated it. Run the calibration again."
                )
            done += count
        return array

    def _write(self, array: np.ndarray[Any, Any], offset: int) -> None:
        view = array.reshape(-1).view(np.uint8).data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="onnxq-activations-")  # noqa: SIM115
            done = 0
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], offset + done)
        except OSError as error:
            raise CalibrationError(
                f"Activations of {len(view)} bytes could not be written to the folder for "
                f"temporary files {tempfile.gettempdir()} ({error.strerror}). Make room there, "
                "point TMPDIR elsewhere, give more memory, or use fewer samples."
            ) from error
        self.spilled_bytes += array.nbytes
