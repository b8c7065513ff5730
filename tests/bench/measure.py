"""Measure whole processes side by side: wall time, peak resident memory, ratios and spread."""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from onnxq.runtime.machine import machine

_CORES = os.sched_getaffinity(0)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One process: seconds of wall time and peak resident megabytes."""

    seconds: float
    peak_mb: float


_PEAK = """
import os as _os, pathlib as _pathlib
_status = _pathlib.Path("/proc/self/status").read_text()
_pathlib.Path(_os.environ["BENCH_PEAK"]).write_text(_status.split("VmHWM:")[1].split()[0])
"""


def measure(code: str, *arguments: str) -> Sample:
    """Run Python code in a fresh interpreter and measure that process alone.

    The peak is the kernel's VmHWM: ``ru_maxrss`` of a child starts at the resident size of its
    parent, which here has just generated a model.
    """
    with tempfile.NamedTemporaryFile("r") as peak:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code + _PEAK, *arguments],
            env={**os.environ, "BENCH_PEAK": peak.name},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return Sample(time.perf_counter() - start, int(peak.read()) / 1024)


def report(title: str, samples: dict[str, list[Sample]], ours: str) -> None:
    """Print each side's median and range, and the ratio of every other side to ours."""
    print(f"\n{title}\n  {machine()}")
    for name, runs in samples.items():
        times = [run.seconds for run in runs]
        peak = max(run.peak_mb for run in runs)
        print(
            f"  {name:24s} {statistics.median(times):8.2f} s "
            f"({min(times):.2f} to {max(times):.2f})   peak {peak:7.0f} MB"
        )
    for name, runs in samples.items():
        if name != ours:
            ratios = [a.seconds / b.seconds for a, b in zip(runs, samples[ours], strict=True)]
            print(
                f"  {name} / {ours}: {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


def pin_threads(threads: int) -> None:
    """Keep the main thread of this process on the first core, and all others on those behind it.

    A pool whose thread was woken on the core of the one that waits for it costs whole ticks of the
    scheduler, and which pool meets this is chance. Pools are assumed to have been opened one after
    the other, each with ``threads - 1`` threads of its own.
    """
    cores = sorted(_CORES)[:threads]
    if len(cores) < threads:
        raise SystemExit(f"{threads} threads are wanted, and this process has {len(cores)} cores.")
    os.sched_setaffinity(os.getpid(), cores[:1])
    for number, thread in enumerate(_other_threads()):
        os.sched_setaffinity(thread, [(cores[1:] or cores)[number % max(1, threads - 1)]])


def _other_threads() -> list[int]:
    """Threads of this process but the main one, in the order in which they began."""
    begun = {int(task.name): _stat(task)[19] for task in Path("/proc/self/task").iterdir()}
    return sorted(begun.keys() - {os.getpid()}, key=lambda thread: (int(begun[thread]), thread))


def _stat(task: Path) -> list[str]:
    """What the kernel tells of a thread (proc_pid_stat(5)), from its state, field 3, onwards."""
    return (task / "stat").read_text().rpartition(")")[2].split()


def wait_for_rest(most: float = 2.0) -> None:
    """Wait until no other thread of this process runs, for so many seconds at most.

    Idle threads of a pool spin before they sleep: for tens of milliseconds in ONNX Runtime, for
    hundreds in ggml.
    """
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        time.sleep(0.005)
        tasks = (Path("/proc/self/task") / str(thread) for thread in _other_threads())
        if all(_stat(task)[0] != "R" for task in tasks):
            return


def alternate(
    sides: dict[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float],
    settle: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Microseconds of a call of each side in each round: as many calls as fit into ``seconds``.

    With ``settle`` it is called before each side, and then one call that is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    calls = {}
    for name, side in sides.items():
        side()
        start = clock()
        side()
        calls[name] = max(1, int(seconds / (clock() - start + 1e-9)))
    for _ in range(rounds):
        for name, side in sides.items():
            if settle is not None:
                settle()
                side()
            start = clock()
            for _ in range(calls[name]):
                side()
            times[name].append((clock() - start) / calls[name] * 1e6)
    return times
