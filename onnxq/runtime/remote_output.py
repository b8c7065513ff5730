"""Artifacts that go elsewhere: built and verified here, then copied to a URL file by file.

The file that makes a folder an artifact goes last and is taken away first, so nobody finds half of
one. Each file is read back and compared by its checksum. A copy that was interrupted goes on with
the files that are not there yet: which ones are is written down beside the local copy.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from onnxq.errors import ExportError
from onnxq.runtime.cache import cache_folder, file_hash, write_whole
from onnxq.runtime.remote import opened, patiently

__all__ = ["copy_out", "local_output", "refuse_occupied_url"]

_CHUNK = 16 << 20
Progress = Callable[[str, int, int], None]


def local_output(url: str) -> Path:
    """Where what is to go to a URL is built: a folder of the cache, which stays as a copy."""
    url = url.rstrip("/")
    name = PurePosixPath(url).name
    return cache_folder() / "outputs" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def refuse_occupied_url(url: str, mark: str, overwrite: bool) -> None:
    """Raise unless the place is free, or holds a folder with the file ``mark``.

    Raises:
        ExportError: it holds other things, which are left alone, or cannot be asked.
    """
    url = url.rstrip("/")
    system, root = opened(url)
    names = set(_there(system, root, url))
    if names and mark not in names and not overwrite and not _note(url).is_file():
        raise ExportError(
            f"{url} holds {sorted(names)[0]!r} and no artifact of onnxq: nothing was written. Name "
            "another place, or pass --overwrite to write over it."
        )


def copy_out(folder: Path, url: str, mark: str, progress: Progress) -> None:
    """Copy the files of a folder to a URL.

    Args:
        folder: with files only.
        url: of the folder there; files of an earlier copy that are not in this one are removed.
        mark: the file that goes last.
        progress: called with (name, files done, files in all).

    Raises:
        ExportError: writing failed again and again, or what was written reads otherwise.
        MissingDependency: a package that opens this kind of URL is not installed.
    """
    url = url.rstrip("/")
    system, root = opened(url)
    note = _note(url)
    done: dict[str, str] = json.loads(note.read_text()) if note.is_file() else {}
    there = _there(system, root, url)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    files.sort(key=lambda file: file.name == mark)
    hashes = {file.name: file_hash(file) for file in files}
    done = {n: h for n, h in done.items() if n in there and n != mark and hashes.get(n) == h}
    write_whole(note, json.dumps(done))
    old = [mark, *(name for name in there if name not in hashes)] if mark in there else []
    for name in old:
        _patient(functools.partial(system.rm_file, f"{root}/{name}"), url)
    _patient(lambda: system.makedirs(root, exist_ok=True), url)
    for number, file in enumerate(files):
        progress(f"copy to {url}", number, len(files))
        if file.name not in done:
            _put(system, file, f"{root}/{file.name}", hashes[file.name], url)
            done[file.name] = hashes[file.name]
            write_whole(note, json.dumps(done))
    progress(f"copy to {url}", len(files), len(files))
    note.unlink()


def _put(system: Any, file: Path, place: str, wanted: str, url: str) -> None:
    """Write a file and read it back."""

    def put() -> None:
        system.put_file(str(file), place)
        size = system.info(place)["size"]
        if size != file.stat().st_size or _hash_at(system, place, size) != wanted:
            raise OSError(f"{file.name} reads otherwise than it was written")

    _patient(put, url)


def _note(url: str) -> Path:
    """What of a copy that has not ended is there, by name: checksums."""
    folder = local_output(url)
    return folder.with_name(f"{folder.name}.copied.json")


def _there(system: Any, root: str, url: str) -> dict[str, int | None]:
    """Names and sizes of the files in a folder; none when it is missing."""
    try:
        system.invalidate_cache()
        found = _patient(lambda: system.ls(root, detail=True), url)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {PurePosixPath(one["name"]).name: one.get("size") for one in found}


def _patient(act: Callable[[], Any], url: str) -> Any:
    return patiently(act, url, verb="written", failing=ExportError)


def _hash_at(system: Any, place: str, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, _CHUNK):
        digest.update(system.cat_file(place, start=start, end=min(start + _CHUNK, size)))
    return digest.hexdigest()
