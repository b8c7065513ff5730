"""How fast this machine is, measured once on small shapes and kept in the user's cache.

Times follow from counts of operations over these rates. They were taken when the machine was as
busy as it was: on a machine that does other work, times are worth a factor of two.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxq.formats import Format
from onnxq.numerics.hadamard import fast_apply
from onnxq.numerics.linalg import factor_hessian
from onnxq.numerics.threads import blas_threads, default_threads
from onnxq.passes.channel_labels import Labels
from onnxq.passes.rotation_weights import turned
from onnxq.passes.site_solving import SiteProblem, solve_site
from onnxq.planning.overhead import Overhead, measured_overhead
from onnxq.runtime.measured_table import MeasuredTable
from onnxq.solvers.nearest import nearest
from onnxq.solvers.statistics import Statistics

__all__ = ["Rates"]

_SIDE = 512
"""Rows and columns of the weight on which solvers are timed."""
_RUNS, _ENOUGH = 20, 0.5
"""Runs of which the fastest counts, or as many as fit these seconds."""


class Rates:
    """Seconds for each unit of work; whatever is asked for the first time is measured then."""

    def __init__(self, table: MeasuredTable | None = None) -> None:
        """Use the table in the cache unless another one is given."""
        self._table = table or MeasuredTable("planning/rates")

    @functools.cached_property
    def overhead(self) -> Overhead:
        """Memory that no shape explains."""
        return measured_overhead(self._table)

    @property
    def multiply(self) -> float:
        """Of one multiplication and addition in float32, in a large product."""
        return self._get("multiply-add", _multiplied)

    @property
    def eliminate(self) -> float:
        """Of the factor of a Hessian, over the cube of its columns."""
        return self._get("factor", _factored)

    @property
    def rotate(self) -> float:
        """Of a weight multiplied by a Hadamard matrix in float64, from and to float16."""
        return self._get("rotate", _rotated)

    @property
    def copy(self) -> float:
        """Of a byte copied in memory, to pages that are new."""
        return self._get("copy", _copied)

    @property
    def store(self) -> float:
        """Of a byte written to a temporary file and synced, and of one read again."""
        return self._get("store", _stored)

    def round_nearest(self, fmt: Format, options: Mapping[str, Any]) -> float:
        """Of a weight rounded to nearest."""

        def measure() -> float:
            rows = _weight(256, 1024)
            return _seconds(lambda: nearest(rows, fmt, **options)) / rows.size

        return self._get(f"nearest {fmt} {_text(options)}", measure)

    def solve(
        self, solver: str, fmt: Format, options: Mapping[str, Any], *, refit: bool
    ) -> tuple[float, float]:
        """Of a weight that a solver chooses codes for: fixed, and for each column of the matrix.

        Each weight is multiplied with half the columns for feedback, and twice with all of them,
        in float64, for its error. What else a solver does is measured on one small shape. The
        factor of the Hessian is not counted: see `eliminate`.
        """
        slope = 4.5 * self.multiply
        key = f"solve {solver} {fmt} {_text(options)} {refit}"

        def measure() -> float:
            problem = _problem(fmt, solver, options, refit)
            whole = _seconds(lambda: solve_site(problem, default_threads()))
            return (whole - self.eliminate * _SIDE**3) / problem.rows.size

        return max(0.0, self._get(key, measure) - slope * _SIDE), slope

    def _get(self, key: str, measure: Callable[[], float]) -> float:
        return self._table.get(f"seconds of {key}", measure)


def _seconds(run: Callable[[], object]) -> float:
    """The least of some runs, the one that other work disturbed least, after one more."""
    run()
    found: list[float] = []
    while len(found) < 2 or (len(found) < _RUNS and sum(found) < _ENOUGH):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _multiplied() -> float:
    """One thread at a time: on a busy machine, those of one product wait for one another."""
    size = 512
    x = np.ones((size, size), np.float32)
    with blas_threads(1):
        return _seconds(lambda: x @ x) / size**3 / default_threads()


def _factored() -> float:
    size = 768
    hessian = np.eye(size) * 2 + 1
    return _seconds(lambda: factor_hessian(hessian, exact=False)) / size**3


def _rotated() -> float:
    weight = _weight(2048, 1024).astype(np.float16)
    labels = Labels((0,), np.arange(len(weight)))
    return _seconds(lambda: turned(weight, labels, len(weight), [fast_apply])) / weight.size


def _copied() -> float:
    x = np.ones(32 << 20, np.uint8)
    return _seconds(x.copy) / x.size


def _stored() -> float:
    content = np.random.default_rng(0).bytes(64 << 20)
    with tempfile.TemporaryFile(prefix="onnxq-") as file:
        start = time.perf_counter()
        file.write(content)
        file.flush()
        file.seek(0)
        file.read()
        return (time.perf_counter() - start) / len(content)


def _text(options: Mapping[str, Any]) -> str:
    return json.dumps(dict(options), sort_keys=True, default=str)


def _weight(rows: int, columns: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def _problem(fmt: Format, solver: str, options: Mapping[str, Any], refit: bool) -> SiteProblem:
    x = _weight(2 * _SIDE, _SIDE)
    hessian = x.T @ x / np.float64(len(x))
    return SiteProblem(
        rows=_weight(_SIDE, _SIDE),
        statistics=(Statistics(hessian=hessian, drift=np.zeros_like(hessian)),),
        fmt=fmt,
        solver=solver,
        options=options,
        seed=0,
        refit=refit,
    )
