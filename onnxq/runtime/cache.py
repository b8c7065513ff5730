"""Where onnxq keeps what it has fetched or built and may need again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["cache_folder", "file_hash", "in_cache", "write_whole"]


def cache_folder() -> Path:
    """``$ONNXQ_CACHE``, or ``onnxq`` in ``$XDG_CACHE_HOME``, or ``~/.cache/onnxq``."""
    if own := os.environ.get("ONNXQ_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxq"


def write_whole(path: Path, text: str) -> None:
    """Write a small file beside its place and move it there: no half of one is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def in_cache(
    place: Path, make: Callable[[Path], Path], *, is_whole: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """A folder of the cache, made the first time.

    Two processes that want the same folder wait for each other; a killed one leaves nothing that
    looks complete.

    Args:
        place: the folder; what is in it must follow from its name.
        make: fills a scratch folder beside it, and returns the folder therein to be put in place.
        is_whole: whether the folder is complete.
    """
    if is_whole(place):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with _lock(place.parent / f".{place.name}.lock"):
        if is_whole(place):
            return place
        prefix = f".{place.name}.partial-"
        for stale in place.parent.glob(f"{prefix}*"):  # of a run that was killed; the lock is ours
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=place.parent) as scratch:
            made = make(Path(scratch))
            if place.exists():
                shutil.rmtree(place)
            made.rename(place)
    return place


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock; where the platform has none, the final rename alone decides."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
