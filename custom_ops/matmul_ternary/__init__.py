"""Products of one or two planes of trits and tokens rounded to int8: ``MatMulTernary``."""

from onnxq.custom_ops.matmul_ternary.function import MATMUL_TERNARY
from onnxq.custom_ops.matmul_ternary.reference import matmul_ternary_reference

__all__ = ["MATMUL_TERNARY", "matmul_ternary_reference"]
