"""Does another runtime compute what ONNX Runtime computes on this machine's CPU?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.errors import ArtifactError
from onnxq.evaluate.deviation import DeviationSums

__all__ = ["compare_runtimes"]

_LEAST_DB = 20.0
"""Signal to noise that a right run has at least: rounding of activations to int8 may fall the
other way where two sums differ in their last bit, and 30 dB are left then in the worst model seen;
a wrong one has none."""


def compare_runtimes(
    runtime: str, outputs: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """The least signal to noise of all outputs, in dB, and where; None where all are equal.

    Args:
        runtime: the other one, for the message.
        outputs: by name, what is wanted and what was found.

    Raises:
        ArtifactError: the signal to noise of an output is less than that of any right run.
    """
    least, where = np.inf, ""
    for name, (wanted, found) in outputs.items():
        sums = DeviationSums()
        sums.add(wanted, found)
        decibels = sums.result().sqnr_db
        if decibels is not None and decibels < least:
            least, where = decibels, name
    if least < _LEAST_DB:
        raise ArtifactError(
            f"{runtime} computes another output {where!r} than ONNX Runtime on the CPU: signal to "
            f"noise {least:.1f} dB. This is a fault of one of them: please report it."
        )
    return {"compared": len(outputs), "sqnr_db": least if where else None, "least": where}
