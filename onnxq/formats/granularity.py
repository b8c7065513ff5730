"""How many weights share one scale: frozen types, not flags.

A weight is in the canonical orientation ``[rows, columns]`` = ``[out, in]`` features.
"""

from __future__ import annotations

import dataclasses

from onnxq.errors import FormatError

__all__ = ["Granularity", "PerBlock", "PerChannel", "PerGroup", "PerTensor"]


@dataclasses.dataclass(frozen=True)
class PerTensor:
    """One scale for the whole weight: scales are ``[1, 1]``."""

    def __str__(self) -> str:
        return "tensor"

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales of a ``[rows, columns]`` weight."""
        return (1, 1)


@dataclasses.dataclass(frozen=True)
class PerChannel:
    """One scale for each row, i.e. output channel: scales are ``[rows, 1]``."""

    def __str__(self) -> str:
        return "channel"

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales of a ``[rows, columns]`` weight."""
        return (rows, 1)


@dataclasses.dataclass(frozen=True)
class PerGroup:
    """One scale for ``size`` neighbours of a row: scales are ``[rows, ceil(columns / size)]``."""

    size: int

    def __post_init__(self) -> None:
        _require_positive("group size", self.size)

    def __str__(self) -> str:
        return f"g{self.size}"

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales of a ``[rows, columns]`` weight."""
        return (rows, -(-columns // self.size))


@dataclasses.dataclass(frozen=True)
class PerBlock:
    """One scale for a tile: scales are ``[ceil(R / rows), ceil(C / columns)]``."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        _require_positive("block rows", self.rows)
        _require_positive("block columns", self.columns)

    def __str__(self) -> str:
        return f"b{self.rows}x{self.columns}"

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales of a ``[rows, columns]`` weight."""
        return (-(-rows // self.rows), -(-columns // self.columns))


Granularity = PerTensor | PerChannel | PerGroup | PerBlock


def _require_positive(what: str, value: int) -> None:
    if value < 1:
        raise FormatError(f"the {what} is {value}, and it must be 1 or more.")
