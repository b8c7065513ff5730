"""Products with points of the lattice E8: the operator ``MatMulE8P``."""

from onnxq.custom_ops.matmul_e8p.function import MATMUL_E8P
from onnxq.custom_ops.matmul_e8p.reference import matmul_e8p_reference

__all__ = ["MATMUL_E8P", "matmul_e8p_reference"]
