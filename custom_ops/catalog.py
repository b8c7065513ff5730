"""Every operator for matrix products with stored weights, and the one for a format."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.custom_ops.functions import DOMAIN
from onnxq.custom_ops.hadamard import HADAMARD
from onnxq.custom_ops.matmul_codebook import MATMUL_CODEBOOK
from onnxq.custom_ops.matmul_e8p import MATMUL_E8P
from onnxq.custom_ops.matmul_int import MATMUL_INT
from onnxq.custom_ops.matmul_lut import MATMUL_LUT
from onnxq.custom_ops.matmul_ternary import MATMUL_TERNARY
from onnxq.custom_ops.matmul_trellis import MATMUL_TRELLIS
from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format

__all__ = ["SPECS", "has_kernels", "spec_of"]

SPECS: tuple[OperatorSpec, ...] = (
    MATMUL_CODEBOOK,
    MATMUL_E8P,
    MATMUL_INT,
    MATMUL_LUT,
    MATMUL_TERNARY,
    MATMUL_TRELLIS,
)


def spec_of(fmt: Format, shape: tuple[int, int]) -> OperatorSpec | str:
    """The operator that multiplies with weights of a format.

    Args:
        fmt: the format.
        shape: (rows, columns) of the weight.

    Returns:
        The operator, or why there is none, as a clause.
    """
    reason = f"no operator of onnxq multiplies with {fmt}"
    for spec in SPECS:
        if isinstance(fmt, spec.formats):
            found = spec.refusal(fmt, shape)
            if found is None:
                return spec
            reason = found
    return reason


def has_kernels(node: ir.Node) -> bool:
    """Whether the library of operators computes this node."""
    return node.domain == DOMAIN and node.op_type in {HADAMARD, *(spec.name for spec in SPECS)}
