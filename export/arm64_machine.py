"""A 64-bit ARM Linux on this machine: ONNX Runtime's own wheel in Debian's Python, under QEMU.

QEMU translates the programs of one processor for another, so the very kernels run that run on a
device; only their speed says nothing. Everything is fetched once into the cache (45 MB): Debian's
packages by ``apt-get download``, which installs nothing and needs no rights, the wheels by
``pip download``. The C libraries are those of Debian's cross compiler.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxq.errors import ExportError, MissingDependency, MissingProgram, UnsupportedGraph
from onnxq.runtime.cache import cache_folder, in_cache

__all__ = ["CPUS", "Arm64Machine", "Job", "arm64_machine"]

CPUS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "cortex-a72": ("cortex-a72", "0xd08", ""),
        "neoverse-n1": ("neoverse-n1", "0xd0c", "asimdhp asimdrdm asimddp"),
        "neoverse-v1": ("max,sme=off", "0xd40", "asimdhp asimdrdm asimddp i8mm bf16 sve"),
    }
)
"""QEMU's name of each CPU, and its part and features for ``/proc/cpuinfo``: the baseline (Raspberry
Pi 4), with products of four bytes, with matrix products and SVE too. QEMU 7.2 has no neoverse-v1;
its ``max`` with SME on lets ONNX Runtime 1.31.1 compute wrong products."""

_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")
_FOLDERS = ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu")
_LOADER = "ld-linux-aarch64.so.1"
_PACKAGES = ("zlib1g", "libexpat1", "libffi8")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_PURPOSE = "Running a model on 64-bit ARM"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One model to run.

    Attributes:
        model: the file.
        samples: inputs by name.
        config: entries of the session configuration.
        library: of operators, for 64-bit ARM.
        optimized: folder to write the optimized graph and, of samples, the profile into.
    """

    model: Path
    samples: Sequence[Mapping[str, np.ndarray]] = ()
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    library: Path | None = None
    optimized: Path | None = None


@dataclasses.dataclass(frozen=True)
class Arm64Machine:
    """A machine that runs models; see `arm64_machine`.

    Attributes:
        root: its files.
        emulator: QEMU.
    """

    root: Path
    emulator: str

    def run(self, jobs: Sequence[Job], cpu: str) -> list[list[dict[str, np.ndarray]]]:
        """Outputs by name, for each job and each of its samples; all jobs in one process.

        Args:
            jobs: what to run.
            cpu: see `CPUS`.

        Raises:
            UnsupportedGraph: ONNX Runtime refuses a model or fails: its last lines.
        """
        with tempfile.TemporaryDirectory(prefix="onnxq-arm64-") as name:
            folder = Path(name)
            told = [_write_job(job, folder, number) for number, job in enumerate(jobs)]
            (folder / "jobs.json").write_text(json.dumps(told), encoding="utf-8")
            script = importlib.resources.files("onnxq.export") / "arm64" / "run_model.py"
            self._python([str(script), str(folder / "jobs.json")], cpu, folder)
            return [[_arrays(Path(path)) for path in job["results"]] for job in told]

    def _python(self, arguments: Sequence[str], cpu: str, folder: Path) -> None:
        """Run Python there; QEMU takes files of the machine from a folder before those of here."""
        libraries = (_LIBRARIES, *(self.root / part for part in _FOLDERS))
        command = [
            *(self.emulator, "-cpu", CPUS[cpu][0], "-L", str(_system(folder, cpu))),
            *("-E", f"LD_LIBRARY_PATH={':'.join(map(str, libraries))}"),
            *("-E", f"PYTHONHOME={self.root / 'usr'}", "-E", f"PYTHONPATH={self.root / 'wheels'}"),
            *("-E", "PYTHONDONTWRITEBYTECODE=1", str(next(self.root.glob("usr/bin/python3.*")))),
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip()[-1500:] or f"it ended with {done.returncode}"
            raise UnsupportedGraph(f"ONNX Runtime does not run the model on {cpu} in QEMU: {said}")


def _write_job(job: Job, folder: Path, number: int) -> dict[str, Any]:
    """The job as ``run_model.py`` reads it, with its inputs in files."""
    names = [f"{number}-{sample}.npz" for sample in range(len(job.samples))]
    for name, sample in zip(names, job.samples, strict=True):
        np.savez(folder / f"feeds{name}", **sample)  # type: ignore[arg-type]
    return {
        "model": str(job.model.resolve()),
        "config": dict(job.config),
        "library": str(job.library.resolve()) if job.library else None,
        "feeds": [str(folder / f"feeds{name}") for name in names],
        "results": [str(folder / f"results{name}") for name in names],
        "optimized": str(job.optimized) if job.optimized else None,
    }


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def arm64_machine() -> Arm64Machine:
    """The machine, with the version of ONNX Runtime that is installed here.

    Raises:
        MissingProgram: QEMU, apt-get or the C libraries of the cross compiler are not there.
        ExportError: what it is made of could not be fetched; the last lines of the program.
    """
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        raise MissingProgram("qemu-aarch64-static", "qemu-user-static", _PURPOSE)
    if not (_LIBRARIES / _LOADER).exists():
        raise MissingProgram("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu", _PURPOSE)
    wheels = {"onnxruntime": _runtime_version(), "numpy": importlib.metadata.version("numpy")}
    name = "-".join(f"{key}-{version}" for key, version in wheels.items())
    place = cache_folder() / "arm64" / f"machine-{name}"
    return Arm64Machine(in_cache(place, lambda scratch: _install(scratch, wheels)), emulator)


def _runtime_version() -> str:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise MissingDependency("onnxruntime", "cpu", _PURPOSE)


def _install(scratch: Path, wheels: Mapping[str, str]) -> Path:
    root = scratch / "root"
    root.mkdir()
    version = _unpack_debian(scratch, root)
    fetched = scratch / "wheels"
    named = [f"{name}=={number}" for name, number in wheels.items()]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    _call(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         *platforms, "--python-version", version, "--dest", str(fetched), *named]
    )  # fmt: skip
    for path in fetched.glob("*.whl"):
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(root / "wheels")
    return root


