"""Workers for pieces of work that do not depend on each other: processes here, or a cluster.

`joblib` does the work; a cluster is one of its registered backends, reached by the same code. What
a piece gives must not depend on where it is made, nor on how many threads its kernels use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from onnxq.errors import MissingDependency, OnnxqError, UsageError, WorkerError
from onnxq.numerics.threads import default_threads, limited_threads
from onnxq.runtime.run_log import note

__all__ = ["Backend", "OnFailure", "Workers"]

Backend = Literal["processes", "threads", "ray", "dask"]
OnFailure = Literal["stop", "leave"]

_LOCAL = ("processes", "threads")
_TRIES = 3
"""How often a piece is given to a worker before it is given up: workers can be lost."""

Problem = TypeVar("Problem")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """How many pieces are made at once, and where.

    Attributes:
        count: how many workers.
        threads: of all of them together, and of this process while they rest; None takes the cores
            of this machine, of a cluster one for each.
        backend: ``processes`` and ``threads`` of this machine; ``ray`` and ``dask``: a cluster.
        address: of the cluster; None starts one here.
        on_failure: whether a run stops at a piece that fails, or leaves it and goes on.
    """

    count: int = 1
    threads: int | None = None
    backend: Backend = "processes"
    address: str | None = None
    on_failure: OnFailure = "stop"

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can run with."""
        for name in ("count", "threads"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UsageError(f"{number} {name} of workers: give 1 or more.")

    @property
    def threads_here(self) -> int:
        """Threads of this process while no worker runs."""
        return self.threads or default_threads()

    def threads_each(self, pieces: int) -> int:
        """Threads for the kernels of one of so many pieces that are there at once."""
        busy = max(1, min(self.count, pieces))
        if busy > 1 and self.threads is None and self.backend not in _LOCAL:
            return 1
        return max(1, self.threads_here // busy)

    def map(
        self,
        function: Callable[[Problem, int], Result],
        problems: Sequence[Problem],
        keep: Callable[[int, Result], None],
        fail: Callable[[int, OnnxqError], None],
    ) -> None:
        """Call ``function`` on every problem, and ``keep`` with its number and what it gave.

        A single problem is solved here, with the threads of all workers. A problem whose worker was
        lost is given to another one, the third time to one that has nothing else to do; those that
        are kept are not made again.

        Args:
            function: of a module, so that another process finds it; given a problem and how many
                threads its kernels may use.
            problems: what can be sent to another process.
            keep: called in this process, in the order of the problems, as results arrive.
            fail: called in place of ``keep`` with what ``function`` raised, or with a `WorkerError`
                for a problem that lost its worker three times. It raises, or the others go on.
        """
        if self.count == 1 or len(problems) < 2:
            with limited_threads(self.threads_here):
                for number in range(len(problems)):  # one of them is in memory at a time
                    found = _tried(function, problems[number], self.threads_here)
                    _hand(number, found, keep, fail)
            return
        done = lost = 0
        while done < len(problems):
            alone = lost >= _TRIES - 1
            some = problems[done : done + 1] if alone else problems[done:]
            with _quiet(), contextlib.closing(self._results(function, some)) as results:
                try:
                    for result in results:
                        _hand(done, result, keep, fail)
                        done, lost = done + 1, 0 if alone else lost
                except _lost() as error:
                    _cluster.cache_clear()
                    lost += 1
                    note("worker lost", reason=type(error).__name__, times=lost)
                    if alone:
                        fail(done, _given_up(error))
                        done, lost = done + 1, 0

    def _results(
        self, function: Callable[[Problem, int], Result], problems: Sequence[Problem]
    ) -> Generator[Result | _Failure, None, None]:
        import joblib

        threads = self.threads_each(len(problems))
        if self.backend == "threads":
            jobs = (joblib.delayed(_tried)(function, problem, threads) for problem in problems)
            with limited_threads(threads):
                yield from joblib.Parallel(
                    self.count, backend="threading", return_as="generator", pre_dispatch="2*n_jobs"
                )(jobs)
            return
        jobs = (joblib.delayed(_alone)(function, problem, threads) for problem in problems)
        if self.backend != "processes":
            yield from _cluster(self.backend, self.address, self.count)(jobs)
            return
        # the same number every time: with another one joblib would start the processes anew
        inner = self.threads_each(self.count)
        with joblib.parallel_config("loky", n_jobs=self.count, inner_max_num_threads=inner):
            yield from joblib.Parallel(return_as="generator", pre_dispatch="2*n_jobs")(jobs)


def _alone(
    function: Callable[[Problem, int], Result], problem: Problem, threads: int
) -> Result | _Failure:
    """Solve a problem in a process of its own."""
    with limited_threads(threads):
        return _tried(function, problem, threads)


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without joblib's warning that pieces were given up: the error that follows says why."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tasks which were still being processed")
        yield


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What came of a problem whose function raised."""

    error: OnnxqError


def _tried(
    function: Callable[[Problem, int], Result], problem: Problem, threads: int
) -> Result | _Failure:
    try:
        return function(problem, threads)
    except OnnxqError as error:
        return _Failure(error)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong must reach the run
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        return _Failure(WorkerError(f"{type(error).__name__}: {error} ({where})"))


def _hand(
    number: int,
    result: Result | _Failure,
    keep: Callable[[int, Result], None],
    fail: Callable[[int, OnnxqError], None],
) -> None:
    if isinstance(result, _Failure):
        fail(number, result.error)
    else:
        keep(number, result)


def _given_up(error: BaseException) -> WorkerError:
    return WorkerError(
        f"it lost its worker {_TRIES} times ({type(error).__name__}): workers run out of memory "
        "most often; give fewer --workers, or more memory"
    )


@functools.cache
def _cluster(backend: str, address: str | None, count: int) -> Any:
    """What runs jobs on a cluster, joined or started on this machine; opened once a process.

    It stays open: Ray starts its workers anew for each pool, which takes seconds.
    """
    import joblib

    if backend == "ray":
        ray = _module("ray", "Workers of Ray")
        _module("ray.util.joblib", "Workers of Ray").register_ray()
        if not ray.is_initialized():
            here = {} if address else {"address": "local", "num_cpus": count}
            try:
                quiet = {"log_to_driver": False, "configure_logging": False}
                ray.init(**{"address": address, **quiet, **here})
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _no_cluster("Ray", address, error) from error
    else:
        client = _module("dask.distributed", "Workers of Dask").Client
        new = {"n_workers": count, "threads_per_worker": 1}
        try:
            client(**({"address": address} if address else new))
        except (OSError, ValueError) as error:
            raise _no_cluster("Dask", address, error) from error
    with joblib.parallel_config(backend, n_jobs=count):
        return joblib.Parallel().__enter__()


def _no_cluster(name: str, address: str | None, error: Exception) -> WorkerError:
    where = f"at {address!r}" if address else "on this machine"
    return WorkerError(
        f"The {name} cluster {where} cannot be joined: {error}. Check --address, that its nodes "
        "have the same Python and packages, and that this machine may talk to it."
    )


def _module(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(name.split(".")[0], "cluster", purpose) from error


def _lost() -> tuple[type[BaseException], ...]:
    """What a worker that is gone raises here."""
    from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

    kinds: list[type[BaseException]] = [BrokenProcessPool, TerminatedWorkerError]
    if "ray" in sys.modules:
        known = importlib.import_module("ray.exceptions")
        kinds += [known.WorkerCrashedError, known.RayActorError]
    return tuple(kinds)
