"""What a run did, when, and at what cost: lines of JSON through `logging`, and a row per stage.

Code anywhere says `note("site solved", site=...)` and `with stage("write"):`; without a `RunLog`
that is open, both cost next to nothing. Records go through the logger ``onnxq.run``, so a pipeline
may add handlers of its own. Each line has the time (UTC), the stage and the event, and what the
event tells: the site, seconds, peak memory, the reason.
"""

from __future__ import annotations

import contextlib
import cProfile
import datetime
import json
import logging
import pstats
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.errors import WorkFolderError
from onnxq.runtime.peak_memory import PeakWatch

__all__ = ["RunLog", "heaviest", "note", "profile_seconds", "stage", "stages_so_far"]

_log = logging.getLogger("onnxq.run")
_IO = Path("/proc/self/io")
_LAST = "run ends"
_runs: list[RunLog] = []
"""Runs that are open; what happens belongs to the last one."""


def note(event: str, **about: Any) -> None:
    """Say that something happened; values that are None are left out."""
    where = {"stage": _runs[-1].stage} if _runs and _runs[-1].stage else {}
    told = {name: value for name, value in about.items() if value is not None}
    _log.info(event, extra={"about": {**where, "event": event, **told}})


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure what is done inside, as a stage of the run; one within another is part of it."""
    run = _runs[-1] if _runs else None
    if run is None or run.stage is not None:
        yield
        return
    with run.measured(name):
        yield


def stages_so_far() -> list[dict[str, Any]]:
    """The rows of the stages that have ended, for the report of an artifact."""
    return list(_runs[-1].rows) if _runs else []


class RunLog:
    """The log of one run. A context manager: leaving it says how the run ended.

    Attributes:
        rows: of each stage that has ended: its name, seconds, cpu_seconds of this process and its
            threads, peak_mb of this process (workers not counted), read_mb and written_mb (what
            went to and came from disks), where the system tells.
        stage: the one that is running.
        profiles: files of the profiler, by stage.
    """

    def __init__(self, path: Path | None, *, profile: Path | None = None, **about: Any) -> None:
        """Begin.

        Args:
            path: the file. What it holds of a run that was killed stays, and the lines of this one
                follow; a log of a run that ended is replaced. None writes none.
            profile: a folder for the statistics of Python's profiler, one file a stage.
            about: what the first line tells.

        Raises:
            WorkFolderError: the log cannot be written there.
        """
        self.rows: list[dict[str, Any]] = []
        self.stage: str | None = None
        self.profiles: dict[str, Path] = {}
        self._profile, self._about = profile, about
        for old in () if profile is None else profile.glob("*.pstats"):
            old.unlink()
        self._handler = None if path is None else _handler(path)

    def __enter__(self) -> RunLog:
        self._level = _log.level
        _log.setLevel(logging.INFO)
        _log.propagate = False
        if self._handler is not None:
            _log.addHandler(self._handler)
        _runs.append(self)
        note("run begins", **self._about)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        outcome = "done" if error is None else type(error).__name__
        note(_LAST, outcome=outcome, reason=None if error is None else str(error))
        _runs.remove(self)
        _log.setLevel(self._level)
        if self._handler is not None:
            _log.removeHandler(self._handler)
            self._handler.close()

    @contextlib.contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """See `stage`."""
        self.stage = name
        note("stage begins")
        before, wall, cpu = _disk(), time.perf_counter(), time.process_time()
        with PeakWatch() as peak, self._profiled(name):
            try:
                yield
            except BaseException as error:
                note("stage fails", outcome=type(error).__name__, reason=str(error))
                self.stage = None
                raise
        row = {
            "stage": name,
            "seconds": round(time.perf_counter() - wall, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_mb": round(peak.highest / 1e6, 1),
            **{key: round((value - before[key]) / 1e6, 1) for key, value in _disk().items()},
        }
        self.rows.append(row)
        note("stage ends", **{key: value for key, value in row.items() if key != "stage"})
        self.stage = None

    @contextlib.contextmanager
    def _profiled(self, name: str) -> Iterator[None]:
        if self._profile is None:
            yield
            return
        file = self._profile / f"{len(self.rows):02}_{name}.pstats"
        profiler = cProfile.Profile()
        profiler.enable()
        try:
            yield
        finally:
            profiler.disable()
            self._profile.mkdir(parents=True, exist_ok=True)
            profiler.dump_stats(file)
            self.profiles[file.stem] = file


def profile_seconds(profile: Path) -> float:
    """All seconds of a profile."""
    return float(pstats.Stats(str(profile)).total_tt)  # type: ignore[attr-defined]


def heaviest(profile: Path, count: int = 10) -> list[dict[str, Any]]:
    """The functions of a profile that took most, their own code counted: one row for each."""
    found: Mapping[Any, Sequence[Any]] = pstats.Stats(str(profile)).stats  # type: ignore[attr-defined]
    order = sorted(found.items(), key=lambda item: -item[1][2])[:count]
    return [
        {
            "function": name if file == "~" else f"{Path(file).name}:{line} {name}",
            "calls": row[1],
            "own seconds": round(row[2], 2),
            "with callees": round(row[3], 2),
        }
        for (file, line, name), row in order
    ]


class _JsonLines(logging.FileHandler):
    """Writes records as lines of JSON; a disk that is full does not end the run."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        about = getattr(record, "about", {"event": record.getMessage()})
        line = {"time": moment.isoformat(timespec="milliseconds"), **about}
        return json.dumps(line, default=str)

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line: what the run writes next will say that the disk is full."""


def _handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _JsonLines(path, mode="w" if _is_ended(path) else "a", encoding="utf-8")
    except OSError as error:
        raise WorkFolderError(
            f"The log of the run cannot be written to {str(path)!r}: {error.strerror or error}. "
            "Name another file with --log, in a folder that can be written."
        ) from error


def _is_ended(path: Path) -> bool:
    """Whether the last line is the end of a run that was done."""
    if not path.is_file():
        return True
    *_, last = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    return not last or (_LAST in last and '"outcome": "done"' in last)


def _disk() -> dict[str, float]:
    """Bytes that this process has read from disks and written to them."""
    try:
        lines = dict(line.split(": ") for line in _IO.read_text(encoding="ascii").splitlines())
        return {"read_mb": int(lines["read_bytes"]), "written_mb": int(lines["write_bytes"])}
    except (OSError, ValueError, KeyError):
        return {}
