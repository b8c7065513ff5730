"""Replace a model file and its data file together, so that no moment shows half of them.

A model of two files cannot be replaced by one rename. Let P be ``model.onnx``, D the data file
``model.onnx.data``, T a data file with a tag nobody else has. The new data are written to T and
synced first, so a full disk or a kill until then leaves P and D as they were. Then, each line one
atomic step and each followed by a sync of the folder:

1. D is not in use by P (a new folder, or a model without data)::

       rename T -> D        P is old and does not read D
       rename P' -> P       P is new and reads D

2. D is the data of the old P::

       rename P' -> P       P is new and reads T; the old D is read by nobody
       symlink D -> T       (made aside and renamed over D)
       rename P" -> P       P is new and reads D, which leads to T, in the same folder
       rename T -> D        P is new and reads D, the data itself

3. another model of the folder reads D: P' reads T, and T keeps its name.

After every line P is the whole old model or the whole new one; the comments say which. P' and P"
are both written and synced before the first line, so only renames are left once P has changed. On
a file system without symbolic links case 2 ends after its first line, with the tagged name.

What a killed run leaves (T, P', P") is removed by the next save, except what the present P reads.
Files of other names are never removed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

__all__ = ["Replacement"]

_TAG_BYTES = 6


class Replacement:
    """One replacement of ``target`` and its data; hold the lock of the target while it runs.

    Args:
        target: absolute path of the model file; its folder exists.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._folder = target.parent
        tag = secrets.token_hex(_TAG_BYTES)
        self._data = self._folder / f"{target.name}.data"
        self._tagged = self._folder / f"{target.name}.{tag}.data"
        self._part = self._folder / f"{target.name}.{tag}.part"
        self._second_part = self._folder / f"{target.name}.{tag}2.part"
        self._link = self._folder / f"{target.name}.{tag}3.part"
        self._has_data = False
        self._live = False

    def __enter__(self) -> Self:
        """Remove what dead runs left behind."""
        self._remove_stale()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what this run left behind, but never what the model in place reads."""
        leftovers = [self._part, self._second_part, self._link]
        if not self._live:
            leftovers.append(self._tagged)
        for path in leftovers:
            with contextlib.suppress(OSError):
                path.unlink()

    def write_data(self, nbytes: int, write: Callable[[BinaryIO], None]) -> None:
        """Write the data file of ``nbytes`` under its tagged name and sync it.

        The space is reserved first, so that a full disk is known before hours of work.

        Raises:
            OSError: from the file system.
        """
        self._has_data = True
        with _create(self._tagged) as file:
            _reserve(file, nbytes)
            write(file)
            _sync(file)

    def commit(self, serialize: Callable[[str], bytes]) -> None:
        """Put the model, and its data if there are any, in place.

        Args:
            serialize: gives the bytes of the model, for the location of its data file.

        Raises:
            OSError: from the file system, before anything in place has changed.
        """
        old_data = self._is_mentioned_by(self._target, self._data.name)
        shared = self._is_shared(self._data.name)
        if not self._has_data:
            self._write_part(self._part, serialize(""))
            self._rename(self._part, self._target)
            if old_data and not shared:
                self._data.unlink(missing_ok=True)
        elif shared:
            self._write_part(self._part, serialize(self._tagged.name))
            self._live = True
            self._rename(self._part, self._target)
        elif old_data:
            self._write_part(self._part, serialize(self._tagged.name))
            self._write_part(self._second_part, serialize(self._data.name))
            self._live = True
            self._rename(self._part, self._target)
            self._return_to_plain_name()
        else:
            self._write_part(self._part, serialize(self._data.name))
            self._rename(self._tagged, self._data)
            self._rename(self._part, self._target)
        self._remove_stale()

    def _return_to_plain_name(self) -> None:
        """Case 2 from its second line; where links are refused, the tagged name is good too."""
        try:
            self._link.symlink_to(self._tagged.name)
        except OSError:
            self._data.unlink(missing_ok=True)
            return
        self._rename(self._link, self._data)
        self._rename(self._second_part, self._target)
        self._rename(self._tagged, self._data)
        self._live = False

    def _write_part(self, path: Path, content: bytes) -> None:
        with _create(path) as file:
            file.write(content)
            _sync(file)

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)

    def _remove_stale(self) -> None:
        pattern = re.compile(re.escape(self._target.name) + r"\.[0-9a-f]{12}[23]?\.(data|part)")
        own = {self._tagged.name} if self._live else set()
        if self._data.is_symlink():
            own.add(self._data.readlink().name)
        for path in self._folder.iterdir():
            if not pattern.fullmatch(path.name) or path.name in own:
                continue
            if not self._is_mentioned_by(self._target, path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _is_shared(self, data_name: str) -> bool:
        """Whether another model of the folder keeps its weights in that file."""
        return any(
            self._is_mentioned_by(path, data_name)
            for path in self._folder.glob("*.onnx")
            if path != self._target
        )

    @staticmethod
    def _is_mentioned_by(model: Path, data_name: str) -> bool:
        """Whether a model file has ``data_name`` as a location, without parsing the model."""
        name = os.fsencode(data_name)
        # A location is field 2 of a protobuf message: tag 0x12, length, text. No file name is
        # longer than 255 bytes, so the length takes one byte or two.
        count = len(name)
        length = bytes([count]) if count < 128 else bytes([count & 127 | 128, count >> 7])
        field = b"\x12" + length + name
        try:
            with model.open("rb") as file, _mapped(file) as content:
                return content.find(field) >= 0 or content.find(b"/" + name) >= 0
        except (OSError, ValueError):
            return False


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _create(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, "wb", buffering=1 << 20)


def _reserve(file: BinaryIO, nbytes: int) -> None:
    """Claim the space now where the file system can; a refusal for lack of space is final."""
    if nbytes == 0:
        return
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        os.ftruncate(file.fileno(), nbytes)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
