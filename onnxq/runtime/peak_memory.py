"""Peak memory of loading and running a model, measured in a fresh process.

The measuring process would otherwise see its own arrays, other models, and what the allocator has
kept of both. Linux counts the peak of a process from its own start (``VmHWM``); the ``ru_maxrss``
of other systems also holds what the parent had when it was forked, so there it is an upper bound.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxq.errors import OnnxqError

__all__ = ["PeakMemory", "PeakWatch", "peak_memory"]

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_EVERY = 0.05
"""Seconds between two looks at the memory of this process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Resident memory of a process that ran a model, in bytes.

    Attributes:
        idle: after importing the runtime, before the model is loaded.
        loaded: highest until the model was loaded.
        peak: highest in all.
    """

    idle: int
    loaded: int
    peak: int


class PeakWatch:
    """The highest resident memory of this process while it is open. A context manager.

    The system keeps the highest of the whole process, exactly; where a stretch of work stays below
    it, this is the highest of what was seen twenty times a second.

    Attributes:
        highest: in bytes, once it is closed.
    """

    highest: int = 0

    def __enter__(self) -> PeakWatch:
        self._before, self._seen = _highest(), _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        highest = _highest()
        self.highest = highest if highest > self._before else max(self._seen, _resident())

    def _look(self) -> None:
        while not self._done.wait(_EVERY):
            self._seen = max(self._seen, _resident())


def _resident() -> int:
    """Resident memory of this process now, in bytes; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def peak_memory(
    path: str | Path,
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    threads: int | None = None,
    lean: bool = False,
) -> PeakMemory:
    """Load a model file in a fresh process, run every sample once, and report resident memory.

    Weights that the runtime maps from a file count once they are read.

    Args:
        path: the ``.onnx`` file.
        samples: inputs by name; none measures loading alone. Strings are not supported.
        threads: threads inside an operator; None leaves the choice to the runtime.
        lean: as in `open_session`: no arena, whose pieces are larger than what is asked of it.

    Raises:
        OnnxqError: the process failed; what it wrote last is kept.
    """
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        for index, sample in enumerate(samples):
            np.savez(Path(folder) / f"{index}.npz", **dict(sample))  # type: ignore[arg-type]
        # -P keeps a checkout in the current folder from shadowing the installed package.
        command = [sys.executable, "-P", "-m", __name__, str(path), folder, str(threads or 0)]
        command += ["lean"] if lean else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OnnxqError(f"Measuring the memory of {path} failed: {last}")
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def _highest() -> int:
    """Highest resident memory of this process so far, in bytes."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _measure(path: str, folder: str, threads: int, lean: bool) -> PeakMemory:
    """What the fresh process does."""
    import onnxruntime  # noqa: F401 - its memory belongs to the idle figure

    from onnxq.runtime.session import open_session

    idle = _highest()
    with open_session(path, threads=threads or None, lean=lean) as session:
        loaded = _highest()
        for file in sorted(Path(folder).glob("*.npz")):
            with np.load(file) as arrays:
                session.run(dict(arrays))
        return PeakMemory(idle=idle, loaded=loaded, peak=_highest())


if __name__ == "__main__":
    found = _measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), "lean" in sys.argv[4:])
    sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
