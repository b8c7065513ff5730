"""The machine a figure was measured on: what every speed claim carries."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["available_memory", "machine"]


def machine() -> str:
    """Processor, usable cores and Python version, in one line."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return f"{_processor()}, {cores} cores, Python {platform.python_version()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that a process may still take without swapping; None where the system does not tell."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None
