"""The library of operators for 64-bit ARM Linux, cross-compiled from onnxq's sources.

It is kept in the cache by a hash of the sources and the compiler's path. That its kernels compute
what they should is tested by ``make test-arm``; what a model computes with it, by
`onnxq.export.arm64_machine`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import ExportError, MissingProgram
from onnxq.runtime.cache import cache_folder, in_cache

__all__ = ["LIBRARY_NAME", "arm64_library", "needs_of", "require_arm64"]

LIBRARY_NAME = "libonnxq_ops.so"
_SOURCES = (".cpp", ".h", ".cmake", "CMakeLists.txt")
_NEEDED = re.compile(rb"\0(GLIBC|GLIBCXX|CXXABI)_(\d+(?:\.\d+)+)")
"""Names of versions of system libraries in an ELF file."""
_ARM64 = 183
"""EM_AARCH64 of the ELF header."""


def arm64_library(compiler: str) -> Path:
    """The library, compiled the first time, from the cache later.

    Args:
        compiler: a C++ compiler for 64-bit ARM Linux, by its name or path.

    Raises:
        MissingProgram: the compiler or cmake is not installed.
        ExportError: this installation has no sources, or they do not compile.
    """
    sources = _sources()
    tools = [_program(*known) for known in ((compiler, "g++-aarch64-linux-gnu"), ("cmake",) * 2)]
    digest = hashlib.sha256(tools[0].encode())
    for path in sorted(_files(sources)):
        digest.update(path.relative_to(sources).as_posix().encode() + path.read_bytes())
    place = cache_folder() / "arm64" / f"library-{digest.hexdigest()[:16]}"
    return in_cache(place, lambda scratch: _build(sources, scratch, *tools)) / LIBRARY_NAME


def require_arm64(path: Path) -> None:
    """Raise `ExportError` unless a file is a library for 64-bit ARM."""
    if not path.is_file() or _machine_of(path) != _ARM64:
        raise ExportError(
            f"{path} is no library for 64-bit ARM Linux: give {LIBRARY_NAME} of a build for it, or "
            "leave the option out to compile one."
        )


def needs_of(library: Path) -> tuple[str, ...]:
    """The newest version of each system library that an ELF file names, e.g. ``GLIBC 2.34``."""
    newest: dict[str, tuple[int, ...]] = {}
    for name, version in _NEEDED.findall(library.read_bytes()):
        parts = tuple(int(part) for part in version.split(b"."))
        newest[name.decode()] = max(parts, newest.get(name.decode(), parts))
    return tuple(f"{name} {'.'.join(map(str, parts))}" for name, parts in sorted(newest.items()))


def _machine_of(path: Path) -> int:
    """The machine of an ELF file; 0 when it is no ELF file."""
    with path.open("rb") as file:
        head = file.read(20)
    return int(struct.unpack("<H", head[18:20])[0]) if head[:4] == b"\x7fELF" else 0


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingProgram(name, package, "Compiling the operators for 64-bit ARM")
    return found


def _sources() -> Path:
    folder = Path(str(importlib.resources.files("onnxq.custom_ops")))
    if not (folder / "CMakeLists.txt").is_file():
        raise ExportError(
            "This installation of onnxq has no C++ sources, so the operators cannot be compiled "
            "for 64-bit ARM: install it from a checkout with 'pip install --editable .', or give "
            f"{LIBRARY_NAME} of such a build as the option 'built_library'."
        )
    return folder


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.name.endswith(_SOURCES))


def _build(sources: Path, scratch: Path, compiler: str, cmake: str) -> Path:
    """Compile the library; the folder that holds just it."""
    build, kept = scratch / "build", scratch / "kept"
    options = (
        "-DONNXQ_LIBRARY=ON", "-DONNXQ_CUDA=OFF", "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}",
    )  # fmt: skip
    _run([cmake, "-S", str(sources), "-B", str(build), *options])
    _run([cmake, "--build", str(build), "-j", "2"])
    kept.mkdir()
    shutil.copyfile(build / LIBRARY_NAME, kept / LIBRARY_NAME)
    require_arm64(kept / LIBRARY_NAME)
    return kept


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise ExportError(f"Compiling the operators for 64-bit ARM failed. Its last lines:\n{tail}")
