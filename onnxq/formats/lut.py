"""Codes that are looked up in a table of 2 to 16 values: learned for the weight, or fixed.

The value of a code is ``lut[code] * scale``. Tables are int8, so that a kernel multiplies them with
int8 activations exactly as they are stored, and a table takes 2**bits bytes and one float16 scale;
with ``_f16`` they are float16 numbers. Rounding a learned table to int8 costs next to nothing: its
scale is chosen so that the entries that many weights take come out best.

- *Learned* (``lut4``, ``lut3_g128``, ``lut2_tensor``): the best table there is for the weights that
  share it (`onnxq.numerics.tables`), each weighted by its importance: Kim et al., SqueezeLLM
  (arXiv:2306.07629), where a table belongs to a row.
- *Fixed* (``nf4_g64``, ``fp4_g32``, ``post4``, ``power3``, ``twinlog4``): one table for the whole
  weight, from `onnxq.formats.levels`, and a scale for each row or group, the best of those from 0.3
  to 1 times what reaches the largest weight; with ``_absmax`` that one itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats.base import Arrays, VectorFormat
from onnxq.formats.granularity import PerChannel, PerGroup, PerTensor
from onnxq.formats.levels import LEVELS, levels
from onnxq.formats.packing import pack_codes, packed_size, unpack_codes
from onnxq.numerics.tables import FACTORS, Fitted, fit_tables, nearest_entries, search_scales

__all__ = ["LutFormat", "LutGrid"]

Array = npt.NDArray[Any]

_NAME = re.compile(
    rf"(?P<levels>lut|{'|'.join(LEVELS)})(?P<bits>\d+)"
    r"(?:_(?P<coarse>tensor|channel)|_g(?P<group>[1-9]\d*))?(?P<absmax>_absmax)?(?P<half>_f16)?"
)
_LARGEST = float(np.finfo(np.float16).max)
_TABLE_SCALES = 127.0 / np.arange(127, 91, -1)
"""How far scales of int8 tables are stretched, so that the table ends at 127, 126, ..., 92."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LutFormat(VectorFormat):
    """Codes of ``bits`` bits into tables.

    Arrays, of a weight ``[rows, columns]`` in groups (1 of them per row, or of the tensor):
    ``codes`` uint8 ``[rows, columns]``; ``lut`` int8 or float16 ``[rows or 1, groups or 1,
    2**bits]``, ascending; ``scales`` float16 ``[rows or 1, groups or 1]``. What all share has
    length 1.

    Attributes:
        bits: 1 to 4; of fixed tables 2 to 4.
        levels: ``lut`` when tables are learned, else a law of `onnxq.formats.levels`.
        granularity: what shares a table when learned, a scale when fixed.
        table_dtype: of the tables; learned float16 tables need no scales, and have one of 1.
        absmax: scales of fixed tables reach the largest weight and are not searched.
    """

    bits: int
    levels: str = "lut"
    granularity: PerTensor | PerChannel | PerGroup = dataclasses.field(default_factory=PerChannel)
    table_dtype: Literal["int8", "float16"] = "int8"
    absmax: bool = False

    keys: ClassVar[tuple[str, ...]] = ("codes", "lut", "scales")

    def __post_init__(self) -> None:
        if self.levels not in ("lut", *LEVELS):
            raise FormatError(f"levels is {self.levels!r}; choose lut, {', '.join(LEVELS)}.")
        least = 1 if self.learned else 2
        if not least <= self.bits <= 4:
            raise FormatError(
                f"a table has codes of {least} to 4 bits, not {self.bits}: "
                "more bits are served better by int5 to int8."
            )
        if self.absmax and self.learned:
            raise FormatError(f"{self} learns its tables and has no absmax scale: drop _absmax.")

    def __str__(self) -> str:
        span = "" if isinstance(self.granularity, PerChannel) else f"_{self.granularity}"
        absmax = "_absmax" if self.absmax else ""
        half = "_f16" if self.table_dtype == "float16" else ""
        return f"{self.levels}{self.bits}{span}{absmax}{half}"

    @property
    def learned(self) -> bool:
        """Whether tables are learned from the weight."""
        return self.levels == "lut"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See `VectorFormat`."""
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        granularity: PerTensor | PerChannel | PerGroup = PerChannel()
        if match["group"]:
            granularity = PerGroup(int(match["group"]))
        elif match["coarse"] == "tensor":
            granularity = PerTensor()
        return cls(
            bits=int(match["bits"]),
            levels=match["levels"],
            granularity=granularity,
            table_dtype="float16" if match["half"] else "int8",
            absmax=match["absmax"] is not None,
        )

    @classmethod
    def names(cls) -> list[str]:
        """See `VectorFormat`."""
        learned = [f"lut{bits}{span}" for bits in (1, 2, 3, 4) for span in ("", "_g128", "_tensor")]
        fixed = [f"{law}{bits}{span}" for law in LEVELS for bits in (3, 4) for span in ("", "_g64")]
        return learned + fixed

    def grid(
        self,
        weight: npt.NDArray[np.float32],
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> LutGrid:
        """See `VectorFormat`; ``importance`` may also be ``[rows, columns]``. Nothing is random.

        Raises:
            FormatError: weights too large for float16.
        """
        del seed
        flat, flat_importance = weight, importance
        if isinstance(self.granularity, PerTensor):
            flat = weight.reshape(1, -1)
            if importance is not None:
                flat_importance = np.broadcast_to(importance, weight.shape).reshape(1, -1)
        group = self.group_size(flat.shape[1])
        most = float(np.abs(weight).max())
        if most > _LARGEST:
            raise FormatError(
                f"weights as large as {most:.3g} are beyond the float16 numbers of {self}: leave "
                "this weight in float, or take an integer format."
            )
        if self.learned:
            entries = 2**self.bits
            fitted = fit_tables(
                flat, entries, group=group, importance=flat_importance, threads=threads
            )
            lut, scales = self.stored(fitted)
        else:
            lut, scales = self._fixed(flat, flat_importance, group, threads)
        return LutGrid(self, lut, scales, weight.shape[1], threads)

    def encode(
        self,
        weight: Array,
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> Arrays:
        """See `VectorFormat`."""
        weight = self.checked(weight)
        grid = self.grid(weight, importance=importance, seed=seed, threads=threads)
        return grid.arrays(grid.nearest(weight))

    def decode(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """See `VectorFormat`."""
        codes = arrays["codes"]
        rows, columns = codes.shape
        values = points(arrays["lut"], arrays["scales"])
        at = np.arange(columns) // self.group_size(columns)
        decoded: npt.NDArray[np.float32] = values[
            (np.arange(rows) if values.shape[0] > 1 else np.zeros(rows, np.intp))[:, None],
            at if values.shape[1] > 1 else np.zeros(columns, np.intp),
            codes,
        ]
        return decoded

    def pack(self, arrays: Mapping[str, Array]) -> Arrays:
        """See `VectorFormat`: codes as bits, row by row (see `pack_codes`)."""
        return {**arrays, "codes": pack_codes(arrays["codes"], self.bits)}

    def unpack(self, packed: Mapping[str, Array], shape: tuple[int, int]) -> Arrays:
        """See `VectorFormat`."""
        codes = unpack_codes(packed["codes"], self.bits, shape[1], signed=False)
        return {**packed, "codes": codes}

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """See `VectorFormat`."""
        rows, columns = shape
        down, across = self.granularity.scales_shape(rows, columns)
        tables = down * across if self.learned else 1
        learned_half = self.learned and self.table_dtype == "float16"
        stored = rows * packed_size(columns, self.bits)
        stored += tables * 2**self.bits * np.dtype(self.table_dtype).itemsize
        stored += 2 * (1 if learned_half else down * across)
        return float(8 * stored / (rows * columns))

    def group_size(self, columns: int) -> int:
        """How many columns of a row share a table or a scale."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else columns

    def stored(self, fitted: Fitted) -> tuple[Array, Array]:
        """Learned tables as ``lut`` and ``scales``, see the class.

        Of int8 tables, the scale is taken with which the masses of entries come out best.
        """
        tables, masses = fitted
        return self.stored_best(
            tables, lambda table: np.sum(masses * (tables - table) ** 2, axis=-1)
        )

    def stored_best(self, tables: Array, cost: Callable[[Array], Array]) -> tuple[Array, Array]:
        """Tables as ``lut`` and ``scales``: of int8 tables, those with the scale that costs least.

        Args:
            tables: float64 ``[..., entries]``.
            cost: of tables like these once they are stored, ``[...]``.
        """
        if self.table_dtype == "float16":
            return tables.astype(np.float16), np.ones((1,) * (tables.ndim - 1), np.float16)
        most = np.abs(tables).max(axis=-1)
        least = np.full(most.shape, np.inf)
        lut, scales = np.zeros(tables.shape, np.int8), np.ones(most.shape, np.float16)
        for stretch in _TABLE_SCALES:
            scale = (most / 127.0 * stretch).astype(np.float16)
            wide = np.where(scale == 0, 1, scale).astype(np.float64)[..., None]
            rounded = np.clip(np.rint(tables / wide), -127, 127)
            costs = cost(rounded * wide)
            better = costs < least
            least = np.where(better, costs, least)
            lut[better] = rounded[better]
            scales = np.where(better, wide[..., 0], scales).astype(np.float16)
        return lut, scales

    def _fixed(
        self, weight: Array, importance: Array | None, group: int, threads: int | None
    ) -> tuple[Array, Array]:
        """The table and scales with the least error, of all tables of the law."""
        tried: list[tuple[float, Array, Array]] = []
        for table in levels(self.levels, self.bits):
            lut = np.rint(table * 127).astype(np.int8)
            stored = lut if self.table_dtype == "int8" else table.astype(np.float16)
            scales, costs = search_scales(
                weight,
                stored.astype(np.float32),
                group=group,
                importance=importance,
                factors=(1.0,) if self.absmax else FACTORS,
                threads=threads,
            )
            cost = float(np.sum(costs[np.isfinite(costs)]))
            tried.append((cost, stored[None, None], scales.astype(np.float16)))
        _, lut, scales = min(tried, key=lambda one: one[0])
        return lut, scales


