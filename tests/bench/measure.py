"""Measure whole processes side by side: wall time, peak resident memory, ratios and spread."""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from onnxq.runtime.machine import machine


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


def alternate(
    sides: dict[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float],
    settle: float = 0.0,
) -> dict[str, list[float]]:
    """Microseconds of a call of each side in each round: as many calls as fit into ``seconds``.

    With ``settle`` there is a pause of so many seconds before each side, in which threads of the
    side before stop to spin, and one call that is not timed.
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
            if settle:
                time.sleep(settle)
                side()
            start = clock()
            for _ in range(calls[name]):
                side()
            times[name].append((clock() - start) / calls[name] * 1e6)
    return times
