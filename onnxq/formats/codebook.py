"""Codes of vectors: runs of ``dimension`` columns are entries of a codebook, or sums of entries.

The weights of a run are ``scale · (C_1[i_1] + ... + C_m[i_m])``. Books are int8, all m of a weight
in units of one step, which the float16 scales hold: a kernel multiplies them with int8 activations
exactly as they are stored, and an entry of 8 numbers takes 8 bytes. Where a book has at most 256
entries the magnitudes of an entry sum to 258 at most, so that its product with int8 activations
fits in 16 bits. Both cost next to nothing: codes and scales are chosen with the books as stored.

- *Fitted* (``vq_d4n256``, ``vq_d2n16_g128``, ``aq_m2d8n256``): books are fitted to the weight
  (`onnxq.numerics.codebook`), each column weighted by its importance: GPTVQ (van Baalen et al.,
  arXiv:2402.15319), VPTQ (Liu et al., arXiv:2409.17066); with m > 1 books AQLM (Egiazarian et al.,
  arXiv:2401.06118), of which ``aq_m2d8n256`` is "2x8" and ``aq_m1d8n65536`` is "1x16". One set of
  books serves the whole weight, or with ``_b<rows>x<columns>`` each such block of it.
- *Fixed* (``higgs_d2n256_g256``): the grid of least squared error for normally distributed numbers
  (`onnxq.formats.gaussian`), for weights that were rotated: HIGGS (Malinovskii et al.,
  arXiv:2411.17525).

Scales: one for each row, or ``_g<size>`` for groups of its columns, or ``_tensor`` for all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats.base import Arrays, VectorFormat
from onnxq.formats.codebook_grid import CodebookGrid, fit_grid
from onnxq.formats.gaussian import GAUSSIAN_GRIDS
from onnxq.formats.granularity import PerChannel, PerGroup, PerTensor
from onnxq.formats.packing import pack_codes, packed_size, unpack_codes

__all__ = ["CodebookFormat"]

Array = npt.NDArray[Any]

_NAME = re.compile(
    r"(?P<family>vq|aq|higgs)_(?:m(?P<books>[1-9]\d*))?d(?P<dimension>\d+)n(?P<entries>\d+)"
    r"(?:_(?P<coarse>tensor|channel)|_g(?P<group>[1-9]\d*))?"
    r"(?:_b(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*))?"
)
_ENTRIES = (16, 64, 256, 4096, 65536)
_DIMENSIONS = (1, 2, 4, 8)
MOST_BOOKS = 16
BLOCK_ROWS = 64
"""Rows that share a book are a multiple of it: so many are computed side by side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookFormat(VectorFormat):
    """Codes into ``books`` codebooks, one of each for a run of ``dimension`` columns.

    Arrays, of a weight ``[rows, columns]``: ``codes`` uint8 (uint16 with more than 256 entries)
    ``[rows, columns / dimension · books]``, those of a run side by side; ``codebook`` int8
    ``[row blocks, column blocks, books, entries, dimension]``; ``scales`` float16 ``[rows or 1,
    groups]``.

    Attributes:
        dimension: 1, 2, 4 or 8.
        entries: 16, 64, 256, 4096 or 65536.
        books: how many are summed, up to 16.
        fixed: the book is that of normally distributed numbers.
        granularity: what shares a scale.
        block: (rows, columns) that share books; None for the whole weight.
    """

    dimension: int
    entries: int
    books: int = 1
    fixed: bool = False
    granularity: PerTensor | PerChannel | PerGroup = dataclasses.field(default_factory=PerChannel)
    block: tuple[int, int] | None = None

    keys: ClassVar[tuple[str, ...]] = ("codes", "codebook", "scales")

    def __post_init__(self) -> None:
        if self.dimension not in _DIMENSIONS or self.entries not in _ENTRIES:
            raise FormatError(
                f"a codebook has entries of 1, 2, 4 or 8 numbers, and 16, 64, 256, 4096 or 65536 "
                f"of them; not {self.entries} of {self.dimension}."
            )
        if not 1 <= self.books <= MOST_BOOKS:
            raise FormatError(f"1 to {MOST_BOOKS} books can be summed, not {self.books}.")
        if self.fixed and (self.books, self.block) != (1, None):
            raise FormatError("a fixed grid is one book for the whole weight: drop _m and _b.")
        if self.fixed and (self.dimension, self.entries) not in GAUSSIAN_GRIDS:
            known = ", ".join(f"d{dimension}n{count}" for dimension, count in GAUSSIAN_GRIDS)
            raise FormatError(f"there is no fixed grid {self}; there are {known}.")
        group = self.granularity.size if isinstance(self.granularity, PerGroup) else self.dimension
        width = self.block[1] if self.block else self.dimension
        if group % self.dimension or width % self.dimension:
            raise FormatError(
                f"{self} cuts its vectors: groups and blocks of columns must be multiples of "
                f"{self.dimension}."
            )
        if self.block and self.block[0] % BLOCK_ROWS:
            raise FormatError(f"the blocks of {self} must have a multiple of {BLOCK_ROWS} rows.")

    def __str__(self) -> str:
        many = f"m{self.books}" if self.books > 1 else ""
        family = "higgs" if self.fixed else "aq" if many else "vq"
        span = "" if isinstance(self.granularity, PerChannel) else f"_{self.granularity}"
        block = f"_b{self.block[0]}x{self.block[1]}" if self.block else ""
        return f"{family}_{many}d{self.dimension}n{self.entries}{span}{block}"

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return self.entries.bit_length() - 1

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
            dimension=int(match["dimension"]),
            entries=int(match["entries"]),
            books=int(match["books"] or 1),
            fixed=match["family"] == "higgs",
            granularity=granularity,
            block=(int(match["rows"]), int(match["columns"])) if match["rows"] else None,
        )

    @classmethod
    def names(cls) -> list[str]:
        """See `VectorFormat`."""
        fitted = ["vq_d2n16", "vq_d2n64", "vq_d2n256", "vq_d4n256", "vq_d4n4096", "vq_d8n65536"]
        fitted += ["vq_d4n256_g128", "vq_d4n256_b1024x1024"]
        summed = ["aq_m2d8n256", "aq_m3d8n256", "aq_m4d8n256", "aq_m2d4n256"]
        fixed = [f"higgs_d{dimension}n{count}_g256" for dimension, count in GAUSSIAN_GRIDS]
        return fitted + summed + fixed

    def grid(
        self,
        weight: npt.NDArray[np.float32],
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> CodebookGrid:
        """See `VectorFormat`.

        Raises:
            FormatError: weights too large for float16 scales.
        """
        return fit_grid(self, weight, importance=importance, seed=seed, threads=threads)

    def decode(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """See `VectorFormat`."""
        codebook, scales = arrays["codebook"], arrays["scales"]
        rows = len(arrays["codes"])
        runs = arrays["codes"].reshape(rows, -1, self.books)
        columns = runs.shape[1] * self.dimension
        row_block, column_block = self.block_shape(rows, columns)
        block_of_row = np.arange(rows)[:, None] // row_block
        block_of_run = np.arange(runs.shape[1]) * self.dimension // column_block
        sums = np.zeros((rows, runs.shape[1], self.dimension), np.float32)
        for index in range(self.books):
            sums += codebook[block_of_row, block_of_run, index, runs[..., index]]
        group_of_column = np.arange(columns) // self.group_size(columns)
        weight = sums.reshape(rows, columns)
        weight *= scales[:, group_of_column].astype(np.float32)
        return weight

    def pack(self, arrays: Mapping[str, Array]) -> Arrays:
        """See `VectorFormat`: codes as bits, row by row."""
        return {
            "codes": pack_codes(arrays["codes"], self.code_bits),
            "codebook": np.ascontiguousarray(arrays["codebook"], np.int8),
            "scales": np.ascontiguousarray(arrays["scales"], np.float16),
        }

    def unpack(self, packed: Mapping[str, Array], shape: tuple[int, int]) -> Arrays:
        """See `VectorFormat`."""
        count = shape[1] // self.dimension * self.books
        codes = unpack_codes(packed["codes"], self.code_bits, count, signed=False)
        return {"codes": codes, "codebook": packed["codebook"], "scales": packed["scales"]}

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """See `VectorFormat`."""
        rows, columns = shape
        stored = rows * packed_size(columns // self.dimension * self.books, self.code_bits)
        blocks = [
            -(-size // each) for size, each in zip(shape, self.block_shape(*shape), strict=True)
        ]
        stored += blocks[0] * blocks[1] * self.books * self.entries * self.dimension
        stored += 2 * int(np.prod(self.granularity.scales_shape(rows, columns)))
        return 8 * stored / (rows * columns)

    def refusal(self, rows: int, columns: int) -> str | None:
        """See `VectorFormat`."""
        if columns % self.dimension:
            return f"its {columns} columns are not a whole number of vectors of {self.dimension}"
        return None

    def group_size(self, columns: int) -> int:
        """How many columns of a row share a scale."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else columns

    def block_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """How many rows and columns share books."""
        if self.block is None:
            return rows, columns
        return min(self.block[0], rows), min(self.block[1], columns)
