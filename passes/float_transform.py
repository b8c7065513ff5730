"""What passes share that write the function of a float model in another way, before calibration."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxq.graph.stage import Stage
from onnxq.passes.base import Pass, Promise
from onnxq.passes.migration import refuse_calibrated

__all__ = ["FloatTransform"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatTransform(Pass):
    """A pass that moves numbers about within a prepared model that is not calibrated yet.

    Its function stays the same, its activations do not: what was measured of them would not fit.
    """

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION
    needs_stage: ClassVar[Stage] = Stage.PREPARED
    gives_stage: ClassVar[Stage | None] = Stage.TRANSFORMED
    change: ClassVar[str] = ""
    """What a refusal calls the change, such as ``a rotation``; empty for the key of the pass."""

    def requires(self, model: ir.Model) -> None:
        """Refuse a model that is calibrated or quantized.

        Raises:
            UnsupportedGraph: it is; says what to do.
        """
        refuse_calibrated(model, self.change or self.key())
