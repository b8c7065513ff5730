"""What the channels of activations look like on calibration data: extremes, means, some rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration.readings import Reading
from onnxq.calibration.values import Visitor, visit_values
from onnxq.errors import CalibrationError

__all__ = ["ChannelProfile", "profile_channels"]

Vector = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelProfile:
    """One activation, by channel, over all samples.

    Attributes:
        low: float64 [channels], the least value.
        high: float64 [channels], the greatest value.
        magnitude: float64 [channels], E|x|.
        square: float64 [channels], E[x²].
        rows: by reading, float32 [rows, columns]: some of what a site multiplies, evenly spaced.
    """

    low: Vector
    high: Vector
    magnitude: Vector
    square: Vector
    rows: Mapping[Reading, npt.NDArray[np.float32]]

    @property
    def peak(self) -> Vector:
        """float64 [channels], max|x|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


def profile_channels(
    model: ir.Model,
    axes: Mapping[str, int],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    readings: Mapping[str, Sequence[Reading]] | None = None,
    rows: int = 0,
    threads: int | None = None,
) -> dict[str, ChannelProfile]:
    """Profile values of the main graph.

    Args:
        model: left as it is.
        axes: by name of each value, its channel axis, counted from the end.
        samples: model inputs by name; iterated once for each group of values that fits in memory.
        readings: by name of a value, how the sites read it of which rows are to be kept.
        rows: at most how many rows are kept for each reading.
        threads: threads of the runtime; None leaves the choice to it.

    Raises:
        CalibrationError: the samples do not fit the model, there are none, or a value is NaN or
            infinite.
        UnsupportedGraph: the runtime does not load the model.
    """
    visitor = _Profiler(axes, readings or {}, rows)
    visit_values(model, list(axes), samples, visitor, threads=threads)
    return {name: visitor.profile(name) for name in axes}


class _Rows:
    """At most ``limit`` rows, evenly spaced over all that came, whatever the batches were."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._step = 1
        self._seen = 0
        self._kept: list[npt.NDArray[np.float32]] = []
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """Take in [rows, columns]."""
        first = -self._seen % self._step
        self._seen += len(rows)
        if self._limit < 1:
            return
        taken = np.array(rows[first :: self._step], np.float32)
        self._kept.append(taken)
        self._count += len(taken)
        while self._count > self._limit:
            joined = np.concatenate(self._kept)[::2]
            self._kept, self._count, self._step = [joined], len(joined), 2 * self._step

    def result(self) -> npt.NDArray[np.float32]:
        """float32 [rows, columns]."""
        return np.concatenate(self._kept) if self._kept else np.zeros((0, 0), np.float32)


@dataclasses.dataclass
class _Sums:
    """What is known of one value so far."""

    low: Vector
    high: Vector
    magnitude: Vector
    square: Vector
    count: int = 0


class _Profiler(Visitor):
    def __init__(
        self, axes: Mapping[str, int], readings: Mapping[str, Sequence[Reading]], rows: int
    ) -> None:
        self._axes = axes
        self._rows = {
            name: {reading: _Rows(rows) for reading in wanted} for name, wanted in readings.items()
        }
        self._limit = rows
        self._sums: dict[str, _Sums] = {}

    def visit(self, name: str, array: np.ndarray) -> None:
        if array.size == 0:
            return
        flat = np.moveaxis(array, self._axes[name], -1)
        flat = flat.reshape(-1, flat.shape[-1]).astype(np.float32, copy=False)
        if not np.isfinite(flat).all():
            raise CalibrationError(
                f"Activation {name!r} holds NaN or infinity in the calibration data: check the "
                "samples, or exclude the sites that read it."
            )
        self._add(name, flat)
        for reading, rows in self._rows.get(name, {}).items():
            for piece in reading.pieces(array):
                rows.add(piece[0])

    def _add(self, name: str, flat: npt.NDArray[np.float32]) -> None:
        low, high = flat.min(axis=0).astype(np.float64), flat.max(axis=0).astype(np.float64)
        magnitude = np.abs(flat).sum(axis=0, dtype=np.float64)
        square = np.einsum("tc,tc->c", flat, flat, dtype=np.float64)
        old = self._sums.get(name)
        if old is None:
            self._sums[name] = _Sums(low, high, magnitude, square, len(flat))
            return
        old.low, old.high = np.minimum(old.low, low), np.maximum(old.high, high)
        old.magnitude += magnitude
        old.square += square
        old.count += len(flat)

    def held_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        """The rows that are kept of a value."""
        width = shape[self._axes[name]] if shape else 1
        return 4 * self._limit * width * len(self._rows.get(name, ()))

    def profile(self, name: str) -> ChannelProfile:
        """What was found.

        Raises:
            CalibrationError: the value was empty in every sample.
        """
        sums = self._sums.get(name)
        if sums is None:
            raise CalibrationError(
                f"Activation {name!r} is empty in every calibration sample: give samples that "
                "reach it, or exclude the sites that read it."
            )
        rows = {reading: kept.result() for reading, kept in self._rows.get(name, {}).items()}
        return ChannelProfile(
            low=sums.low,
            high=sums.high,
            magnitude=sums.magnitude / sums.count,
            square=sums.square / sums.count,
            rows=rows,
        )
