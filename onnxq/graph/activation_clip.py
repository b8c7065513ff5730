"""The share of an activation's range that a transform found best to keep when it is quantized.

Clipping changes the function, so a transform that learned thresholds beside an equivalent change
must not apply them: it records them at the value, and the pass that quantizes activations reads
them there.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["clip_of", "record_clip"]

_KEY = "onnxq.activation_clip"


def record_clip(value: ir.Value, share: float) -> None:
    """Record that ``share``, in (0, 1], of the range of ``value`` is to be kept.

    Raises:
        ValueError: the share is outside.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"the share of a range is in (0, 1], not {share}")
    value.meta[_KEY] = float(share)


def clip_of(value: ir.Value) -> float:
    """The recorded share of the range; 1 where nothing is recorded."""
    found = value.meta.get(_KEY, 1.0)
    return float(found) if value.meta.is_valid(_KEY) else 1.0