def _unpack_debian(scratch: Path, root: Path) -> str:
    """Unpack Debian's Python for 64-bit ARM; its version, as 3.11."""
    for name, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(name) is None:
            raise MissingProgram(name, package, f"{_PURPOSE}, for the first time,")
    lists, cache, debs = (scratch / part for part in ("lists", "cache", "debs"))
    for folder in (lists / "partial", cache / "archives" / "partial", debs):
        folder.mkdir(parents=True)
    (scratch / "status").touch()
    options = [
        "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64",
        "-o", f"Dir::State::lists={lists}", "-o", f"Dir::State::status={scratch / 'status'}",
        "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User=", "-qq",
    ]  # fmt: skip
    _call(["apt-get", *options, "update"])
    said = _call(["apt-cache", *options, "depends", "python3-minimal"])
    found = re.search(r"python(3\.\d+)-minimal", said)
    if found is None:
        raise ExportError(f"Debian's package python3-minimal names no Python: {said!r}")
    python = f"python{found[1]}"
    names = (f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib", *_PACKAGES)
    _call(["apt-get", *options, "download", *names], cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        _call(["dpkg-deb", "-x", str(deb), str(root)])
    return found[1]


def _call(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise ExportError(
            f"{Path(command[0]).name} could not fetch the 64-bit ARM machine; its last lines:\n"
            f"{tail}"
        )
    return done.stdout


def _system(folder: Path, cpu: str) -> Path:
    """What QEMU finds there alone: the loader, and a ``/proc/cpuinfo`` of the processor."""
    system = folder / "system"
    (system / "lib").mkdir(parents=True)
    (system / "proc").mkdir()
    shutil.copy(_LIBRARIES / _LOADER, system / "lib" / _LOADER)
    _, part, features = CPUS[cpu]
    text = "".join(
        f"processor\t: {number}\nBogoMIPS\t: 100.00\n"
        f"Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid {features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n"
        f"CPU part\t: {part}\nCPU revision\t: 1\n\n"
        for number in range(os.cpu_count() or 1)
    )
    (system / "proc" / "cpuinfo").write_text(text, encoding="utf-8")
    return system
