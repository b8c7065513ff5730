"""Trellises: paths through 2^16 states whose values come by arithmetic (`onnxq.numerics.trellis`).

A tile of 16 rows and 16 columns, row by row, is a ring of 256 weights; the last tile of the rows
has as many as are left. The bits of a row's steps lie side by side, 16 columns to a run of whole
bytes, so that the codes of a weight are ``[rows, columns · bits / 8]`` bytes with nothing added. A
weight is its state's value times the scale of its row.

Names are ``trellis<bits>_<code>[_l<state bits>][_tensor]``: ``trellis2_1mad``, ``trellis3_3inst``,
``trellis2.5_hyb``, ``trellis2_1mad_l12``. Fewer state bits are faster to search for and a little
worse; ``_tensor`` has one scale for all rows. The codes and the search are QTIP's (Tseng et al.,
arXiv:2406.11235), rates in between Q-Palette's (Lee et al., arXiv:2509.20214). The search can
shape the errors of the 16 columns of a row (`onnxq.numerics.trellis.find_paths`), which QTIP's
takes as alike.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats.base import Arrays, VectorFormat
from onnxq.formats.packing import pack_codes, packed_size, unpack_codes
from onnxq.numerics.trellis import CODES, Trellis, find_paths, states_of

__all__ = ["TILE", "TrellisFormat", "TrellisGrid"]

Array = npt.NDArray[Any]

TILE = 16
"""Rows and columns of a ring."""

_GRAMMAR = re.compile(
    r"trellis(?P<bits>\d+(?:\.5)?)_(?P<code>[a-z0-9]+)(?:_l(?P<state>\d+))?(?P<tensor>_tensor)?"
)
_STATE_BITS = range(10, 17)

# The spread of the values over that of the weights with the least distortion on N(0, 1), by the
# values of a state.
_GAINS = {
    1: {1.0: 0.86, 2.0: 0.98, 3.0: 1.06, 4.0: 1.10},
    2: {1.5: 0.96, 2.0: 0.99, 2.5: 1.03, 3.0: 1.07, 3.5: 1.10, 4.0: 1.15},
}

_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # float16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrellisFormat(VectorFormat):
    """Paths through a trellis, with a scale per row or one for all.

    Arrays: ``codes`` uint8 ``[rows, columns / vector]``, the bits of each step; ``scales`` float16
    ``[rows, 1]`` or ``[1, 1]``.

    Attributes:
        bits: a weight; a multiple of one over the values of a state.
        code: what gives states their values, a key of `onnxq.numerics.trellis.CODES`.
        state_bits: 10 to 16.
        whole: one scale for all rows.
    """

    bits: float
    code: str = "1mad"
    state_bits: int = 16
    whole: bool = False

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise FormatError(f"{self.code!r} is no code of trellises: choose from {list(CODES)}.")
        steps = self.bits * CODES[self.code].vector
        if steps not in ((1, 2, 3, 4) if CODES[self.code].vector == 1 else range(3, 9)):
            possible = "1, 2, 3 or 4" if CODES[self.code].vector == 1 else "1.5, 2, 2.5, ... 4"
            raise FormatError(
                f"a trellis with the code {self.code!r} has {possible} bits, not {self.bits:g}."
            )
        if self.state_bits not in _STATE_BITS or self.state_bits - steps < 5:
            raise FormatError(
                f"a trellis of {self.bits:g} bits has states of {max(10, int(steps) + 5)} to 16 "
                f"bits, not {self.state_bits}."
            )

    def __str__(self) -> str:
        parts = [f"trellis{self.bits:g}_{self.code}"]
        parts += [] if self.state_bits == 16 else [f"l{self.state_bits}"]
        return "_".join(parts + (["tensor"] if self.whole else []))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See `VectorFormat.parse`."""
        if not text.startswith("trellis"):
            return None
        match = _GRAMMAR.fullmatch(text)
        if match is None:
            raise FormatError(
                f"{text!r} is not a format; a trellis is named trellis<bits>_<code>, then "
                f"_l<state bits> and _tensor where wanted: for example {cls.names()[1]!r}; codes "
                f"are {', '.join(CODES)}."
            )
        return cls(
            bits=float(match["bits"]),
            code=match["code"],
            state_bits=int(match["state"] or 16),
            whole=match["tensor"] is not None,
        )

    @classmethod
    def names(cls) -> list[str]:
        """See `VectorFormat.names`."""
        rates = {1: ("1", "2", "3", "4"), 2: ("1.5", "2", "2.5", "3", "3.5", "4")}
        names = [
            f"trellis{rate}_{code.name}" for code in CODES.values() for rate in rates[code.vector]
        ]
        return names + [f"trellis2_{code}_l{bits}" for code in ("1mad", "hyb") for bits in (12, 14)]

    @property
    def trellis(self) -> Trellis:
        """The trellis that codes are paths in."""
        vector = CODES[self.code].vector
        return Trellis(
            code=self.code, step_bits=int(self.bits * vector), state_bits=self.state_bits
        )

    def grid(
        self,
        weight: npt.NDArray[np.float32],
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> TrellisGrid:
        """Scales by the spread of each row, or of all weights; see `VectorFormat.grid`.

        Raises:
            FormatError: the weights are too large for a scale in float16.
        """
        del seed
        squares = np.square(weight, dtype=np.float64)
        power = np.average(squares, axis=1, weights=importance, keepdims=True)
        if self.whole:
            power = power.mean(axis=0, keepdims=True)
        values = self.trellis.values()
        scales = np.sqrt(power) * (_GAINS[self.trellis.vector][self.bits] / _spread(values))
        if scales.max() > _LARGEST:
            raise FormatError(
                f"weights with a spread of {np.sqrt(power.max()):.4g} are too large for the "
                f"scales of {self}, which are float16: divide the weight by a power of two."
            )
        # What is too small for a scale becomes 0, and so do its weights.
        scales = np.where(scales < _SMALLEST, 0, scales).astype(np.float16)
        return TrellisGrid(self, scales, weight.shape[0], values, threads)

    def decode(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """See `VectorFormat.decode`."""
        codes = arrays["codes"]
        values = self._values(arrays)
        weight = np.empty((codes.shape[0], codes.shape[1] * self.trellis.vector), np.float32)
        for first in range(0, codes.shape[0], TILE):
            rings = _rings(codes[first : first + TILE], TILE // self.trellis.vector)
            points = values[states_of(self.trellis, rings)].reshape(rings.shape[0], -1)
            weight[first : first + TILE] = _unrolled(points, TILE)
        weight *= arrays["scales"].astype(np.float32)
        return weight

    def pack(self, arrays: Mapping[str, Array]) -> Arrays:
        """``codes`` as bits, uint8 ``[rows, columns · bits / 8]``; ``scales`` as they are."""
        packed = dict(arrays)
        packed["codes"] = pack_codes(arrays["codes"], self.trellis.step_bits)
        return packed

    def unpack(self, packed: Mapping[str, Array], shape: tuple[int, int]) -> Arrays:
        """See `VectorFormat.unpack`."""
        arrays = dict(packed)
        steps = shape[1] // self.trellis.vector
        arrays["codes"] = unpack_codes(packed["codes"], self.trellis.step_bits, steps, signed=False)
        return arrays

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """See `VectorFormat.bits_per_weight`."""
        rows, columns = shape
        stored = rows * packed_size(columns // self.trellis.vector, self.trellis.step_bits)
        stored += 2 * (1 if self.whole else rows)
        return 8 * stored / (rows * columns)

    def refusal(self, rows: int, columns: int) -> str | None:
        """See `VectorFormat.refusal`."""
        del rows
        if columns % TILE:
            return f"{TILE} columns share a path, and {columns} columns are no multiple of {TILE}"
        return None

    def _values(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        del arrays
        return self.trellis.values()


@dataclasses.dataclass(frozen=True)
class TrellisGrid:
    """The sequences that 16 columns may take; rows go in tiles of 16.

    Attributes:
        format: the format.
        scales: float16 ``[rows, 1]`` or ``[1, 1]``.
        rows: rows of the weight.
        values: of every state, ``[states, vector]``.
        threads: of the search.
    """

    format: TrellisFormat
    scales: Array
    rows: int
    values: Array
    threads: int | None

    @property
    def width(self) -> int:
        """See `onnxq.formats.base.Grid`."""
        return TILE

    def round(self, values: Array, start: int, metric: Array | None = None) -> tuple[Array, Array]:
        """See `onnxq.formats.base.Grid`; any 16 columns are alike."""
        del start
        scales = np.broadcast_to(self.scales.astype(np.float32), (self.rows, 1))
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
        targets = values.astype(np.float32) * inverse
        vector = self.format.trellis.vector
        codes = np.empty((self.rows, TILE // vector), np.uint8)
        points = np.empty((self.rows, TILE), np.float32)
        whole = self.rows - self.rows % TILE
        for first, last in ((0, whole), (whole, self.rows)):
            if first < last:
                found = self._search(targets[first:last], metric)
                codes[first:last] = (found & (2**self.format.trellis.step_bits - 1)).reshape(
                    last - first, -1
                )
                points[first:last] = self.values[found].reshape(last - first, TILE)
        return codes, points * scales

    def arrays(self, codes: Array) -> Arrays:
        """See `onnxq.formats.base.SideGrid`."""
        return {"codes": codes, "scales": self.scales}

    def _search(self, targets: Array, metric: Array | None) -> Array:
        """States of the tiles of a whole number of rows of tiles, or of one smaller tile."""
        unit = 1 / _spread(self.values)
        # No value lies nearer to a target beyond all of them than the outermost does, and
        # distances that are too large for the search are all alike.
        reach = np.abs(self.values).max()
        rings = np.clip(targets, -reach, reach).reshape(
            max(1, len(targets) // TILE), -1, self.format.trellis.vector
        )
        return find_paths(
            self.format.trellis,
            self.values * unit,
            rings * unit,
            metric=metric,
            threads=self.threads,
        )


def _spread(values: Array) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _rings(codes: Array, width: int) -> Array:
    """Rows of codes as rings: ``[runs of ``width`` columns, rows · width]``."""
    split = codes.reshape(codes.shape[0], -1, width)
    return split.swapaxes(0, 1).reshape(split.shape[1], -1)


def _unrolled(rings: Array, width: int) -> Array:
    """Undo `_rings`."""
    split = rings.reshape(rings.shape[0], -1, width)
    return split.swapaxes(0, 1).reshape(split.shape[1], -1)
