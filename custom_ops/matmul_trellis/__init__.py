"""Products with paths through trellises: the operator ``MatMulTrellis``."""

from onnxq.custom_ops.matmul_trellis.function import MATMUL_TRELLIS
from onnxq.custom_ops.matmul_trellis.reference import matmul_trellis_reference

__all__ = ["MATMUL_TRELLIS", "matmul_trellis_reference"]
