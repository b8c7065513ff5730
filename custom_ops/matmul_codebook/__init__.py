"""Products with weights stored in codes of vectors: meaning, reference, kernels, ONNX Runtime."""

from __future__ import annotations

from onnxq.custom_ops.matmul_codebook.function import MATMUL_CODEBOOK
from onnxq.custom_ops.matmul_codebook.reference import matmul_codebook_reference

__all__ = ["MATMUL_CODEBOOK", "matmul_codebook_reference"]
