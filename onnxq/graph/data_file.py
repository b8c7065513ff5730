"""Tensors that live in a file beside the model, read without ever mapping the whole file.

`ir.ExternalTensor` opens its file by path at the first read: when the file has been replaced in
the meantime (a nightly job writing the same output, or this very process saving over its source)
it silently reads other bytes. A `DataFile` remembers which file it was when the model was loaded,
and holds it open, so the tensors of a loaded model stay what they were, whatever happens to the
path. A read copies exactly the bytes of one tensor, so resident memory is bounded by the largest
tensor and not by the file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelLoadError

_COPY_BYTES = 16 << 20
_READ_BYTES = 1 << 30
_NO_KERNEL_COPY = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}


class DataFile:
    """One external data file, identified when the model was loaded.

    Args:
        path: the file; it must exist.
        keep_open: hold a descriptor for the life of the object, which keeps the content alive
            even when the path is replaced or removed. Without it (models with very many data
            files) every read opens the path again and refuses a file that has changed.

    Attributes:
        path: where the file was found.
        size: its length in bytes at that time.
    """

    def __init__(self, path: Path, *, keep_open: bool = True) -> None:
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._identity = _identity(os.fstat(self._descriptor))
        self.size = os.fstat(self._descriptor).st_size
        if not keep_open:
            self.close()

    def close(self) -> None:
        """Give the descriptor back; later reads open the path again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        """Close the descriptor with the last tensor that needs it."""
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A readable descriptor of this very file.

        Raises:
            ModelLoadError: the path is gone, or now leads to another file.
        """
        if self._descriptor is not None:
            yield self._descriptor
            return
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ModelLoadError(
                f"The external data file {self.path} was there when the model was loaded and "
                f"cannot be opened now ({error.strerror}). Load the model again."
            ) from error
        try:
            if _identity(os.fstat(descriptor)) != self._identity:
                raise ModelLoadError(
                    f"The external data file {self.path} has been replaced since the model was "
                    f"loaded, so its tensors can no longer be read. Load the model again."
                )
            yield descriptor
        finally:
            os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _Span:
    """A stretch of a file that NumPy can take as an array: what `ir.Tensor` wraps."""

    def __init__(self, file: DataFile, offset: int, dtype: ir.DataType, shape: ir.Shape) -> None:
        self.file = file
        self.offset = offset
        self.dtype = dtype
        self.dims = shape.numpy()
        self.nbytes = -(-math.prod(self.dims) * dtype.bitwidth // 8)

    def view(self) -> np.ndarray[Any, Any]:
        """The values on a read-only mapping of their own (unpacked copy below 8 bits)."""
        if self.nbytes == 0:
            return np.empty(self.dims, dtype=self.dtype.numpy())
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        lead = self.offset - start
        with self.file.opened() as descriptor:
            length = lead + self.nbytes
            mapping = mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=start)
        stored = np.frombuffer(mapping, dtype=np.uint8, offset=lead, count=self.nbytes)
        return self.decode(stored)

    def decode(self, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Give stored bytes their element type and shape."""
        if self.dtype.bitwidth < 8:
            packed = ir.PackedTensor(stored, self.dtype, shape=ir.Shape(self.dims))
            return np.asarray(packed.numpy())
        return stored.view(np.dtype(self.dtype.numpy()).newbyteorder("<")).reshape(self.dims)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.view(), dtype=dtype)


class FileTensor(ir.Tensor[_Span]):
    """A tensor stored in a `DataFile`: `numpy()` is a memory-mapped view, nothing is cached.

    A view keeps its own mapping alive and unmaps it when it is dropped, so there is nothing to
    release. Types below 8 bits are unpacked to one element a byte, hence copied.
    """

    def __init__(
        self,
        file: DataFile,
        offset: int,
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str | None = None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        self._span = _Span(file, offset, dtype, shape)
        super().__init__(
            self._span,
            dtype,
            shape=shape,
            name=name,
            doc_string=doc_string,
            metadata_props=metadata_props,
        )

    @property
    def file(self) -> DataFile:
        """The file the bytes are in."""
        return self._span.file

    @property
    def offset(self) -> int:
        """Where in the file the bytes begin."""
        return self._span.offset

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a read-only view of a mapping of its own (unpacked copy below 8 bits)."""
        return self._span.view()

    def read(self) -> np.ndarray[Any, Any]:
        """The values in fresh memory of the caller's own; the file is not mapped.

        Raises:
            ModelLoadError: the file has become shorter than the tensor.
        """
        return self._span.decode(self._stored())

    def _stored(self) -> np.ndarray[Any, Any]:
        stored = np.empty(self.nbytes, dtype=np.uint8)
        view = stored.data
        done = 0
        with self.file.opened() as descriptor:
            while done < self.nbytes:
                window = view[done : done + _READ_BYTES]
                got = os.preadv(descriptor, [window], self.offset + done)
                if got == 0:
                    raise self._truncated()
                done += got
        return stored

    def _truncated(self) -> ModelLoadError:
        return ModelLoadError(
            f"The external data file {self.file.path} ends inside tensor {self.name!r}: it was "
            f"truncated after the model was loaded. Restore the file and load the model again."
        )

    def __repr__(self) -> str:
        kind = f"{self.dtype.name}{list(self.shape.numpy())}"
        return f"FileTensor({self.name!r}, {kind}, {self.file.path} at {self.offset})"

    def tobytes(self) -> bytes:
        """The stored bytes, little endian, packed."""
        return self._stored().tobytes()

    def tofile(self, file: BinaryIO) -> None:
        """Append the stored bytes to ``file``, inside the kernel where the system can."""
        with self.file.opened() as source:
            done = self._copy_in_kernel(source, file)
            while done < self.nbytes:
                count = min(_COPY_BYTES, self.nbytes - done)
                chunk = os.pread(source, count, self.offset + done)
                if not chunk:
                    raise self._truncated()
                file.write(chunk)
                done += len(chunk)

    def _copy_in_kernel(self, source: int, file: BinaryIO) -> int:
        """Copy what `copy_file_range` can, and return how many bytes that was."""
        copy = getattr(os, "copy_file_range", None)
        if copy is None or not isinstance(file, io.BufferedWriter | io.BufferedRandom | io.FileIO):
            return 0
        file.flush()
        start, done = file.tell(), 0
        try:
            while done < self.nbytes:
                count = min(_READ_BYTES, self.nbytes - done)
                got = copy(source, file.fileno(), count, self.offset + done, start + done)
                if got == 0:
                    break
                done += got
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
        file.seek(start + done)
        return done
