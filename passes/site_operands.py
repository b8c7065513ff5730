"""Whether the weight and the bias of a site can be stored as integers, and in which layout."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph import Site, read_weight

__all__ = ["bias_refusal", "operand_transposed", "weight_refusal"]

_MATRIX_VIEWS = frozenset({"Identity", "Transpose", "Cast"})


def weight_refusal(site: Site) -> str | None:
    """Why the weight of a site cannot be stored as int8 codes; None when it can."""
    operand = site.node.inputs[site.weight_index]
    if site.weight is None or operand is None:
        return "it has no constant weight"
    dtype = operand.dtype or site.weight.dtype
    if dtype not in (None, ir.DataType.FLOAT):
        return f"its weight is {dtype.name}, and int8 kernels give float32"
    if site.kind in ("MatMul", "Gemm") and site.weight_index != 1:
        return "its weight is on the left, where kernels take one scale and not one per channel"
    if site.via:
        views = {node.op_type for node in site.via}
        if site.kind not in ("MatMul", "Gemm") or views - _MATRIX_VIEWS or len(site.shape) != 2:
            return (
                f"its weight {site.weight.name!r} goes through {site.via[0].op_type} "
                f"{site.via[0].name!r}: fold constants first"
            )
    if not np.isfinite(read_weight(site.weight)).all():
        return f"its weight {site.weight.name!r} holds NaN or infinity"
    return None


def bias_refusal(site: Site) -> str | None:
    """Why the bias of a site cannot become int32; None when it can, or there is none."""
    own = site.node.inputs[2] if len(site.node.inputs) > 2 else None
    if own is None:
        return None
    if site.bias is None:
        return f"its bias {own.name!r} is computed, and int8 kernels take a constant one"
    shape = read_weight(site.bias).shape
    if len(shape) > 1 and (len(shape) > 2 or shape[0] != 1):
        return f"its bias {own.name!r} of shape {list(shape)} differs from row to row"
    return None


def operand_transposed(site: Site) -> bool:
    """Whether the 2-D stored weight is the transpose of what a MatMul or Gemm reads."""
    if not site.via:
        return False
    flipped = site.kind == "Gemm" and bool(site.node.attributes.get_int("transB", 0))
    return (site.in_axis, site.out_axis) != ((1, 0) if flipped else (0, 1))
