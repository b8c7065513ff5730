"""Finished pieces of long work, kept under a hash of all they follow from.

A piece is a few arrays and plain values. Its key is the hash of everything that decides it, so a
piece that is there is right, whichever run made it: a run that was killed is simply started again,
and one with other settings finds what has not changed. Each piece is a file of its own, written
under a temporary name, synced and renamed; a piece that a full disk or a dying machine has spoilt
is known by the checksum in it and is made again.

::

    FOLDER/pieces/ab/ab34....npz   arrays, and one of bytes: JSON of values, checksum
    FOLDER/.lock                    held by the run that writes
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import UsageError, WorkFolderError
from onnxq.graph.lock import take_lock

__all__ = ["Piece", "WorkFolder", "hash_of"]

_PIECES = "pieces"
_ABOUT = "about"
_MARK = "onnxq-work.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Piece:
    """One finished piece.

    Attributes:
        about: plain values.
        arrays: by name.
    """

    about: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def hash_of(*parts: object) -> str:
    """SHA-256, in hexadecimal, of plain values: numbers, texts, lists, mappings with text keys."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class WorkFolder:
    """A folder of pieces; one run writes in it at a time.

    Attributes:
        path: of the folder.
        found: how many pieces were read from earlier runs.
        made: how many were written.
    """

    def __init__(self, path: Path) -> None:
        """Take the folder, which is made when it is missing.

        Raises:
            WorkFolderError: it cannot be written, or another run holds it.
            UsageError: it holds other things.
        """
        self.path = path
        self.found = self.made = 0
        refuse_other(path)
        try:
            (path / _PIECES).mkdir(parents=True, exist_ok=True)
            (path / _MARK).write_text(json.dumps({"version": _VERSION}) + "\n")
            self._lock: int | None = _locked(path)
        except OSError as error:
            raise WorkFolderError(
                f"The work folder {str(path)!r} cannot be written: {error.strerror or error}. "
                "Name another one with --work, or run with --no-resume."
            ) from error
        for stale in path.glob(f"{_PIECES}/*/*.part"):  # of a run that was killed; the lock is ours
            stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another run write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, key: str) -> bool:
        """Whether the piece is there and whole; a spoilt one is removed."""
        return self._load(key) is not None

    def read(self, key: str) -> Piece | None:
        """The piece; None when it is not there or spoilt."""
        piece = self._load(key)
        self.found += piece is not None
        return piece

    def _load(self, key: str) -> Piece | None:
        file = self._file(key)
        try:
            return _decoded(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            file.unlink(missing_ok=True)
            return None

    def keep(self, key: str, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write a piece, whole or not at all.

        Raises:
            WorkFolderError: no space, or no permission; pieces that were there are untouched.
        """
        file = self._file(key)
        part = file.with_suffix(".part")
        try:
            file.parent.mkdir(exist_ok=True)
            with part.open("wb") as stream:
                stream.write(_encoded(about, arrays))
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise WorkFolderError(
                f"A finished piece cannot be kept in {str(self.path)!r}: {error.strerror}. "
                f"{self.made} pieces of this run are there: free some space (`onnxq clean` lists "
                "work folders) and run the same command again to go on."
            ) from error
        self.made += 1

    def remove(self) -> None:
        """Remove the folder with all its pieces."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, key: str) -> Path:
        return self.path / _PIECES / key[:2] / f"{key}.npz"


def refuse_other(path: Path) -> None:
    """Raise unless the folder is missing, empty, or a work folder.

    Raises:
        UsageError: it holds other things.
    """
    if path.exists() and not (path.is_dir() and _is_ours(path)):
        raise UsageError(
            f"{str(path)!r} is no work folder: it holds other things, which are left alone. "
            "Give --work a folder that is empty or does not exist."
        )


def _is_ours(path: Path) -> bool:
    return (path / _MARK).is_file() or not any(path.iterdir())


def work_folders(under: Path) -> Iterator[tuple[Path, int, int]]:
    """Work folders in and below a folder, with the number of their pieces and their bytes."""
    for mark in sorted(under.rglob(_MARK)):
        sizes = [file.stat().st_size for file in mark.parent.glob(f"{_PIECES}/*/*")]
        yield mark.parent, len(sizes), sum(sizes)


def _locked(folder: Path) -> int:
    return take_lock(
        folder / ".lock",
        lambda holder: WorkFolderError(
            f"Another run ({holder}) works in {str(folder)!r}. Wait for it, or name another folder "
            "with --work."
        ),
    )


def _encoded(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    text = json.dumps({"values": about, "checksum": _checksum(arrays)}, default=float)
    stream = io.BytesIO()
    content: dict[str, Any] = {f"array_{name}": array for name, array in arrays.items()}
    content[_ABOUT] = np.frombuffer(text.encode(), np.uint8)
    np.savez(stream, **content)
    return stream.getvalue()


def _decoded(content: bytes) -> Piece:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        about = json.loads(found[_ABOUT].tobytes())
        arrays = {n.removeprefix("array_"): found[n] for n in found.files if n != _ABOUT}
    if about["checksum"] != _checksum(arrays):
        raise ValueError("spoilt")
    return Piece(about["values"], arrays)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
