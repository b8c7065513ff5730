"""E8P: points of the lattice E8 for eight weights at a time, at 2, 3 or 4 bits per weight.

A weight is its scale times a point of `onnxq.numerics.e8p`; 3 and 4 bits are 2 and a second stage.
Points are whole numbers in int8, so that operators compute with them as they are. The grammar is
``e8p<2|3|4>[_tensor]``: a float16 scale for each row, or one for the whole weight.
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
from onnxq.formats.granularity import PerChannel, PerTensor
from onnxq.numerics.e8p import (
    E8P_UNITS,
    E8P_WIDTH,
    e8p_costs,
    e8p_integers,
    e8p_stages,
    round_e8p,
)

__all__ = ["E8pFormat"]

Array = npt.NDArray[Any]

_GRAMMAR = re.compile(r"e8p(?P<bits>\d*)(?:_(?P<span>tensor|channel))?")

_NORMAL_SCALES = {2: 0.88, 3: 1.02, 4: 1.08}
"""1 of the lattice for weights of N(0, 1): the least error on 2^20 of them, by search."""

_FACTORS = (0.76, 0.82, 0.88, 0.94, 1.0, 1.06, 1.12, 1.18, 1.26, 1.36)
"""Tried on the scale that is best for the normal distribution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class E8pFormat(VectorFormat):
    """Lattice points of eight weights, in codes of 16 bits a stage (8 for the stage of one bit).

    Arrays: ``codes`` uint16 ``[rows, columns / 8 · stages]``, ``scales`` float16 ``[rows, 1]`` or
    ``[1, 1]``.

    Attributes:
        bits: 2, 3 or 4 per weight.
        granularity: ``PerChannel()``, a scale for each row, or ``PerTensor()``.
    """

    bits: int
    granularity: PerChannel | PerTensor = dataclasses.field(default_factory=PerChannel)

    def __post_init__(self) -> None:
        if self.bits not in E8P_UNITS:
            raise FormatError(f"E8P has 2, 3 or 4 bits per weight, not {self.bits}.")
        if not isinstance(self.granularity, PerChannel | PerTensor):
            raise FormatError(f"E8P has a scale for each row or for all, not {self.granularity}.")

    def __str__(self) -> str:
        return f"e8p{self.bits}" + ("_tensor" if isinstance(self.granularity, PerTensor) else "")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See `VectorFormat`."""
        match = _GRAMMAR.fullmatch(text)
        if match is None:
            return None
        if match["bits"] not in ("2", "3", "4"):
            raise FormatError(f"{text!r} is not a format: choose e8p2, e8p3 or e8p4.")
        span = PerTensor() if match["span"] == "tensor" else PerChannel()
        return cls(bits=int(match["bits"]), granularity=span)

    @classmethod
    def names(cls) -> list[str]:
        """See `VectorFormat`."""
        return [f"e8p{bits}{span}" for bits in E8P_UNITS for span in ("", "_tensor")]

    @property
    def stages(self) -> int:
        """Codes for eight weights."""
        return e8p_stages(self.bits)

    def refusal(self, rows: int, columns: int) -> str | None:
        """See `VectorFormat`."""
        del rows
        if columns % E8P_WIDTH:
            return f"its {columns} columns are not a multiple of {E8P_WIDTH}"
        return None

    def grid(
        self,
        weight: npt.NDArray[np.float32],
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> E8pGrid:
        """Choose the scales: those best for the normal distribution, and factors around them.

        Args:
            weight: ``[rows, columns]`` float32, finite.
            importance: ``[columns]``, what a squared error of each column costs; alike when None.
            seed: not used, nothing is random.
            threads: of kernels; the result does not depend on it.

        Raises:
            FormatError: weights too large for float16 scales.
        """
        del seed
        rows, columns = weight.shape
        weights = np.ones(columns) if importance is None else np.asarray(importance, np.float64)
        weights = weights / max(float(weights.mean()), 1e-300)
        power = np.square(weight.astype(np.float64)).mean(axis=1)
        whole = isinstance(self.granularity, PerTensor)
        if whole:
            power = np.full(rows, power.mean())
        base = np.sqrt(power) * _NORMAL_SCALES[self.bits]
        best, least = _stored(base, self), np.full(rows, np.inf)
        for factor in _FACTORS:
            scales = _stored(base * factor, self)
            costs = e8p_costs(
                weight, scales, weights.astype(np.float32), self.bits, threads=threads
            )
            if whole:
                costs = np.full(rows, costs.sum())
            better = costs < least
            best, least = np.where(better, scales, best), np.where(better, costs, least)
        return E8pGrid(fmt=self, scales=best, threads=threads)

    def encode(
        self,
        weight: Array,
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> Arrays:
        """See `VectorFormat`; all columns in one call of the kernel."""
        weight = self.checked(weight)
        grid = self.grid(weight, importance=importance, seed=seed, threads=threads)
        return grid.arrays(grid.round(weight, 0)[0])

    def decode(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """The scale times the point, which is a whole number over `E8P_UNITS`."""
        integers = e8p_integers(arrays["codes"], self.bits).astype(np.float32)
        unit = np.float32(1.0 / E8P_UNITS[self.bits])
        weight: npt.NDArray[np.float32] = integers * (arrays["scales"].astype(np.float32) * unit)
        return weight

    def pack(self, arrays: Mapping[str, Array]) -> Arrays:
        """``codes`` uint8 ``[rows, columns · bits / 8]``.

        The bytes of eight weights follow one another: signs and shift, pattern, and then those of
        the second stage, one at three bits and two at four.
        """
        codes = np.ascontiguousarray(arrays["codes"], "<u2")
        raw = codes.view(np.uint8).reshape(len(codes), -1, 2 * self.stages)[:, :, : self.bits]
        return {
            "codes": np.ascontiguousarray(raw).reshape(len(codes), -1),
            "scales": np.ascontiguousarray(arrays["scales"], np.float16),
        }

    def unpack(self, packed: Mapping[str, Array], shape: tuple[int, int]) -> Arrays:
        """See `VectorFormat`."""
        rows, columns = shape
        raw = np.zeros((rows, columns // E8P_WIDTH, 2 * self.stages), np.uint8)
        raw[:, :, : self.bits] = packed["codes"].reshape(rows, -1, self.bits)
        codes = raw.reshape(rows, -1).view("<u2").astype(np.uint16, copy=False)
        return {"codes": codes, "scales": packed["scales"]}

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bits of codes, and 16 for every scale."""
        rows, columns = shape
        scales = 1 if isinstance(self.granularity, PerTensor) else rows
        return self.bits + 16 * scales / (rows * columns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class E8pGrid:
    """Points of eight neighbouring columns, scales given.

    Attributes:
        fmt: the format.
        scales: ``[rows]`` float32, as float16 holds them.
        threads: of the kernel.
    """

    fmt: E8pFormat
    scales: npt.NDArray[np.float32]
    threads: int | None = None

    @property
    def width(self) -> int:
        """Eight columns at a time."""
        return E8P_WIDTH

    def round(self, values: Array, start: int, metric: Array | None = None) -> tuple[Array, Array]:
        """See `Grid`; any number of runs of eight columns at once, their errors taken as alike."""
        del start, metric
        return round_e8p(values, self.scales, self.fmt.bits, threads=self.threads)

    def arrays(self, codes: Array) -> Arrays:
        """See `SideGrid`."""
        shared = isinstance(self.fmt.granularity, PerTensor)
        scales = self.scales[:1] if shared else self.scales
        return {"codes": codes, "scales": scales[:, None].astype(np.float16)}


def _stored(scales: npt.NDArray[np.float64], fmt: E8pFormat) -> npt.NDArray[np.float32]:
    """Scales as float16 holds them."""
    largest = float(scales.max())
    if largest > 65504:
        raise FormatError(
            f"the weight needs a scale of {largest:.3g}, and float16 scales of {fmt} end at 65504: "
            "divide the weight by a constant and multiply the output by it."
        )
    return scales.astype(np.float16).astype(np.float32)
