"""One writer at a time for one output file, across processes, without leaving clutter.

The lock is ``flock`` on a hidden file beside the output; the kernel drops it when its holder dies,
so there are no stale locks. The file holds the process id, for the message to the second run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import ModelSaveError

__all__ = ["output_lock"]


@contextlib.contextmanager
def output_lock(target: Path) -> Iterator[None]:
    """Hold the right to write ``target``; its folder must exist.

    Raises:
        ModelSaveError: another run holds it (the sentence names its process id), or the folder
            cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        descriptor = _acquire(path, target)
    except OSError as error:
        raise ModelSaveError(
            f"{target} cannot be written: {error.strerror} ({path.parent}). "
            f"Choose a folder that can be written, or make this one writable."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, target: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise ModelSaveError(
                f"{target} is being written by another run (process {holder or 'unknown'}). "
                f"Wait for it, or write to another folder."
            ) from error
        except OSError:
            os.close(descriptor)
            raise
        if _still_there(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
            return descriptor
        os.close(descriptor)


def _still_there(path: Path, descriptor: int) -> bool:
    """Whether the file locked is the one the path names: its last holder may have removed it."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
