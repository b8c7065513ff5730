"""Second moments of the rows a weight multiplies, summed as they come.

H = Σ w_t x_t x_tᵀ / Σ w_t, and with the rows x̃ of the float model

    D = Σ w_t (x̃_t − x_t) x_tᵀ / Σ w_t

(see `onnxq.solvers.statistics`). Rows of several samples, each multiplied by √w_t, are put together
into blocks of some thousand; a block becomes one float32 product of the BLAS (``x.T @ x``, of which
NumPy computes one triangle), and the products are summed in float64.

Numbers: a float32 sum of n = 4096 products errs by at most n·2⁻²⁴ = 2.4e-4 of Σ|x_i x_j| and
typically by √n·2⁻²⁴ = 4e-6; the float64 sum over blocks adds nothing, so the error does not grow
with the data. Solvers damp H by a hundredth of its mean diagonal, far above that. Blocks may be
multiplied out by other threads meanwhile, each by one; they are summed in their order, so threads
change no bit.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future

import numpy as np

from onnxq.calibration.matrices import zeros
from onnxq.calibration.readings import Array, Reading
from onnxq.errors import CalibrationError
from onnxq.solvers.statistics import Statistics

__all__ = ["BLOCK_ROWS", "PANEL", "Moments"]

_Place = int | tuple[int, slice] | tuple[int, slice, slice]
_Products = Iterable[tuple[str, _Place, Array]]

BLOCK_ROWS = 4096
"""Rows in one product: enough that summing it in float64 costs little."""
PANEL = 2048
"""Rows of one product where there are more than twice as many columns."""


@dataclasses.dataclass
class _Block:
    """Rows that wait to be multiplied out, √w times each, for every group.

    Attributes:
        rows: [groups, rows, columns] float32.
        delta: how far those of the float model are from them; None without drift.
        root: √w of each row.
        filled: how many rows there are.
        marks: where the rows of each sample begin.
    """

    rows: Array
    delta: Array | None
    root: Array
    filled: int = 0
    marks: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class Moments:
    """The moments of one activation as one kind of site reads it.

    Args:
        name: of the activation, for messages.
        reading: how it is read.
        drift: gather D as well.
        mean: gather the mean of x.
        float_mean: gather the mean of x̃.
        rows: rows in one block.
        pool: multiplies blocks out while others are filled; None does so at once.
        ahead: how many blocks may wait for the pool.
        on_disk: sum the matrices in a file.
    """

    def __init__(
        self,
        name: str,
        reading: Reading,
        *,
        drift: bool,
        mean: bool,
        float_mean: bool,
        rows: int = BLOCK_ROWS,
        pool: Executor | None = None,
        ahead: int = 0,
        on_disk: bool = False,
    ) -> None:
        self.name = name
        self.reading = reading
        self._wants_drift, self._wants_mean, self._wants_float_mean = drift, mean, float_mean
        self._rows, self._pool, self._ahead = rows, pool, ahead
        self._on_disk = on_disk
        self._block: _Block | None = None
        self._free: list[_Block] = []
        self._waiting: collections.deque[tuple[_Block, Future[_Products]]] = collections.deque()
        self._weight = 0.0
        self._sums: dict[str, Array] = {}

    def add(
        self, sample: int, activation: Array, twin: Array | None, weights: Array | None
    ) -> None:
        """Add the rows of one sample.

        Args:
            sample: its number, for messages.
            activation: as the site reads it.
            twin: the same activation in the float model, for the drift.
            weights: one weight for each token. Rows that are no tokens (another count of them,
                or pixels) all weigh 1.

        Raises:
            CalibrationError: a number is NaN or infinite.
        """
        twins: Iterable[Array | None] = itertools.repeat(None)
        if twin is not None:
            twins = self.reading.pieces(twin)
        for piece, other in zip(self.reading.pieces(activation), twins, strict=False):
            is_tokens = self.reading.is_per_token and weights is not None
            if is_tokens and weights is not None and weights.size == piece.shape[1]:
                self._take_weighted(sample, piece, other, weights.reshape(-1))
            else:
                self._take(sample, piece, other, None)

    def result(self) -> tuple[Statistics, ...]:
        """The means over all rows, one for each group; the moments are spent after.

        Raises:
            CalibrationError: no row has a weight.
        """
        self._flush()
        while self._waiting:
            self._take_in()
        if not self._weight:
            raise CalibrationError(
                f"No token of the calibration data counts for activation {self.name!r}: it is "
                "empty, or every token is padding or has weight 0. Give longer samples or other "
                "token weights."
            )
        self._free = []
        for total in self._sums.values():
            total /= self._weight
        for total in self._sums["hessian"]:
            _mirror(total)
        sums, self._sums = self._sums, {}
        return tuple(self._statistics(sums, group) for group in range(self.reading.groups))

    def _statistics(self, sums: dict[str, Array], group: int) -> Statistics:
        mean = sums["mean"][group] if "mean" in sums else None
        moved = None if mean is None else mean + sums["shift"][group] if "shift" in sums else None
        return Statistics(
            hessian=sums["hessian"][group],
            drift=sums["drift"][group] if "drift" in sums else None,
            mean=mean if self._wants_mean else None,
            float_mean=moved,
            weight=self._weight,
        )

    def _take_weighted(self, sample: int, piece: Array, other: Array | None, w: Array) -> None:
        counted = np.flatnonzero(w > 0)
        if len(counted) < len(w):
            piece = piece[:, counted]
            other = other if other is None else other[:, counted]
        self._take(sample, piece, other, np.sqrt(w[counted], dtype=np.float32))

    def _take(self, sample: int, piece: Array, other: Array | None, root: Array | None) -> None:
        """Copy rows into the block, √w times each, and multiply it out when it is full."""
        done = 0
        while done < piece.shape[1]:
            block = self._block = self._block or self._empty(piece.shape[2])
            count = min(piece.shape[1] - done, self._rows - block.filled)
            span, part = slice(block.filled, block.filled + count), slice(done, done + count)
            scale = 1.0 if root is None else root[part]
            block.root[span] = scale
            np.copyto(block.rows[:, span], piece[:, part], casting="same_kind")
            if block.delta is not None:
                block.delta[:, span] = 0 if other is None else other[:, part] - piece[:, part]
            if root is not None:
                block.rows[:, span] *= block.root[span, None]
                if block.delta is not None:
                    block.delta[:, span] *= block.root[span, None]
            block.marks.append((block.filled, sample))
            block.filled += count
            done += count
            if block.filled == self._rows:
                self._flush()

    def _empty(self, columns: int) -> _Block:
        """A block without rows: one that has been used before, or a new one."""
        groups = self.reading.groups
        if self._free:
            return dataclasses.replace(self._free.pop(), filled=0, marks=[])
        if not self._sums:
            square = (groups, columns, columns)
            self._sums["hessian"] = zeros(square, on_disk=self._on_disk)
            if self._wants_mean or self._wants_float_mean:
                self._sums["mean"] = np.zeros((groups, columns))
            if self._wants_float_mean:
                self._sums["shift"] = np.zeros((groups, columns))
            if self._wants_drift:
                self._sums["drift"] = zeros(square, on_disk=self._on_disk)
        rows = np.empty((groups, self._rows, columns), np.float32)
        compares = self._wants_drift or self._wants_float_mean
        delta = np.empty_like(rows) if compares else None
        return _Block(rows, delta, np.empty(self._rows, np.float32))

    def _flush(self) -> None:
        """Multiply the block out, or have it done, and begin an empty one."""
        block, self._block = self._block, None
        if block is None:
            return
        root = block.root[: block.filled]
        self._weight += float(np.dot(root, root.astype(np.float64)))
        if self._pool is None or not self._ahead:
            self._sum(self._products(block))
            self._free.append(block)
            return
        self._waiting.append((block, self._pool.submit(lambda: list(self._products(block)))))
        if len(self._waiting) > self._ahead:
            self._take_in()

    def _take_in(self) -> None:
        """Sum the products of the block that has waited longest."""
        block, products = self._waiting.popleft()
        self._sum(products.result())
        self._free.append(block)

    def _sum(self, products: _Products) -> None:
        for name, place, product in products:
            self._sums[name][place] += product

    def _products(self, block: _Block) -> Iterator[tuple[str, _Place, Array]]:
        """What a block adds to each sum of each group."""
        root = block.root[: block.filled]
        for group, rows in enumerate(block.rows[:, : block.filled]):
            for part in _panels(rows.shape[1]):
                rest = slice(part.start, None)
                # Where one panel is all, both factors are the same memory, and NumPy takes the
                # symmetric product.
                with np.errstate(over="ignore", invalid="ignore"):
                    product = rows[:, part].T @ rows[:, rest]
                if not np.isfinite(product.diagonal()).all():
                    self._refuse(rows, block.marks)
                yield "hessian", (group, part, rest), product
            delta = None if block.delta is None else block.delta[group, : block.filled]
            if "mean" in self._sums:
                yield "mean", group, root @ rows
            if "shift" in self._sums and delta is not None:
                yield "shift", group, root @ delta
            if "drift" in self._sums and delta is not None:
                for part in _panels(rows.shape[1]):
                    yield "drift", (group, part), delta[:, part].T @ rows

    def _refuse(self, block: Array, marks: list[tuple[int, int]]) -> None:
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        what = "holds NaN or infinity"
        if not len(bad):
            bad = np.array([int(np.argmax(np.abs(block).max(axis=1)))])
            what = f"holds {np.abs(block).max():.3g}, whose square is no float32"
        sample = [number for start, number in marks if start <= bad[0]][-1]
        raise CalibrationError(
            f"Activation {self.name!r} {what} on sample {sample}: drop that sample, or mend the "
            "model before this value (a float16 model may overflow: calibrate its float32 form)."
        )


def _panels(columns: int) -> Iterator[slice]:
    """Rows of a matrix that are computed at once: all of them where that is little."""
    step = columns if columns <= 2 * PANEL else PANEL
    return (slice(start, min(start + step, columns)) for start in range(0, columns, step))


def _mirror(total: Array) -> None:
    """Fill what lies below the panels."""
    for rows in _panels(len(total)):
        total[rows.stop :, rows] = total[rows, rows.stop :].T
