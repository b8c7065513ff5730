"""One writer at a time for one output file, across processes, without leaving clutter.

The lock is ``flock`` on a hidden file beside the output; the kernel drops it when its holder dies,
so there are no stale locks. The file holds the process id, for the message to the second run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxq.errors import ModelSaveError, OnnxqError

__all__ = ["output_lock", "take_lock"]


@contextlib.contextmanager
def output_lock(target: Path) -> Iterator[None]:
    """Hold the right to write ``target``; its folder must exist.

    Raises:
        ModelSaveError: another run holds it (the sentence names its process id), or the folder
            cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        descriptor = take_lock(
            path,
            lambda holder: ModelSaveError(
                f"{target} is being written by another run ({holder}). "
                f"Wait for it, or write to another folder."
            ),
        )
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


def take_lock(path: Path, refusal: Callable[[str], OnnxqError]) -> int:
    """Lock a file, made when it is missing, until the descriptor is closed or the process dies.

    Args:
        path: of the file; it will hold the process id.
        refusal: what to raise when another process, ``"process 12"``, has the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise refusal(f"process {holder or 'unknown'}") from error
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
