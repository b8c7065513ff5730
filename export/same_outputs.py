"""Does another runtime compute what ONNX Runtime computes on this machine's CPU?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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
_AS_MUCH_AGAIN_DB = 6.0
"""Twice the distance."""


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
    runtime: str,
    outputs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    exact: Callable[[], Mapping[str, np.ndarray]] | None = None,
) -> dict[str, Any]:
    """The least signal to noise of all outputs, in dB, and where; None where all are equal.

    Args:
        runtime: the other one, for the message.
        outputs: by name, what is wanted and what was found.
        exact: the outputs with activations that no kernel rounds. Asked where kernels round them
            each in their own way: then the other runtime may be as far from these as ONNX Runtime
            on the CPU is, and as much again.

    Raises:
        ArtifactError: an output is farther away than that of any right run.
    """
    found = {name: _decibels(*pair) for name, pair in outputs.items()}
    least = min(found, key=lambda name: found[name], default="")
    if least and found[least] < _LEAST_DB:
        true = exact() if exact is not None else {}
        for name, pair in outputs.items():
            if found[name] >= _LEAST_DB:
                continue
            own, other = (_decibels(true[name], one) for one in pair) if true else (np.inf, 0.0)
            if other < own - _AS_MUCH_AGAIN_DB:
                raise ArtifactError(
                    f"{runtime} computes another output {name!r} than ONNX Runtime on the CPU: "
                    f"signal to noise {found[name]:.1f} dB. This is a fault of one of them: "
                    "please report it."
                )
    where = least if least and np.isfinite(found[least]) else ""
    return {
        "compared": len(outputs),
        "sqnr_db": found[least] if where else None,
        "least": where,
    }


def _decibels(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal to noise; infinite for equal outputs and those that are no floats."""
    sums = DeviationSums()
    sums.add(wanted, found)
    decibels = sums.result().sqnr_db
    return np.inf if decibels is None else decibels
