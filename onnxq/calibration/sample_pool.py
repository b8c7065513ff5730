"""Samples run through a session some at a time, one thread each, and given back in their order.

A sample a thread keeps the cores busier than an operator over all threads: nothing waits at the end
of every node, and what comes out has the bits that one thread gives.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from onnxq.numerics.threads import default_threads
from onnxq.runtime.closing import Closing

__all__ = ["SamplePool"]

Result = TypeVar("Result")


class SamplePool(Closing):
    """Threads for the samples of one walk. A context manager: leaving it ends them.

    Attributes:
        threads: of all samples together.
        pool: runs other work beside the samples.
        at_once: how many samples run at the same time.
        inner: threads inside an operator of each.
    """

    def __init__(self, count: int, threads: int | None) -> None:
        """Open the threads.

        Args:
            count: how many samples there are.
            threads: of all of them together; None takes the cores there are.
        """
        self.threads = threads or default_threads()
        self.at_once = max(1, min(self.threads, count))
        self.inner = self.threads // self.at_once
        self.pool = ThreadPoolExecutor(self.threads)
        self._count = count

    def each(self, run: Callable[[int], Result]) -> Iterator[Result]:
        """What ``run`` gives for every sample, by number, in order.

        No more results wait to be taken than run at once, and one.
        """
        if self.at_once == 1:
            yield from map(run, range(self._count))
            return
        waiting: collections.deque[Future[Result]] = collections.deque()
        try:
            for index in range(self._count):
                waiting.append(self.pool.submit(run, index))
                if len(waiting) > self.at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(cancel_futures=True)
