"""The operators that torch computes, in files by family; importing this fills the table."""

from __future__ import annotations

from onnxq.learning.operators import (
    activations,
    arithmetic,
    attention,
    attention_inputs,
    attention_onnx,
    convolution,
    indexing,
    linear,
    logic,
    normalization,
    pooling,
    quantization,
    reductions,
    resizing,
    shapes,
    types,
)
from onnxq.learning.operators.table import Call, known_operators, operator_of

__all__ = [
    "Call",
    "activations",
    "arithmetic",
    "attention",
    "attention_inputs",
    "attention_onnx",
    "convolution",
    "indexing",
    "known_operators",
    "linear",
    "logic",
    "normalization",
    "operator_of",
    "pooling",
    "quantization",
    "reductions",
    "resizing",
    "shapes",
    "types",
]
