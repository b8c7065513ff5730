"""Choosing the codes of one site: a pure function, so that another process can do it.

`solve_site` takes all it needs in a `SiteProblem` and gives a `SolvedSite`: the packed arrays, the
error they make on the calibration data, what moves the bias, and columns kept in full precision.
Both are plain arrays and values; `SolvedSite` can be kept in a file and read again.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration.segment_model import NewWeight
from onnxq.formats import Arrays, Format, IntFormat, pack_codes, unpack_codes
from onnxq.graph.scratch import Scratch
from onnxq.runtime.work_folder import Piece
from onnxq.solvers.correct_bias import correct_bias
from onnxq.solvers.kept_columns import KeptColumns, solve_keeping
from onnxq.solvers.objective import objective
from onnxq.solvers.refit_scales import refit_scales
from onnxq.solvers.registry import solver as named
from onnxq.solvers.statistics import Statistics

__all__ = ["SiteProblem", "SolvedSite", "packed", "solve_site"]

Array = npt.NDArray[Any]

_ARRAY, _SHIFT, _COLUMNS, _CORRECTION = "packed_", "shift", "kept_columns", "kept_correction"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteProblem:
    """What decides the codes of a site.

    Attributes:
        rows: its weight as `onnxq.graph.orientation.to_rows` lays it out, [rows, columns].
        statistics: one for each convolution group; one for other sites.
        fmt: what it is stored in.
        solver: by name.
        options: of the solver, checked.
        seed: of what is random.
        refit: fit the scales to the codes once more.
        corrects_bias: also find what takes the mean of the error out of the output.
        keep_columns: so many columns stay in full precision.
    """

    rows: Array
    statistics: tuple[Statistics, ...]
    fmt: Format
    solver: str
    options: Mapping[str, Any]
    seed: int
    refit: bool = False
    corrects_bias: bool = False
    keep_columns: int = 0


class _InScratch(Mapping[str, Array]):
    """Arrays that are in memory while there is room, else in a temporary file; read at each use."""

    def __init__(self, arrays: Mapping[str, Array], scratch: Scratch) -> None:
        self._tensors = {
            name: scratch.keep(array, ir.DataType.from_numpy(array.dtype))
            for name, array in arrays.items()
        }

    def __getitem__(self, name: str) -> Array:
        found: Array = self._tensors[name].numpy()
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolvedSite:
    """Codes chosen for one weight, packed, with the error they make on the calibration data.

    Attributes:
        arrays: as `packed` gives them.
        shape: rows and columns of the weight.
        output_error: √(E‖(W − Ŵ) x‖² / E‖W x‖²); None without data.
        shift: what the bias is to move the output by, [rows]; None leaves it.
        kept: columns in full precision; None without any.
        seconds: it took to choose them; 0 for those of an earlier run.
    """

    arrays: Mapping[str, Array]
    shape: tuple[int, int]
    output_error: float | None = None
    shift: Array | None = None
    kept: KeptColumns | None = None
    seconds: float = 0.0

    def kept_in(self, scratch: Scratch) -> Self:
        """Itself, its arrays where many sites need not be in memory together."""
        return dataclasses.replace(self, arrays=_InScratch(self.arrays, scratch))

    def unpacked(self, fmt: Format) -> Arrays:
        """The arrays of ``fmt.encode``."""
        if not isinstance(fmt, IntFormat):
            return fmt.unpack(dict(self.arrays), self.shape)
        codes = unpack_codes(self.arrays["codes"], fmt.bits, self.shape[1], signed=fmt.symmetric)
        return {**self.arrays, "codes": codes}

    def new_weight(self, fmt: Format) -> NewWeight:
        """What the rest of the network is to run on, decoded when it is read."""
        return NewWeight(lambda: self._decoded(fmt), self.shift)

    def _decoded(self, fmt: Format) -> Array:
        decoded = fmt.decode(self.unpacked(fmt))
        return decoded if self.kept is None else self.kept.added_to(decoded)

    def piece(self) -> Piece:
        """Itself as arrays and plain values."""
        arrays = {f"{_ARRAY}{name}": array for name, array in self.arrays.items()}
        if self.shift is not None:
            arrays[_SHIFT] = self.shift
        if self.kept is not None:
            arrays[_COLUMNS], arrays[_CORRECTION] = self.kept.columns, self.kept.correction
        return Piece({"shape": list(self.shape), "output_error": self.output_error}, arrays)

    @classmethod
    def of(cls, piece: Piece) -> Self:
        """Undo `piece`."""
        held = piece.arrays
        kept = KeptColumns(held[_COLUMNS], held[_CORRECTION]) if _COLUMNS in held else None
        rows, columns = piece.about["shape"]
        return cls(
            arrays={n.removeprefix(_ARRAY): a for n, a in held.items() if n.startswith(_ARRAY)},
            shape=(rows, columns),
            output_error=piece.about["output_error"],
            shift=held.get(_SHIFT),
            kept=kept,
        )


def packed(arrays: Arrays, fmt: Format) -> Arrays:
    """Codes in their few bits, as they are kept until they are written."""
    if not isinstance(fmt, IntFormat):
        return fmt.pack(arrays)
    return {**arrays, "codes": pack_codes(arrays["codes"], fmt.bits)}


def solve_site(problem: SiteProblem, threads: int) -> SolvedSite:
    """Choose the codes of a site, group after group of a convolution.

    Args:
        problem: what decides them.
        threads: of kernels; the codes do not depend on it.

    Raises:
        FormatError: the weight cannot be stored in the format.
    """
    start = time.perf_counter()
    parts = np.split(problem.rows, len(problem.statistics))
    found, shifts, kept = [], [], None
    noise = signal = 0.0
    for part, known in zip(parts, problem.statistics, strict=True):
        arrays, decoded, kept = _solve_part(part, known, problem, threads)
        if problem.corrects_bias:
            shifts.append(correct_bias(part, decoded, known))
        noise += float(objective(part, decoded, known).sum())
        signal += float(objective(part, np.zeros_like(part), known).sum())
        found.append(arrays)
        del decoded  # before the next group is decoded
    joined = found[0]
    if len(found) > 1:
        joined = {name: np.concatenate([one[name] for one in found]) for name in joined}
    rows, columns = problem.rows.shape
    return SolvedSite(
        arrays=packed(joined, problem.fmt),
        shape=(rows, columns),
        output_error=math.sqrt(max(noise, 0.0) / signal) if signal > 0 else 0.0,
        shift=np.concatenate(shifts) if shifts else None,
        kept=kept,
        seconds=time.perf_counter() - start,
    )


def _solve_part(
    part: Array, known: Statistics, problem: SiteProblem, threads: int
) -> tuple[Arrays, Array, KeptColumns | None]:
    """The arrays of one group, what they stand for, and the columns kept."""
    if not problem.keep_columns:
        arrays = _codes(part, known, problem, threads)
        return arrays, problem.fmt.decode(arrays), None
    solve = functools.partial(_codes, problem=problem, threads=threads)
    arrays, kept = solve_keeping(problem.keep_columns, solve, part, problem.fmt, known)
    return arrays, kept.added_to(problem.fmt.decode(arrays)), kept


def _codes(part: Array, known: Statistics, problem: SiteProblem, threads: int) -> Arrays:
    how: dict[str, Any] = {"seed": problem.seed, "threads": threads, **problem.options}
    arrays = named(problem.solver).solve(part, problem.fmt, known, **how)
    if not problem.refit:
        return arrays
    asymmetric = known.drift is not None
    return refit_scales(part, arrays, problem.fmt, known, asymmetric=asymmetric)
