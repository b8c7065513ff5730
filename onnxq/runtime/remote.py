"""Models and data that are elsewhere: s3://, gs://, https://, hf://, zip://, whatever fsspec knows.

What is remote is copied once into the cache, in ranges: a read that fails is tried again, a copy
that was interrupted goes on where it stopped, and a file that has changed at its source is copied
anew. From then on it is a local file, of which weights are mapped and not loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import onnx_ir as ir

from onnxq.errors import MissingDependency, ModelLoadError, OnnxqError
from onnxq.graph.external import data_locations
from onnxq.runtime.cache import cache_folder, write_whole

__all__ = ["is_remote", "local_path", "opened", "patiently"]

_CHUNK = 16 << 20
_TRIES = 8
_WAIT = 0.2
"""Seconds before a failed read is tried again; twice as long each time."""
_VERSION_KEYS = (
    "ETag",
    "etag",
    "checksum",
    "sha256",
    "md5Hash",
    "LastModified",
    "mtime",
    "created",
)

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


def is_remote(place: str | Path) -> bool:
    """Whether a place is a URL that fsspec is to open."""
    return "://" in str(place)


def local_path(place: str | Path, *, progress: Progress | None = None) -> Path:
    """A place on this machine: itself, or a copy of what a URL means.

    Args:
        place: a path; or the URL of a file or folder. The data files that an ``.onnx`` file names
            come along.
        progress: called with (name, bytes copied, bytes in all) for each file.

    Raises:
        ModelLoadError: there is nothing, or reading failed again and again; what was copied is
            kept, and the next try goes on from there.
        MissingDependency: a package that opens this kind of URL is not installed.
    """
    if not is_remote(place):
        return Path(place)
    url = str(place).rstrip("/")
    system, root = opened(url)
    folder = cache_folder() / "remote" / hashlib.sha256(url.encode()).hexdigest()[:16]
    is_folder = _is_folder(system, root)
    files = _files(system, root, url) if is_folder else [(root, PurePosixPath(root).name)]
    for path, name in files:
        _copy(system, path, folder / name, url, progress)
    if is_folder:
        return folder
    copied = folder / PurePosixPath(root).name
    base = root.removesuffix(copied.name)
    for name in _named(copied):
        _copy(system, base + name, folder / name, f"{base}{name}, which {url} names", progress)
    return copied


def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        ModelLoadError: nobody knows this kind of URL.
        MissingDependency: a package that opens it is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingDependency("fsspec", "remote", f"Opening {url}") from error
    try:
        system, root = url_to_fs(url)
    except ImportError as error:
        kind = url.split("://")[0]
        raise MissingDependency(
            str(error.name or kind), "remote", f"Opening {url} ({kind}://)"
        ) from error
    except ValueError as error:
        raise ModelLoadError(f"{url} cannot be opened: {error}") from error
    return system, root


def _files(system: Any, root: str, url: str) -> list[tuple[str, str]]:
    """Files of a folder, with their names in the copy."""
    found = patiently(lambda: sorted(system.find(root)), url)
    if not found:
        raise _nothing(url)
    return [(path, str(PurePosixPath(path).relative_to(root))) for path in found]


def _nothing(url: str) -> ModelLoadError:
    return ModelLoadError(f"There is nothing at {url}. Check the address.")


def _is_folder(system: Any, root: str) -> bool:
    return not root.endswith((".onnx", ".npz", ".txt", ".gguf")) and bool(
        patiently(lambda: system.isdir(root), root)
    )


def _named(file: Path) -> list[str]:
    """Data files that a copied ONNX file names, in its own folder or below it.

    The others, and a file that is no model, are refused when it is loaded.
    """
    if file.suffix != ".onnx":
        return []
    try:
        names = data_locations(ir.load(file))
    except Exception as error:  # noqa: BLE001 - whatever a parser raises
        _log.info("%s is not read: %s", file, error)
        return []
    paths = [PurePosixPath(name) for name in sorted(names)]
    return [str(p) for p in paths if p.name and not p.is_absolute() and ".." not in p.parts]


def _copy(system: Any, path: str, target: Path, url: str, progress: Progress | None) -> None:
    """Copy a file unless this very version is there."""
    try:
        info = patiently(lambda: system.info(path), url)
    except FileNotFoundError as error:
        raise _nothing(url) from error
    size = info.get("size")
    identity = {"size": size, **{k: str(info[k]) for k in _VERSION_KEYS if info.get(k)}}
    note, part = (
        target.with_name(f"{target.name}.source.json"),
        target.with_name(f"{target.name}.part"),
    )
    known = json.loads(note.read_text()) if note.is_file() else None
    if target.is_file() and known == identity:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if known != identity:
        part.unlink(missing_ok=True)
        write_whole(note, json.dumps(identity))
    with part.open("ab") as stream:
        for chunk in _chunks(system, path, stream.tell(), size, url):
            stream.write(chunk)
            if progress is not None:
                progress(f"copy {target.name}", stream.tell(), size or 0)
        stream.flush()
        os.fsync(stream.fileno())
    if size is not None and part.stat().st_size != size:
        part.unlink()
        raise ModelLoadError(
            f"{path} of {url} was to have {size} bytes and gave another number: it changed while "
            "it was read. Try again."
        )
    part.replace(target)


def _chunks(system: Any, path: str, start: int, size: int | None, url: str) -> Iterator[bytes]:
    if size is None:
        yield patiently(lambda: system.cat_file(path), url)
        return
    while start < size:
        end = min(start + _CHUNK, size)

        def read(start: int = start, end: int = end) -> bytes:
            chunk: bytes = system.cat_file(path, start=start, end=end)
            if len(chunk) != end - start:
                raise OSError(f"{len(chunk)} bytes came of {end - start}")
            return chunk

        yield patiently(read, url)
        start = end


def patiently(
    read: Callable[[], Any],
    url: str,
    *,
    verb: str = "read",
    failing: type[OnnxqError] = ModelLoadError,
) -> Any:
    """What ``read`` gives, tried again when the network fails.

    Args:
        read: reads or writes a piece.
        url: for messages.
        verb: what it does, for messages.
        failing: what is raised in the end.

    Raises:
        FileNotFoundError: there is nothing.
        OnnxqError: ``failing``, when it failed every time.
    """
    wait = _WAIT
    for left in reversed(range(_TRIES)):
        try:
            return read()
        except (FileNotFoundError, NotImplementedError, OnnxqError):
            raise
        except Exception as error:
            if not left:
                raise failing(
                    f"{url} cannot be {verb}: {type(error).__name__}: {error} ({_TRIES} tries). "
                    "What was copied is kept: the same command goes on from there."
                ) from error
            _log.info("%s cannot be %s (%s); %d tries left", url, verb, error, left)
            time.sleep(wait)
            wait *= 2
    raise AssertionError
