"""What a session is fed from a sample that may hold more than it takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.errors import CalibrationError
from onnxq.runtime import Session

__all__ = ["feeds_of"]


def feeds_of(
    session: Session, sample: Mapping[str, np.ndarray], index: int
) -> dict[str, np.ndarray]:
    """The inputs of the session out of sample number ``index``; the rest is left out.

    Raises:
        CalibrationError: the sample lacks an input.
    """
    missing = [spec.name for spec in session.inputs if spec.name not in sample]
    if missing:
        raise CalibrationError(
            f"Sample {index} has no input {missing[0]!r}, which the model needs; it has "
            f"{', '.join(map(repr, sample))}."
        )
    return {spec.name: sample[spec.name] for spec in session.inputs}