class LutGrid:
    """The tables of a weight: `SideGrid` of width 1."""

    def __init__(
        self, fmt: LutFormat, lut: Array, scales: Array, columns: int, threads: int | None
    ) -> None:
        """Tables and scales as `LutFormat` stores them."""
        self._fmt, self._lut, self._scales, self._threads = fmt, lut, scales, threads
        self._group = fmt.group_size(columns)
        table = lut.astype(np.float32)
        # [groups or 1, entries, rows or 1]: rows side by side.
        self._points = np.ascontiguousarray(points(lut, scales).transpose(1, 2, 0))
        self._borders = np.ascontiguousarray(
            (0.5 * (table[..., 1:] + table[..., :-1])).transpose(1, 2, 0)
        )
        self._inverse = np.ascontiguousarray(1 / scales.astype(np.float32).T)

    @property
    def width(self) -> int:
        """One column at a time."""
        return 1

    def round(self, values: Array, start: int, metric: Array | None = None) -> tuple[Array, Array]:
        """See `Grid`."""
        del metric  # one column
        at = start // self._group
        inverse = self._inverse[at % len(self._inverse)]
        above = values[:, 0].astype(np.float32, copy=False) * inverse
        codes: npt.NDArray[np.uint8] = np.sum(
            above > self._borders[at % len(self._borders)], axis=0, dtype=np.uint8
        )
        here = self._points[at % len(self._points)]
        found = here[codes, np.arange(len(codes)) if here.shape[1] > 1 else 0]
        return codes[:, None], found[:, None]

    def nearest(self, weight: Array) -> npt.NDArray[np.uint8]:
        """The codes of all columns, each rounded to nearest."""
        return nearest_entries(
            weight, self._lut, self._scales, group=self._group, threads=self._threads
        )

    def arrays(self, codes: Array) -> Arrays:
        """See `SideGrid`."""
        return {"codes": codes, "lut": self._lut, "scales": self._scales}


def points(lut: Array, scales: Array) -> npt.NDArray[np.float32]:
    """What codes stand for, ``[rows or 1, groups or 1, entries]``."""
    values: npt.NDArray[np.float32] = lut.astype(np.float32) * scales.astype(np.float32)[..., None]
    return values
