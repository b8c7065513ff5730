"""Uniform integers: a code, one scale per group, and one zero point per group when asymmetric.

The value of a code is ``(code - zero) * scale``. How scales are chosen from a range, and why, is
told in `onnxq.numerics.rounding`; what scales of two levels are, in `onnxq.formats.two_level`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import array_api_compat
import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats.base import Arrays, check_weight
from onnxq.formats.granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor
from onnxq.formats.packing import pack_codes, packed_size, unpack_codes
from onnxq.formats.two_level import largest_ratio, round_scales, split_scales
from onnxq.numerics.rounding import MINMAX, Rounded, Rounding, round_groups
from onnxq.numerics.scale_search import ScaleGrid, round_to
from onnxq.numerics.whole import round_whole

__all__ = ["IntFormat"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntFormat:
    """Integers of ``bits`` bits over weights ``[rows, columns]``.

    Codes are int8 in ``[-2**(bits-1), 2**(bits-1) - 1]`` when symmetric — except that 8-bit ones
    stay in ``[-127, 127]``, a property TensorRT and saturating int8 kernels rely on — and uint8 in
    ``[0, 2**bits - 1]`` when asymmetric.

    Attributes:
        bits: 1 to 8.
        symmetric: no zero points.
        granularity: which weights share a scale.
        scale_dtype: ``float32`` or ``float16``; codes are chosen with the rounded scale.
        positive: keep symmetric scales above 0, which TensorRT asks for, at a cost of 0.2 dB
            (groups of 128) to 0.8 dB (groups of 32) at 4 bits. 8-bit scales are always positive.
        two_level: scales of a row are integer multiples of one number, which is what is stored,
            with an int8 for each group; of 1 to 4 bits and groups.
    """

    bits: int
    symmetric: bool = True
    granularity: Granularity = dataclasses.field(default_factory=PerChannel)
    scale_dtype: Literal["float32", "float16"] = "float32"
    positive: bool = False
    two_level: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise FormatError(f"an integer format has 1 to 8 bits, not {self.bits}.")
        if self.scale_dtype not in ("float32", "float16"):
            raise FormatError(
                f"scale_dtype is {self.scale_dtype!r}; choose 'float32' or 'float16'."
            )
        if self.positive and (not self.symmetric or self.bits == 8):
            object.__setattr__(self, "positive", False)
        if self.two_level:
            self._check_two_level()

    def __str__(self) -> str:
        parts = [f"int{self.bits}", str(self.granularity)]
        parts += [] if self.symmetric else ["asym"]
        parts += ["pos"] if self.positive else []
        parts += ["f16"] if self.scale_dtype == "float16" else []
        parts += ["two"] if self.two_level else []
        return "_".join(parts)

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return self.rounding(1).lowest

    @property
    def highest(self) -> int:
        """The largest code."""
        return self.rounding(1).highest

    def rounding(self, group: int, shrink: tuple[float, ...] = MINMAX) -> Rounding:
        """How `onnxq.numerics.rounding` is asked to round groups of ``group`` columns."""
        return Rounding(
            bits=self.bits,
            symmetric=self.symmetric,
            group=group,
            positive=self.positive,
            half_scales=self.scale_dtype == "float16",
            shrink=shrink,
        )

    def encode(
        self,
        weight: npt.NDArray[Any],
        *,
        shrink: tuple[float, ...] = MINMAX,
        threads: int | None = None,
    ) -> Arrays:
        """Round every weight to the nearest code.

        Args:
            weight: ``[rows, columns]``, a float type; a transposed view is read without a copy.
            shrink: factors tried on every scale (see `onnxq.numerics.rounding`); the default is
                the plain range of the group.
            threads: of the kernel; the result does not depend on it.

        Returns:
            ``codes`` ``[rows, columns]``, ``scales`` in ``scale_dtype``, shaped by the
            granularity, and ``zeros`` uint8 of the same shape when asymmetric.

        Raises:
            FormatError: not a matrix, empty, NaN or infinity, or too large for the scales.
        """
        check_weight(weight)
        rows, columns = weight.shape
        if isinstance(self.granularity, PerTensor):
            rounded = round_whole(weight, self.rounding(columns, shrink), threads=threads)
        elif isinstance(self.granularity, PerBlock):
            rounded = self._encode_blocks(weight, self.granularity, shrink, threads)
        else:
            how = self.rounding(self.group_size(columns), shrink)
            rounded = round_groups(weight.astype(np.float32, copy=False), how, threads=threads)
        if self.two_level:
            rounded = self._on_two_levels(weight, rounded, threads)
        shape = self.granularity.scales_shape(rows, columns)
        arrays: Arrays = {
            "codes": rounded.codes.reshape(rows, columns),
            "scales": rounded.scales.astype(self.scale_dtype).reshape(shape),
        }
        if rounded.zeros is not None:
            arrays["zeros"] = rounded.zeros.reshape(shape)
        return arrays

    def stored_scales(self, scales: Any) -> Any:
        """Scales as they are stored: what every solver chooses codes with.

        Args:
            scales: shaped by the granularity, a float type; NumPy or torch.

        Returns:
            Of ``scale_dtype``; of two levels, the whole scales.
        """
        if self.two_level:
            return round_scales(scales, self.largest_ratio)
        xp = array_api_compat.array_namespace(scales)
        return xp.astype(scales, getattr(xp, self.scale_dtype), copy=False)

    @property
    def largest_ratio(self) -> int:
        """The largest multiple of the row's number that a scale of two levels may be."""
        return largest_ratio(self.bits, self.symmetric)

    def decode(self, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """The weight ``[rows, columns]`` float32 that the arrays of `encode` stand for."""
        codes = arrays["codes"]
        weight = codes.astype(np.float32)
        if "zeros" in arrays:
            weight -= self.spread(arrays["zeros"], codes.shape).astype(np.float32)
        weight *= self.spread(arrays["scales"], codes.shape).astype(np.float32)
        return weight

    def pack(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """The bytes that are stored: codes and zeros as bits, row by row (see `pack_codes`).

        Of two levels, ``scales`` ``[rows, 1]`` are those of rows, ``ratios`` int8 those of groups.
        """
        packed: Arrays = {"codes": pack_codes(arrays["codes"], self.bits)}
        packed["scales"] = np.ascontiguousarray(arrays["scales"], self.scale_dtype)
        if self.two_level:
            split = split_scales(packed["scales"], self.largest_ratio)
            packed["scales"], packed["ratios"] = split
        if "zeros" in arrays:
            packed["zeros"] = pack_codes(arrays["zeros"], self.bits)
        return packed

    def unpack(self, packed: Mapping[str, npt.NDArray[Any]], shape: tuple[int, int]) -> Arrays:
        """Undo `pack` for a weight of ``shape`` = (rows, columns)."""
        rows, columns = shape
        groups = self.granularity.scales_shape(rows, columns)[1]
        arrays: Arrays = {
            "codes": unpack_codes(packed["codes"], self.bits, columns, signed=self.symmetric),
            "scales": packed["scales"],
        }
        if self.two_level:
            arrays["scales"] = packed["scales"] * packed["ratios"].astype(np.float32)
        if "zeros" in packed:
            arrays["zeros"] = unpack_codes(packed["zeros"], self.bits, groups, signed=False)
        return arrays

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Stored bits over weights, scales, zero points and the padding of rows counted."""
        rows, columns = shape
        scale_rows, groups = self.granularity.scales_shape(rows, columns)
        stored = rows * packed_size(columns, self.bits)
        if self.two_level:
            stored += scale_rows * (groups + np.dtype(self.scale_dtype).itemsize)
        else:
            stored += scale_rows * groups * np.dtype(self.scale_dtype).itemsize
        if not self.symmetric:
            stored += scale_rows * packed_size(groups, self.bits)
        return 8 * stored / (rows * columns)

    def group_size(self, columns: int) -> int:
        """How many columns of a row share a scale."""
        if isinstance(self.granularity, PerGroup):
            return self.granularity.size
        if isinstance(self.granularity, PerBlock):
            return self.granularity.columns
        return columns

    def spread(self, grouped: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Repeat scales or zeros so that they broadcast against codes of ``shape``."""
        rows, columns = shape
        if isinstance(self.granularity, PerBlock):
            grouped = np.repeat(grouped, self.granularity.rows, axis=0)[:rows]
        if isinstance(self.granularity, PerBlock | PerGroup):
            grouped = np.repeat(grouped, self.group_size(columns), axis=1)[:, :columns]
        return grouped

    def _on_two_levels(
        self, weight: npt.NDArray[Any], rounded: Rounded, threads: int | None
    ) -> Rounded:
        """The codes for scales of two levels near to those of ``rounded``."""
        scales = self.stored_scales(rounded.scales)
        how = self.rounding(self.group_size(weight.shape[1]))
        single = weight.astype(np.float32, copy=False)
        codes = round_to(single, how, ScaleGrid(scales, rounded.zeros), threads=threads)
        return Rounded(codes, scales, rounded.zeros)

    def _check_two_level(self) -> None:
        if not isinstance(self.granularity, PerGroup) or self.bits > 4:
            raise FormatError(
                f"{self} has scales of two levels, which are for groups of 1 to 4 bits: "
                "for example int4_g128_two."
            )
        if self.scale_dtype != "float32":
            raise FormatError(f"{self}: scales of two levels are float32 ones; leave out _f16.")

    def _encode_blocks(
        self,
        weight: npt.NDArray[Any],
        block: PerBlock,
        shrink: tuple[float, ...],
        threads: int | None,
    ) -> Rounded:
        """Round tiles as if each were one row: zeros that fill the edge change no range."""
        rows, columns = weight.shape
        down, across = block.scales_shape(rows, columns)
        padded = np.zeros((down * block.rows, across * block.columns), np.float32)
        padded[:rows, :columns] = weight
        tiles = padded.reshape(down, block.rows, across, block.columns).swapaxes(1, 2)
        size = block.rows * block.columns
        rounded = round_groups(
            tiles.reshape(down * across, size), self.rounding(size, shrink), threads=threads
        )
        codes = rounded.codes.reshape(down, across, block.rows, block.columns).swapaxes(1, 2)
        codes = np.ascontiguousarray(codes.reshape(padded.shape)[:rows, :columns])
        return Rounded(codes, rounded.scales, rounded.zeros)
