"""Does another runtime compute what ONNX Runtime computes on this machine's CPU?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq.errors import ArtifactError, OnnxqError
from onnxq.evaluate.deviation import DeviationSums
from onnxq.runtime import Session, random_samples

__all__ = ["NOT_COMPARED", "compare_runtimes", "random_runs"]

NOT_COMPARED = "not compared: the model does not run on random inputs"

_log = logging.getLogger(__name__)

_LEAST_DB = 20.0
"""Signal to noise that a right run has at least: rounding of activations to int8 may fall the
other way where two sums differ in their last bit, and 30 dB are left then in the worst model seen;
a wrong one has none."""


def random_runs(
    session: Session, count: int
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Random inputs and what the model computes of them; empty when it does not run on such.

    Some do not: a frame of sound has the length that the model was made for, and does not say so.

    Args:
        session: the model that a built one is compared with.
        count: of inputs.
    """
    try:
        return [(feeds, session.run(feeds)) for feeds in random_samples(session, count)]
    except OnnxqError as error:
        _log.info("%s: %s", NOT_COMPARED, error)
        return []


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
