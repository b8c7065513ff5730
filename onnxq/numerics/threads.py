"""How many threads a process uses: one number that kernels, BLAS and sessions of a runtime share.

Who computes says how many threads it takes, or None for `default_threads`: the cores that this
process may run on, or what `limited_threads` has set for the time being.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import threadpoolctl

__all__ = ["blas_threads", "default_threads", "limited_threads", "thread_limit"]

_limit: list[int] = []
"""Limits that are in force, the last one counts."""


def thread_limit() -> int | None:
    """What `limited_threads` has set; None when nothing has."""
    return _limit[-1] if _limit else None


def default_threads() -> int:
    """The number of CPUs this process may run on, or the limit that is set."""
    if _limit:
        return _limit[-1]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Let all that runs in this process use so many threads; None changes nothing.

    BLAS and OpenMP, with it torch, are limited where they are loaded already.
    """
    if count is None:
        yield
        return
    _limit.append(count)
    try:
        with threadpoolctl.threadpool_limits(limits=count):
            yield
    finally:
        _limit.pop()


@contextlib.contextmanager
def blas_threads(count: int | None) -> Iterator[None]:
    """Let the BLAS behind NumPy use so many threads; None changes nothing.

    A product over many threads has the bits of that over one (OpenBLAS parts rows and columns, not
    sums), but small ones are slower where other threads compete for the cores.
    """
    if count is None:
        yield
        return
    with threadpoolctl.threadpool_limits(limits=count, user_api="blas"):
        yield
