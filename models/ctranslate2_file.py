"""Read CTranslate2's ``model.bin``: named arrays, and aliases of them.

Little-endian throughout. Header: uint32 version of the file, string name of the specification,
uint32 its revision, uint32 number of variables. A variable: string name, uint8 rank, uint32 per
dimension, uint8 type, uint32 bytes, data. Then uint32 number of aliases, each two strings: alias,
name. A string: uint16 length with its closing NUL, bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import ml_dtypes
import numpy as np

from onnxq.errors import ModelLoadError

__all__ = ["read_ctranslate2"]

_VERSIONS = range(5, 7)
_DTYPES = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
    5: np.dtype(ml_dtypes.bfloat16),
}


def read_ctranslate2(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read a whole file.

    Args:
        path: ``model.bin`` of a converted model.

    Returns:
        The name of the specification, e.g. ``WhisperSpec``, and the arrays by name in the types
        they are stored in; aliases are included and share memory.

    Raises:
        ModelLoadError: not such a file, truncated, or of a version or type that is not known.
    """
    try:
        return _parse(path.read_bytes())
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise ModelLoadError(
            f"{str(path)!r} is not a CTranslate2 model of version {_VERSIONS.start} to "
            f"{_VERSIONS.stop - 1} that can be read ({error}): fetch or convert it again."
        ) from error


def _parse(data: bytes) -> tuple[str, dict[str, np.ndarray]]:
    position = 0

    def number(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{code}", data, position)
        position += struct.calcsize(code)
        return int(value)

    def string() -> str:
        nonlocal position
        length = number("H")
        text = data[position : position + length].removesuffix(b"\0").decode()
        position += length
        return text

    def array() -> np.ndarray:
        nonlocal position
        shape = tuple(number("I") for _ in range(number("B")))
        dtype = _DTYPES[number("B")]
        size = number("I")
        values = np.frombuffer(data, dtype, size // dtype.itemsize, position).reshape(shape)
        position += size
        return values

    version = number("I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}")
    specification = string()
    number("I")
    arrays = {}
    for _ in range(number("I")):
        name = string()
        arrays[name] = array()
    for _ in range(number("I")):
        alias = string()
        arrays[alias] = arrays[string()]
    return specification, arrays
