"""What passes share that fold an orthogonal matrix, of a kind that the recipe names."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from onnxq.errors import FormatError
from onnxq.numerics.rotation import KINDS, Kind
from onnxq.passes.float_transform import FloatTransform

__all__ = ["RotationPass"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotationPass(FloatTransform):
    """A transform by a matrix that `onnxq.numerics.rotation` makes.

    Attributes:
        matrix: how it is made.
        seed: of the random kinds.
    """

    matrix: Kind = "hadamard"
    seed: int = 0

    change: ClassVar[str] = "a rotation"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            FormatError: there is no such matrix.
        """
        if self.matrix not in KINDS:
            raise FormatError(f"there is no rotation {self.matrix!r}: choose one of {KINDS}.")

    @property
    def needs_samples(self) -> bool:
        """For a covariance."""
        return self.matrix.startswith("klt")
