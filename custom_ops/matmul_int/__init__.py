"""Products of integer weights and tokens rounded to int8: the operator ``MatMulInt``."""

from onnxq.custom_ops.matmul_int.function import MATMUL_INT
from onnxq.custom_ops.matmul_int.reference import matmul_int_reference, rounded_tokens

__all__ = ["MATMUL_INT", "matmul_int_reference", "rounded_tokens"]
