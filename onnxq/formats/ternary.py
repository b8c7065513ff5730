"""Trits: weights of -1, 0 or 1 times a scale, and sums of two such planes.

- ``ternary``: a · t. What BitNet b1.58 (Ma et al., arXiv:2402.17764) trains. A weight that is so
  already, as such checkpoints are when they are read as floats, is stored exactly.
- ``ternary2``: a · t₁ + b · t₂, the two trit-planes of PTQTP (Xiao et al., arXiv:2509.16989).

Names are ``ternary[2][_tensor | _channel | _g<size>][_f16]``: ``ternary``, ``ternary_tensor``,
``ternary2_g128_f16``; no granularity means ``channel``. Scales are float32, as exact storage wants;
with ``_f16`` they are float16. Trits are stored five to a byte, 1.6 bits each; kernels hold them in
1.67 or 2 bits (custom_ops/matmul_ternary/trits.h). How scales are found is told in
`onnxq.numerics.ternary`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError
from onnxq.formats.base import Arrays, VectorFormat
from onnxq.formats.granularity import PerChannel, PerGroup, PerTensor
from onnxq.formats.packing import pack_trits, packed_trits, unpack_trits
from onnxq.formats.uniform import IntFormat
from onnxq.numerics.ternary import Spans, fit_one, fit_two, nearest_codes, only_magnitudes

__all__ = ["TernaryFormat", "TernaryGrid"]

Array = npt.NDArray[Any]

_NAME = re.compile(
    r"ternary(?P<planes>2?)(?:_(?P<coarse>tensor|channel)|_g(?P<group>[1-9]\d*))?(?P<half>_f16)?"
)
_LEAST_COST = 1e-6  # of an error, over that of the mean: what no data show still has scales
_PART = 1 << 21  # weights whose scales are searched for at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class TernaryFormat(VectorFormat):
    """One or two planes of trits.

    Arrays: ``codes`` int8 ``[rows, columns]``, t or 3·t₁ + t₂; ``scales`` ``[rows or 1, planes ·
    groups]``, those of the first plane before those of the second, none of them negative.

    Attributes:
        planes: 1 or 2.
        granularity: what shares a scale, or one for each plane.
        scale_dtype: ``float32`` or ``float16``; codes are chosen with the rounded scale.
    """

    planes: int = 1
    granularity: PerTensor | PerChannel | PerGroup = dataclasses.field(default_factory=PerChannel)
    scale_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.planes not in (1, 2):
            raise FormatError(f"a ternary format has 1 or 2 planes, not {self.planes}.")
        if self.scale_dtype not in ("float32", "float16"):
            raise FormatError(
                f"scale_dtype is {self.scale_dtype!r}; choose 'float32' or 'float16'."
            )

    def __str__(self) -> str:
        span = "" if isinstance(self.granularity, PerChannel) else f"_{self.granularity}"
        half = "_f16" if self.scale_dtype == "float16" else ""
        return f"ternary{'2' if self.planes == 2 else ''}{span}{half}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """See `VectorFormat.parse`."""
        if not text.startswith("ternary"):
            return None
        match = _NAME.fullmatch(text)
        if match is None:
            raise FormatError(
                f"{text!r} is not a format; trits are named ternary or ternary2, then _tensor, "
                "_channel or _g<size>, then _f16: for example 'ternary' or 'ternary2_g128_f16'."
            )
        granularity: PerTensor | PerChannel | PerGroup = PerChannel()
        if match["group"]:
            granularity = PerGroup(int(match["group"]))
        elif match["coarse"] == "tensor":
            granularity = PerTensor()
        return cls(
            planes=2 if match["planes"] else 1,
            granularity=granularity,
            scale_dtype="float16" if match["half"] else "float32",
        )

    @classmethod
    def names(cls) -> list[str]:
        """See `VectorFormat.names`."""
        spans = ("", "_tensor", "_g128_f16", "_g64_f16")
        return [f"ternary{planes}{span}" for planes in ("", "2") for span in spans]

    def grid(
        self,
        weight: npt.NDArray[np.float32],
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> TernaryGrid:
        """Scales by the least error, exact where the weight is of trits; see `VectorFormat.grid`.

        Raises:
            FormatError: the weights are too large for a scale in float16.
        """
        del seed, threads
        rows, columns = weight.shape
        down, groups = self.granularity.scales_shape(rows, columns)
        spans, costs = self._spans(weight, importance)
        scales = np.empty((len(spans), self.planes), np.float32)
        step = max(groups, _PART // spans.shape[1] // groups * groups)
        for first in range(0, len(spans), step):
            part = slice(first, first + step)
            here = None if costs is None else np.tile(costs, (len(spans[part]) // len(costs), 1))
            scales[part] = self._fitted(spans[part], here)
        stored = scales.reshape(down, groups, self.planes).swapaxes(1, 2).reshape(down, -1)
        return TernaryGrid(self, self._stored(stored), columns)

    def encode(
        self,
        weight: Array,
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> Arrays:
        """See `VectorFormat.encode`."""
        weight = self.checked(weight)
        grid = self.grid(weight, importance=importance, seed=seed, threads=threads)
        return grid.arrays(grid.nearest(weight))

    def decode(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """See `VectorFormat.decode`."""
        codes = arrays["codes"]
        scales = self.split(arrays["scales"])
        weight = np.zeros(codes.shape, np.float32)
        for plane, trits in enumerate(self.trits(codes)):
            weight += trits * self._spread(scales[:, plane], codes.shape[1])
        return weight

    def pack(self, arrays: Mapping[str, Array]) -> Arrays:
        """``codes`` as trits, uint8 ``[rows, planes · ceil(columns / 5)]``; ``scales`` as they are.

        The planes of a row lie one behind the other, as their scales do.
        """
        planes = [pack_trits(trits) for trits in self.trits(arrays["codes"])]
        scales = np.ascontiguousarray(arrays["scales"], self.scale_dtype)
        return {"codes": np.concatenate(planes, axis=1), "scales": scales}

    def unpack(self, packed: Mapping[str, Array], shape: tuple[int, int]) -> Arrays:
        """See `VectorFormat.unpack`."""
        planes = [
            unpack_trits(codes, shape[1])
            for codes in np.split(packed["codes"], self.planes, axis=1)
        ]
        codes = planes[0] if self.planes == 1 else np.int8(3) * planes[0] + planes[1]
        return {"codes": codes, "scales": packed["scales"]}

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """See `VectorFormat.bits_per_weight`."""
        rows, columns = shape
        down, groups = self.granularity.scales_shape(rows, columns)
        each = rows * packed_trits(columns) + down * groups * np.dtype(self.scale_dtype).itemsize
        return 8 * self.planes * each / (rows * columns)

    def group_size(self, columns: int) -> int:
        """How many columns of a row share a scale."""
        return self.granularity.size if isinstance(self.granularity, PerGroup) else columns

    def trits(self, codes: npt.NDArray[np.int8]) -> list[npt.NDArray[np.int8]]:
        """The planes of ``codes``, the first one first, each of their shape."""
        if self.planes == 1:
            return [codes]
        first = (codes + np.int8(4)) // np.int8(3) - np.int8(1)
        return [first, codes - np.int8(3) * first]

    def split(self, scales: Array) -> npt.NDArray[np.float32]:
        """Stored scales as ``[rows or 1, planes, groups]`` float32."""
        return scales.astype(np.float32).reshape(len(scales), self.planes, -1)

    def as_integers(self) -> IntFormat | None:
        """The integer format whose arrays mean the same, but for its unused codes; None of two."""
        if self.planes == 2:
            return None
        return IntFormat(bits=2, granularity=self.granularity, scale_dtype=self.scale_dtype)

    def _spread(self, scales: Array, columns: int) -> Array:
        """Scales ``[rows or 1, groups]`` of each column."""
        return np.repeat(scales, self.group_size(columns), axis=1)[:, :columns]

    def _spans(
        self, weight: npt.NDArray[np.float32], importance: Array | None
    ) -> tuple[Array, Array | None]:
        """What shares scales ``[spans, size]``, and costs ``[groups, size]`` that repeat.

        Columns that fill up a last group are 0 and cost nothing.
        """
        columns = weight.shape[1]
        costs: Array | None = None
        if importance is not None:
            costs = np.asarray(importance, np.float64)
            costs = costs + _LEAST_COST * (costs.mean() or 1.0)
        if isinstance(self.granularity, PerTensor):
            if costs is not None:
                costs = np.broadcast_to(costs, weight.shape).reshape(1, -1)
            return weight.reshape(1, -1), costs
        size = min(self.group_size(columns), columns)
        missing = -columns % size
        if costs is None and not missing:
            return weight.reshape(-1, size), None
        filled = np.pad(weight, ((0, 0), (0, missing)))
        each = np.pad(np.ones(columns) if costs is None else costs, (0, missing))
        return filled.reshape(-1, size), each.reshape(-1, size)

    def _fitted(self, values: Array, costs: Array | None) -> npt.NDArray[np.float32]:
        """Scales ``[spans, planes]``."""
        most, is_ternary = only_magnitudes(values)
        spans = Spans.of(values, costs)
        found = fit_one(spans) if self.planes == 1 else fit_two(spans)[0]
        exact = np.zeros_like(found)
        exact[:, 0] = most
        return np.where(is_ternary[:, None], exact, found).astype(np.float32)

    def _stored(self, scales: npt.NDArray[np.float32]) -> Array:
        with np.errstate(over="ignore"):
            stored = scales.astype(self.scale_dtype)
        if not np.isfinite(stored).all():
            raise FormatError(
                f"weights with a scale of {scales.max():.4g} are too large for {self}, whose "
                "scales are float16: leave out _f16."
            )
        return stored


class TernaryGrid:
    """The scales of a weight: `SideGrid` of width 1."""

    def __init__(self, fmt: TernaryFormat, scales: Array, columns: int) -> None:
        """Scales as `TernaryFormat` stores them."""
        self._fmt, self._scales = fmt, scales
        self._group = fmt.group_size(columns)
        self._split = fmt.split(scales)

    @property
    def width(self) -> int:
        """One column at a time."""
        return 1

    def round(self, values: Array, start: int, metric: Array | None = None) -> tuple[Array, Array]:
        """See `Grid`."""
        del metric  # one column
        scales = np.broadcast_to(
            self._split[:, :, start // self._group], (len(values), self._fmt.planes)
        )
        codes = nearest_codes(values.astype(np.float32, copy=False), scales)
        planes = self._fmt.trits(codes)
        points = np.zeros(codes.shape, np.float32)
        for plane, trits in enumerate(planes):
            points += trits * scales[:, plane, None]
        return codes, points

    def nearest(self, weight: Array) -> npt.NDArray[np.int8]:
        """The codes of all columns, each rounded to nearest."""
        codes = np.empty(weight.shape, np.int8)
        for group in range(self._split.shape[2]):
            here = slice(group * self._group, (group + 1) * self._group)
            codes[:, here] = self.round(weight[:, here], here.start)[0]
        return codes

    def arrays(self, codes: Array) -> Arrays:
        """See `SideGrid`."""
        return {"codes": codes, "scales": self._scales}
