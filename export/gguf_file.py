"""Reading a GGUF file: metadata and tensors, memory-mapped, every count and offset checked.

The ``gguf`` package's own reader builds a NumPy view for each of the hundred thousand strings of a
vocabulary, which takes seconds; this one takes a tenth of one, and says where a file is broken.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import ExportError, MissingDependency

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_DEFAULT_ALIGNMENT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of a GGUF file, not read yet.

    Attributes:
        name: as llama.cpp spells it, e.g. ``blk.0.attn_q.weight``.
        shape: rows first, as NumPy has it (GGUF stores it the other way round).
        type: number of the ggml type.
        offset: of the first byte, from the beginning of the file.
        nbytes: stored bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A GGUF file that was checked: its metadata, and where its tensors lie."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the architecture, e.g. ``llama``; empty when not stated."""
        return str(self.metadata.get("general.architecture", ""))

    def hyperparameter(self, key: str, default: Any = None) -> Any:
        """The metadata value under the architecture's own prefix."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, dequantized to float32."""
        gguf = _gguf_package()
        tensor = self.tensors[name]
        raw = np.memmap(
            self.path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(tensor.nbytes,)
        )
        kind = gguf.GGMLQuantizationType(tensor.type)
        plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(kind.name)
        if plain:
            return np.array(raw.view(plain).reshape(tensor.shape), dtype=np.float32)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        values = gguf.quants.dequantize(rows, kind)
        return np.ascontiguousarray(values, dtype=np.float32).reshape(tensor.shape)


def open_gguf(path: str | Path) -> GgufFile:
    """Parse and check the header of a GGUF file.

    Raises:
        ExportError: there is no such file, it is not GGUF, of a version or byte order that is not
            read, or truncated.
        MissingDependency: the ``gguf`` package is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"There is no file {str(path)!r}: give the path of a .gguf file.")
    _gguf_package()
    with path.open("rb") as stream:
        start = stream.read(len(_MAGIC))
        if start != _MAGIC:
            raise ExportError(
                f"{str(path)!r} is not a GGUF file: it starts with {start!r} instead of "
                f"{_MAGIC!r}. Give a file written by llama.cpp's convert_hf_to_gguf."
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parse(path, content)
            except (struct.error, UnicodeDecodeError, IndexError) as error:
                raise ExportError(
                    f"{str(path)!r} is truncated or damaged: its header does not end within its "
                    f"{len(content)} bytes ({error}). Fetch it again."
                ) from error


def _parse(path: Path, content: mmap.mmap) -> GgufFile:
    cursor = _Cursor(content, len(_MAGIC))
    version = cursor.scalar("I")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "is big-endian" if swapped in (1, 2, 3) else f"has GGUF version {version}"
        raise ExportError(
            f"{str(path)!r} {what}, and only little-endian GGUF versions 2 and 3 are read. "
            "Convert the model again with a current llama.cpp."
        )
    tensor_count, pair_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    infos = [cursor.tensor_info() for _ in range(tensor_count)]
    alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
    start = -(-cursor.position // alignment) * alignment
    tensors = [_place(path, info, start, len(content)) for info in infos]
    return GgufFile(path=path, metadata=metadata, tensors={t.name: t for t in tensors})


def _place(path: Path, info: _TensorInfo, start: int, size: int) -> GgufTensor:
    """Give a tensor its absolute offset and byte count; refuse what lies outside the file."""
    gguf = _gguf_package()
    name, shape, kind, offset = info
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise ExportError(
            f"Tensor {name!r} of {str(path)!r} has the ggml type {kind}, which the installed gguf "
            "package does not know. Upgrade it with: pip install --upgrade gguf"
        ) from error
    if not shape or shape[-1] % block:
        raise ExportError(
            f"Tensor {name!r} of {str(path)!r} has shape {shape}, whose rows are not a whole "
            f"number of blocks of {block}: the file is damaged. Fetch it again."
        )
    nbytes = math.prod(shape) // block * block_bytes
    if start + offset + nbytes > size:
        raise ExportError(
            f"{str(path)!r} is truncated: tensor {name!r} ends at byte {start + offset + nbytes}, "
            f"and the file has {size}. Fetch it again."
        )
    return GgufTensor(name=name, shape=shape, type=kind, offset=start + offset, nbytes=nbytes)


_TensorInfo = tuple[str, tuple[int, ...], int, int]


class _Cursor:
    """A position in the header that moves as values are read."""

    def __init__(self, content: mmap.mmap, position: int) -> None:
        self.content = content
        self.position = position

    def scalar(self, code: str) -> Any:
        layout = "<" + code
        (value,) = struct.unpack_from(layout, self.content, self.position)
        self.position += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        raw = self.take(length)
        return raw.decode("utf-8")

    def take(self, length: int) -> bytes:
        if self.position + length > len(self.content):
            raise IndexError(f"{length} bytes wanted at byte {self.position}")
        raw = self.content[self.position : self.position + length]
        self.position += length
        return raw

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.scalar("I"), self.scalar("Q")
            if item in (_STRING, _ARRAY):
                return [self.value(item) for _ in range(count)]
            code = "<" + self._code(item)
            return np.frombuffer(self.take(count * struct.calcsize(code)), dtype=code).tolist()
        return self.scalar(self._code(kind))

    def tensor_info(self) -> _TensorInfo:
        name = self.string()
        dims = [self.scalar("Q") for _ in range(self.scalar("I"))]
        return name, tuple(reversed(dims)), self.scalar("I"), self.scalar("Q")

    def _code(self, kind: int) -> str:
        try:
            return _SCALARS[kind]
        except KeyError:
            raise IndexError(f"value type {kind} at byte {self.position} is unknown") from None


def _gguf_package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency("gguf", "gguf", "Reading a GGUF file") from error
    return gguf
