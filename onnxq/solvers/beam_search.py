"""Codes of vectors chosen for the output of a layer, and books and scales fitted to them.

The objective tr(E H Eᵀ), E = W − Ŵ, is a quadratic in everything that is stored, so it goes down
by turns:

- *Codes.* With the other columns as they are, the best a run B of columns could be is
  t = ŵ_B + (E H)_B H_BB⁻¹, and what any other vector v costs more is (t − v) H_BB (t − v)ᵀ. With
  H_BB = L Lᵀ that is the distance of t L and v L: entries, and sums of entries, are searched in
  books multiplied by L. One book is searched whole; of sums a beam is kept, and codes stay where
  what it finds is no better. That is the beam search of AQLM (Egiazarian et al., arXiv:2401.06118,
  section 3.2), and with one book the search of GPTVQ (van Baalen et al., arXiv:2402.15319) with
  errors carried both ways.
- *Books.* All entries at once, by conjugate gradients on the objective; then they are rounded to
  int8 as they are stored, and taken if that is better.
- *Scales* of whole rows, each in closed form, (w H q) / (q H q) for ŵ = s q.

No turn raises the objective.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats import Arrays
from onnxq.formats.codebook import CodebookFormat
from onnxq.formats.codebook_grid import stored_books
from onnxq.numerics.codebook import look_up, search_books
from onnxq.solvers.column_order import Order
from onnxq.solvers.coordinate_descent import damped
from onnxq.solvers.inputs import checked_inputs, to_numpy
from onnxq.solvers.ldlq import ldlq_points
from onnxq.solvers.shrinkage import enough_damping
from onnxq.solvers.statistics import Statistics

__all__ = ["beam_search"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_PART = 128
"""Columns between two products with all of H."""


def beam_search(
    weight: Array,
    fmt: CodebookFormat,
    statistics: Statistics | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    damping: float = 0.01,
    order: Order = "activation",
    beam: int = 8,
    sweeps: int = 2,
    book_steps: int = 8,
) -> Arrays:
    """Start from `gptq`, then search codes again and fit books and scales, by turns.

    Args:
        weight: ``[rows, columns]`` = ``[out, in]``, a float type; NumPy or torch.
        fmt: a format of codebooks; fixed books stay as they are.
        statistics: of the inputs of the layer; only the Hessian is used.
        seed: of what the books start from.
        threads: of kernels; the result does not depend on it.
        damping: λ as a part of the mean diagonal of H.
        order: of the columns in the start, see `onnxq.solvers.column_order`.
        beam: sums that are kept while more books follow, 1 to 32.
        sweeps: turns of books, scales and codes; 0 leaves the start.
        book_steps: of conjugate gradients in a turn; 0 leaves the books.

    Returns:
        The arrays of ``fmt.encode``. The damped objective is not above that of the start.

    Raises:
        FormatError: no statistics, statistics of another layer, or a weight that cannot be stored.
    """
    if not isinstance(fmt, CodebookFormat):
        raise FormatError(
            f"beam_search searches codebooks, and {fmt} has none: use a vq_, aq_ or higgs_ format, "
            "or gptq, which takes every format."
        )
    weight, hessian = checked_inputs("beam_search", weight, statistics)
    damping = enough_damping(statistics, damping)
    weight, hessian = fmt.checked(to_numpy(weight)), to_numpy(hessian)
    how: dict[str, Any] = {"damping": damping, "order": order, "threads": threads}
    arrays = ldlq_points(weight, fmt, hessian, seed=seed, **how)
    turn = _Turn(fmt, weight, damped(hessian, damping), beam, threads)
    for _ in range(sweeps):
        if book_steps and not fmt.fixed:
            arrays = turn.books(arrays, book_steps)
        arrays = turn.codes(turn.scales(arrays))
    return turn.scales(arrays)


@dataclasses.dataclass(frozen=True)
class _Turn:
    """One weight and what its errors cost."""

    fmt: CodebookFormat
    weight: Floats
    hessian: Floats
    beam: int
    threads: int | None

    def costs(self, arrays: Arrays) -> npt.NDArray[np.float64]:
        """The objective of every row."""
        error = self.weight - self.fmt.decode(arrays)
        costs: npt.NDArray[np.float64] = np.einsum(
            "rc,rc->r", error @ self.hessian, error, dtype=np.float64
        )
        return costs

    def codes(self, arrays: Arrays) -> Arrays:
        """Codes searched again, run after run."""
        fmt, hessian = self.fmt, self.hessian
        rows, columns = self.weight.shape
        width, part = fmt.dimension, _PART
        codes = arrays["codes"].copy()
        decoded = fmt.decode(arrays)
        pull = (self.weight - decoded) @ hessian
        scales = np.broadcast_to(arrays["scales"], (rows, arrays["scales"].shape[1]))
        for begin in range(0, columns, part):
            end = min(columns, begin + part)
            here, moved = pull[:, begin:end].copy(), np.zeros((rows, end - begin), np.float32)
            for start in range(begin, end, width):
                run, at = slice(start, start + width), slice(start - begin, start - begin + width)
                scale = scales[:, start // fmt.group_size(columns)].astype(np.float32)[:, None]
                places = slice(start // width * fmt.books, (start // width + 1) * fmt.books)
                found, points = self._searched(
                    arrays, codes[:, places], decoded[:, run], here[:, at], scale, start
                )
                codes[:, places], moved[:, at] = found, decoded[:, run] - points
                here += moved[:, at] @ hessian[run, begin:end]
            pull += moved @ hessian[begin:end]
        return {**arrays, "codes": codes}

    def _searched(
        self, arrays: Arrays, codes: Array, points: Array, pull: Array, scale: Array, start: int
    ) -> tuple[Array, Floats]:
        """Codes of one run and what they stand for: better ones, or those there are."""
        fmt = self.fmt
        block = self.hessian[start : start + fmt.dimension, start : start + fmt.dimension]
        target = points + np.linalg.solve(block, pull.T).T
        root = np.linalg.cholesky(block.astype(np.float64)).astype(np.float32)
        down, across = fmt.block_shape(*self.weight.shape)
        found, result = codes.copy(), points.copy()
        safe = np.where(scale == 0, 1, scale)
        for index, first in enumerate(range(0, len(codes), down)):
            rows = slice(first, first + down)
            books = arrays["codebook"][index, start // across].astype(np.float32)
            new = search_books(
                (target[rows] / safe[rows]) @ root,
                books @ root,
                beam=self.beam,
                threads=self.threads,
            )
            there = look_up(books, new) * scale[rows]
            before = np.square((target[rows] - points[rows]) @ root).sum(axis=1)
            after = np.square((target[rows] - there) @ root).sum(axis=1)
            better = (after < before)[:, None]
            found[rows] = np.where(better, new, codes[rows])
            result[rows] = np.where(better, there, points[rows])
        return found, result

    def scales(self, arrays: Arrays) -> Arrays:
        """One scale a row in closed form, where that is better once stored."""
        if arrays["scales"].shape != (len(self.weight), 1):
            return arrays
        units = self.fmt.decode({**arrays, "scales": np.ones_like(arrays["scales"])})
        along = units @ self.hessian
        wanted = (along * self.weight).sum(axis=1) / np.maximum((along * units).sum(axis=1), 1e-30)
        with np.errstate(over="ignore"):
            scales = wanted.astype(np.float16)[:, None]
        return self._better({**arrays, "scales": scales}, arrays)

    def _better(self, new: Arrays, old: Arrays) -> Arrays:
        """The scales of each row that cost less; all else is alike."""
        better = np.isfinite(new["scales"][:, 0]) & (self.costs(new) < self.costs(old))
        return {**old, "scales": np.where(better[:, None], new["scales"], old["scales"])}

    def books(self, arrays: Arrays, steps: int) -> Arrays:
        """Entries moved together, down the objective; the books as they were when that is worse."""
        books = arrays["codebook"].astype(np.float64)
        error = self.weight - self.fmt.decode(arrays)
        weights = np.maximum(self._gathered(arrays, self._loads(arrays)), 1e-30)
        way, before = np.zeros_like(books), 1.0
        for step in range(steps):
            slope = self._gathered(arrays, error @ self.hessian)
            eased = slope / weights
            size = float((slope * eased).sum())
            way = eased + (size / before * way if step else 0)
            before = size
            moved = self._spread(arrays, way)
            along = moved @ self.hessian
            bend = float(np.sum(along * moved, dtype=np.float64))
            if bend <= 0 or size <= 0:
                break
            length = float(np.sum(along * error, dtype=np.float64)) / bend
            books += length * way
            error = error - np.float32(length) * moved
        codebook, unit = stored_books(books.astype(np.float32))
        with np.errstate(over="ignore"):
            scales = (arrays["scales"].astype(np.float32) * unit).astype(np.float16)
        new = {**arrays, "codebook": codebook, "scales": scales}
        if not np.isfinite(scales).all():
            return arrays
        return new if self.costs(new).sum() < self.costs(arrays).sum() else arrays

    def _loads(self, arrays: Arrays) -> Floats:
        """What a number of an entry costs by itself, for each weight it stands for."""
        scales = self._scale_of_weights(arrays)
        return np.broadcast_to(np.diagonal(self.hessian), self.weight.shape) * scales

    def _scale_of_weights(self, arrays: Arrays) -> Floats:
        columns = self.weight.shape[1]
        group = np.arange(columns) // self.fmt.group_size(columns)
        scales = np.broadcast_to(arrays["scales"], (len(self.weight), arrays["scales"].shape[1]))
        return scales[:, group].astype(np.float32)

    def _entries(self, arrays: Arrays) -> npt.NDArray[np.int64]:
        """Which entry of all of them each code is, ``[rows, runs, books]``."""
        fmt = self.fmt
        rows, columns = self.weight.shape
        down, across = fmt.block_shape(rows, columns)
        codes = arrays["codes"].reshape(rows, -1, fmt.books).astype(np.int64)
        block = np.arange(rows)[:, None] // down * arrays["codebook"].shape[1]
        block = block + np.arange(codes.shape[1]) * fmt.dimension // across
        found: npt.NDArray[np.int64] = (
            block[..., None] * fmt.books + np.arange(fmt.books)
        ) * fmt.entries + codes
        return found

    def _gathered(self, arrays: Arrays, values: Array) -> npt.NDArray[np.float64]:
        """Sums of values times scales over the weights that each number of an entry stands for."""
        fmt = self.fmt
        which = self._entries(arrays).reshape(-1, fmt.books)
        scaled = (values * self._scale_of_weights(arrays)).reshape(-1, fmt.dimension)
        count = arrays["codebook"].size // fmt.dimension
        sums = np.zeros((count, fmt.dimension))
        for book in range(fmt.books):
            for axis in range(fmt.dimension):
                sums[:, axis] += np.bincount(which[:, book], scaled[:, axis], count)
        return sums.reshape(arrays["codebook"].shape)

    def _spread(self, arrays: Arrays, books: npt.NDArray[np.float64]) -> Floats:
        """What a change of the books changes of the weight."""
        flat = books.astype(np.float32).reshape(-1, self.fmt.dimension)
        spread: Floats = flat[self._entries(arrays)].sum(axis=2).reshape(self.weight.shape)
        return spread * self._scale_of_weights(arrays)
