"""The verb ``onnxq outliers``: how far activations and weights are from what a grid serves well.

What the figures are is told in `onnxq.evaluate.outliers`; here they become rows of a table, for one
model, for two, and for the passes of a recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["moved_outliers"]

_COLUMNS = {
    "max/rms of a token": ("activation", "row_max_to_rms"),
    "of a tensor": ("activation", "max_to_rms"),
    "kurtosis": ("activation", "kurtosis"),
    "QSUR bits": ("activation", "qsur"),
    "weight max/rms": ("weight", "row_max_to_rms"),
}
"""What is measured, by the heading it is shown under."""


def moved_outliers(steps: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each pass that moves outliers: every figure before and after, middle and worst.

    Args:
        steps: of the report of an artifact.
    """
    for step in steps:
        found = step.get("outliers")
        if found is None or not found["sites"]:
            continue
        row: dict[str, Any] = {"pass": step["use"], "sites": len(found["sites"])}
        for heading, (what, figure) in _COLUMNS.items():
            values = found["summary"].get(what, {}).get(figure)
            row[heading] = None if values is None else " → ".join(_spread(values))
        yield row


def _spread(values: Mapping[str, float]) -> Iterator[str]:
    for side in ("before", "after"):
        yield f"{values[f'median_{side}']:.3g} ({values[f'worst_{side}']:.3g})"
