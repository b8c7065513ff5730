"""What every format offers, and what formats of points share.

A format of points stores codes of points: entries of a table, vectors of a codebook, paths of a
trellis. `VectorFormat.grid` first chooses what all codes of a weight share (scales, tables,
codebooks); the grid then rounds a few neighbouring columns at a time, either each for itself
(`VectorFormat.encode`) or with feedback of the errors before (`onnxq.solvers.ldlq`).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from onnxq.errors import FormatError

__all__ = ["Arrays", "Format", "Grid", "SideGrid", "VectorFormat", "check_weight"]

Array = npt.NDArray[Any]
Arrays = dict[str, npt.NDArray[Any]]
"""Arrays of the closed vocabulary: ``codes``, ``scales``, ``zeros``, ``lut``, ``codebook``, ..."""


@runtime_checkable
class Format(Protocol):
    """What stored bits mean. ``str()`` of a format is its name, which parses back to it."""

    def encode(self, weight: Array, *, threads: int | None = None) -> Arrays:
        """The arrays of a weight ``[rows, columns]``, each part rounded to nearest."""

    def decode(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """The weight ``[rows, columns]`` float32 that the arrays stand for."""

    def pack(self, arrays: Mapping[str, Array]) -> Arrays:
        """The arrays as they are stored, codes as bits."""

    def unpack(self, packed: Mapping[str, Array], shape: tuple[int, int]) -> Arrays:
        """Undo `pack` for a weight of ``shape`` = (rows, columns)."""

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Stored bits over weights, everything counted."""


class Grid(Protocol):
    """The points that a few neighbouring columns may take."""

    @property
    def width(self) -> int:
        """Columns rounded together; divides the columns of the weight."""

    def round(self, values: Any, start: int, metric: Any = None) -> tuple[Any, Any]:
        """Codes ``[rows, any]`` and points ``[rows, width]`` nearest to ``values``.

        Args:
            values: ``[rows, width]``.
            start: the first of these columns, in the order in which they are rounded.
            metric: M, ``[width, width]``: errors e of a row cost e M eᵀ; their squares when None.
                A grid that cannot look for the nearest point in it leaves it aside.
        """


class SideGrid(Grid, Protocol):
    """A grid for one weight, with what its codes share."""

    def arrays(self, codes: Array) -> Arrays:
        """The arrays of the format for ``codes``, those of `round` side by side."""


class VectorFormat(abc.ABC):
    """A format whose codes are found by a grid; a frozen dataclass."""

    @classmethod
    @abc.abstractmethod
    def parse(cls, text: str) -> Self | None:
        """The format of this name; None when it names no format of this family.

        Raises:
            FormatError: the family is meant and the rest of the name is wrong.
        """

    @classmethod
    @abc.abstractmethod
    def names(cls) -> list[str]:
        """Names in common use, for suggestions and listings."""

    @abc.abstractmethod
    def grid(
        self,
        weight: npt.NDArray[np.float32],
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> SideGrid:
        """Choose what the codes of this weight share.

        Args:
            weight: ``[rows, columns]`` float32, finite.
            importance: ``[columns]``, what a squared error of each column costs; alike when None.
            seed: of what is random.
            threads: of kernels; the result does not depend on it.
        """

    @abc.abstractmethod
    def decode(self, arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """The weight ``[rows, columns]`` float32 that the arrays stand for."""

    @abc.abstractmethod
    def pack(self, arrays: Mapping[str, Array]) -> Arrays:
        """The arrays as they are stored: the inputs of the operator behind the activations."""

    @abc.abstractmethod
    def unpack(self, packed: Mapping[str, Array], shape: tuple[int, int]) -> Arrays:
        """Undo `pack` for a weight of ``shape`` = (rows, columns)."""

    @abc.abstractmethod
    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Stored bits over weights: scales, tables, codebooks and padding counted."""

    def refusal(self, rows: int, columns: int) -> str | None:
        """Why a weight of this shape cannot be stored, as a clause; None when it can."""
        del rows, columns
        return None

    def encode(
        self,
        weight: Array,
        *,
        importance: Array | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> Arrays:
        """Round each run of columns to its nearest point.

        Args:
            weight: ``[rows, columns]``, a float type.
            importance: ``[columns]``, what a squared error of each column costs; alike when None.
            seed: of what is random.
            threads: of kernels; the result does not depend on it.

        Raises:
            FormatError: not a matrix, empty, NaN or infinity, or of a shape that is refused.
        """
        weight = self.checked(weight)
        grid = self.grid(weight, importance=importance, seed=seed, threads=threads)
        starts = range(0, weight.shape[1], grid.width)
        codes = [grid.round(weight[:, at : at + grid.width], at)[0] for at in starts]
        return grid.arrays(np.concatenate(codes, axis=1))

    def checked(self, weight: Array) -> npt.NDArray[np.float32]:
        """The weight as `grid` takes it.

        Raises:
            FormatError: as `encode`.
        """
        check_weight(weight)
        rows, columns = weight.shape
        reason = self.refusal(rows, columns)
        if reason is not None:
            raise FormatError(
                f"{self} cannot store a weight of shape [{rows}, {columns}]: {reason}."
            )
        single = np.ascontiguousarray(weight, np.float32)
        if not np.isfinite(single).all():
            raise FormatError(
                f"the weight holds NaN or infinity, which no code of {self} can stand for: look at "
                "how the model was trained or exported, or leave this weight in float"
            )
        return single


def check_weight(weight: Array) -> None:
    """Raise `FormatError` unless ``weight`` is a matrix of floats with something in it."""
    if weight.ndim != 2:
        raise FormatError(
            f"a weight of shape {list(weight.shape)} is not a matrix [rows, columns]: "
            "reshape it so that rows are output features."
        )
    if weight.size == 0:
        raise FormatError(
            f"a weight of shape {list(weight.shape)} is empty: there is nothing to quantize; "
            "leave it as it is."
        )
    if weight.dtype.kind != "f" and weight.dtype.name != "bfloat16":
        raise FormatError(
            f"a weight of type {weight.dtype.name} is not of floats: it may be quantized already."
        )
