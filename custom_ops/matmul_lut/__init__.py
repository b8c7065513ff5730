"""Products with weights whose codes are looked up in tables."""

from onnxq.custom_ops.matmul_lut.function import MATMUL_LUT
from onnxq.custom_ops.matmul_lut.reference import matmul_lut_reference

__all__ = ["MATMUL_LUT", "matmul_lut_reference"]
