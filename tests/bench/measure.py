"""Measure whole processes side by side: wall time, peak resident memory, ratios and spread."""

import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Sample:
    """One process: seconds of wall time and peak resident megabytes."""

    seconds: float
    peak_mb: float


def measure(code: str, *arguments: str) -> Sample:
    """Run Python code in a fresh interpreter and measure that process alone."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"benchmark process failed with exit code {process.returncode}")
    return Sample(time.perf_counter() - start, usage.ru_maxrss / 1024)


def report(title: str, samples: dict[str, list[Sample]], ours: str) -> None:
    """Print each side's median and range, and the ratio of every other side to ours."""
    print(f"\n{title}\n{machine()}")
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


def machine() -> str:
    """CPU, usable cores and Python: what every figure must carry."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(": ")[2] if lines else model
    return f"  {model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
