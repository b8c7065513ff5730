"""``onnxq.Hadamard``: fast rotation of activations, as they flow, by a Hadamard matrix."""

from __future__ import annotations

from onnxq.custom_ops.hadamard.function import HADAMARD, hadamard_node, is_hadamard
from onnxq.custom_ops.hadamard.reference import hadamard_reference

__all__ = ["HADAMARD", "hadamard_node", "hadamard_reference", "is_hadamard"]
