"""How a pass that solves weights on calibration data gathers its statistics."""

from __future__ import annotations

import dataclasses

from onnxq.calibration.segment_walk import Flow
from onnxq.calibration.segments import Cut
from onnxq.calibration.token_weights import TokenWeights

__all__ = ["Gathering"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathering:
    """See `onnxq.calibration.site_statistics.walk_sites`."""

    flow: Flow = "sequential"
    cut: Cut = "sites"
    token_weights: TokenWeights | None = None
    samples: int = 128
    refit: bool = False
    corrects_bias: bool = False
    keep_columns: int = 0
