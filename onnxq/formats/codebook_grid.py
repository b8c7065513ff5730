"""How the scales and books of a codebook are chosen for a weight, and its vectors rounded to them.

Scales come first: the root mean square of what shares one, so that books see numbers of the size
of 1. Books are then fitted to the scaled vectors — a drawn part of them where there are very many
— and rounded to int8, with one step for all of them; the step goes into the scales.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats.base import Arrays
from onnxq.formats.gaussian import gaussian_grid
from onnxq.numerics.codebook import fit_books, look_up, search_books

if TYPE_CHECKING:
    from onnxq.formats.codebook import CodebookFormat

__all__ = ["CodebookGrid", "fit_grid", "stored_books"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

HIGHEST_SUM = 258
"""Magnitudes of an entry sum to no more: with activations up to 127 the product is within int16."""
_LEAST_SAMPLE, _SAMPLE_PER_ENTRY = 2**17, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookGrid:
    """Books and scales of one weight: a `SideGrid`.

    Attributes:
        fmt: the format.
        shape: (rows, columns) of the weight.
        codebook: int8 ``[row blocks, column blocks, books, entries, dimension]``.
        scales: float16 ``[rows or 1, groups]``.
        importance: ``[columns]``, what squared errors cost, or None.
        beam: width of the search when books are summed.
        threads: of the search.
    """

    fmt: CodebookFormat
    shape: tuple[int, int]
    codebook: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]
    importance: Array | None = None
    beam: int = 8
    threads: int | None = None

    @property
    def width(self) -> int:
        """See `Grid`."""
        return self.fmt.dimension

    def round(self, values: Array, start: int, metric: Array | None = None) -> tuple[Array, Array]:
        """See `Grid`; with a metric M = L Lᵀ entries and targets are compared as v L."""
        rows, columns = self.shape
        group = start // self.fmt.group_size(columns)
        scale = np.broadcast_to(self.scales[:, group, None], (rows, 1)).astype(np.float32)
        scaled = values / np.where(scale == 0, 1, scale)
        weights, root = None, None
        if metric is not None:
            root = np.linalg.cholesky(metric.astype(np.float64)).astype(np.float32)
        elif self.importance is not None:
            here = self.importance[start : start + self.width]
            weights = None if np.ptp(here) == 0 else (here / here.max())[None]
        block_rows, block_columns = self.fmt.block_shape(rows, columns)
        dtype = np.uint8 if self.fmt.entries <= 256 else np.uint16
        codes = np.empty((rows, self.fmt.books), dtype)
        points = np.empty((rows, self.width), np.float32)
        for block, first in enumerate(range(0, rows, block_rows)):
            part = slice(first, first + block_rows)
            books = self.codebook[block, start // block_columns]
            seen = books if root is None else books.astype(np.float32) @ root
            targets = scaled[part] if root is None else scaled[part] @ root
            codes[part] = search_books(
                targets, seen, weights=weights, beam=self.beam, threads=self.threads
            )
            points[part] = look_up(books, codes[part])
        return codes, points * scale

    def arrays(self, codes: Array) -> Arrays:
        """See `SideGrid`."""
        return {"codes": codes, "codebook": self.codebook, "scales": self.scales}


def fit_grid(
    fmt: CodebookFormat,
    weight: Floats,
    *,
    importance: Array | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> CodebookGrid:
    """See `onnxq.formats.base.VectorFormat.grid`."""
    rows, columns = weight.shape
    roots = _roots(fmt, weight)
    size = fmt.group_size(columns)
    spread = np.repeat(roots, size, axis=1)[:, :columns]
    scaled = weight / np.where(spread == 0, 1, spread)
    if fmt.fixed:
        books = gaussian_grid(fmt.dimension, fmt.entries)[None, None, None]
    else:
        costs = None
        if importance is not None:
            costs = np.broadcast_to(spread**2 * importance, weight.shape)
        books = _fitted(fmt, scaled, costs, seed, threads)
    codebook, step = stored_books(books)
    with np.errstate(over="ignore"):
        scales = (roots * step).astype(np.float16)
    if not np.isfinite(scales).all():
        raise FormatError(
            f"weights as large as {np.abs(weight).max():.3g} are beyond the float16 scales of "
            f"{fmt}: leave this weight in float, or take an integer format."
        )
    return CodebookGrid(
        fmt=fmt,
        shape=(rows, columns),
        codebook=codebook,
        scales=scales,
        importance=importance,
        threads=threads,
    )


def stored_books(books: Floats) -> tuple[npt.NDArray[np.int8], float]:
    """The books in int8 and their step: books ≈ step · int8.

    Args:
        books: ``[..., entries, dimension]``.
    """
    entries, dimension = books.shape[-2:]
    step = float(np.abs(books).max()) / 127
    if entries <= 256:
        # Rounding may add half a step to each number.
        step = max(step, float(np.abs(books).sum(axis=-1).max()) / (HIGHEST_SUM - dimension / 2))
    if step == 0:
        return np.zeros(books.shape, np.int8), 1.0
    return np.rint(books / step).astype(np.int8), step


def _roots(fmt: CodebookFormat, weight: Floats) -> Floats:
    """Root mean squares of what shares a scale, shaped as the scales."""
    rows, columns = weight.shape
    starts = np.arange(0, columns, fmt.group_size(columns))
    squares = np.add.reduceat(np.square(weight, dtype=np.float64), starts, axis=1)
    counts = np.diff(np.append(starts, columns))
    if fmt.granularity.scales_shape(rows, columns) == (1, 1):
        squares, counts = squares.sum(keepdims=True), counts * rows
    return np.sqrt(squares / counts).astype(np.float32)


def _fitted(
    fmt: CodebookFormat, scaled: Array, costs: Array | None, seed: int, threads: int | None
) -> Floats:
    """Books of every block, ``[row blocks, column blocks, books, entries, dimension]``."""
    rows, columns = scaled.shape
    down, across = fmt.block_shape(rows, columns)
    books = [
        [
            _fit_block(fmt, scaled[here], None if costs is None else costs[here], seed, threads)
            for here in (
                (slice(r, r + down), slice(c, c + across)) for c in range(0, columns, across)
            )
        ]
        for r in range(0, rows, down)
    ]
    return np.array(books)


def _fit_block(
    fmt: CodebookFormat, scaled: Floats, costs: Array | None, seed: int, threads: int | None
) -> Floats:
    vectors = scaled.reshape(-1, fmt.dimension)
    weights = None if costs is None else costs.reshape(-1, fmt.dimension)
    most = max(_LEAST_SAMPLE, _SAMPLE_PER_ENTRY * fmt.entries)
    if len(vectors) > most:
        drawn = np.random.default_rng(seed).choice(len(vectors), most, replace=False)
        vectors = vectors[drawn]
        weights = None if weights is None else weights[drawn]
    if weights is not None:
        weights = weights / max(float(weights.max()), np.finfo(np.float32).tiny)
    return fit_books(
        vectors,
        (fmt.books, fmt.entries),
        weights=weights,
        seed=seed,
        rounds=8 if fmt.entries > 256 else 20 if fmt.books > 1 else 30,
        threads=threads,
    )
