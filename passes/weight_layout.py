"""Codes, scales and zero points of a weight, along the axes its operator stores it in.

The axes themselves, and the canonical ones of the formats, are those of
`onnxq.graph.orientation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.formats import IntFormat, PerGroup, PerTensor
from onnxq.graph.orientation import from_rows
from onnxq.graph.sites import Site
from onnxq.graph.weights import weight_tensor

Array = np.ndarray[Any, Any]
Stored = dict[str, tuple[Array, ir.DataType]]
"""Arrays as they are stored, and their types, by name."""

_SIGNED = {2: ir.DataType.INT2, 4: ir.DataType.INT4, 8: ir.DataType.INT8}
_UNSIGNED = {2: ir.DataType.UINT2, 4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_CONV = ("Conv", "ConvTranspose")
_CHUNK = 1 << 20
"""Weights whose error is computed at once: a few megabytes."""


def storage_bits(fmt: IntFormat) -> int:
    """Bits of the ONNX integer type that holds one code of ``fmt``: 2, 4 or 8."""
    return next(bits for bits in _SIGNED if bits >= fmt.bits)


def weight_type(site: Site) -> ir.DataType:
    """The element type of a site's weight; the site must have one."""
    return weight_tensor(weight_of(site)).dtype


def weight_of(site: Site) -> ir.Value:
    """The stored weight of a site that has one."""
    if site.weight is None:
        raise ValueError(f"site {site.name!r} has no weight: check site.refusal first")
    return site.weight


def dequantize_inputs(site: Site, fmt: IntFormat, arrays: dict[str, Array]) -> Stored:
    """Codes, scales and (asymmetric) zero points as DequantizeLinear reads them."""
    columns = arrays["codes"].shape[-1]
    if site.kind not in _CONV:
        columns = site.shape[site.in_axis]
    bits = storage_bits(fmt)
    code_type = (_SIGNED if fmt.symmetric else _UNSIGNED)[bits]
    codes = from_rows(site, arrays["codes"][:, :columns])
    stored = {"codes": (codes.astype(code_type.numpy()), code_type)}
    scale_type = ir.DataType.FLOAT16 if fmt.scale_dtype == "float16" else weight_type(site)
    scales = _per_axis(site, fmt, arrays["scales"]).astype(scale_type.numpy())
    stored["scales"] = (scales, scale_type)
    if not fmt.symmetric:
        zeros = _per_axis(site, fmt, arrays["zeros"])
        stored["zeros"] = (zeros.astype(code_type.numpy()), code_type)
    return stored


def dequantize_attributes(site: Site, fmt: IntFormat) -> dict[str, int]:
    """``axis`` and ``block_size`` of the DequantizeLinear of a site."""
    if isinstance(fmt.granularity, PerTensor):
        return {}
    if isinstance(fmt.granularity, PerGroup):
        return {"axis": site.in_axis, "block_size": fmt.granularity.size}
    if _is_batched(site):
        return {"axis": site.in_axis, "block_size": site.shape[site.in_axis]}
    return {"axis": site.out_axis}


def _per_axis(site: Site, fmt: IntFormat, values: Array) -> Array:
    if isinstance(fmt.granularity, PerTensor):
        return values.reshape(())
    if isinstance(fmt.granularity, PerGroup) or _is_batched(site):
        return from_rows(site, values)
    return np.ascontiguousarray(values.reshape(-1))


def _is_batched(site: Site) -> bool:
    """A stack of matrices: one scale per output channel of each has no axis of its own."""
    return site.kind not in _CONV and len(site.shape) > 2


def relative_error(rows: Array, decode: Callable[[slice], Array]) -> float:
    """‖W − Ŵ‖ / ‖W‖ (Frobenius), some rows at a time; 0 for a weight of zeros.

    Args:
        rows: the weight, [rows, columns].
        decode: gives the stored weight of a slice of rows.
    """
    signal = noise = 0.0
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        exact = rows[part]
        difference = (decode(part) - exact).ravel()
        signal += float(np.einsum("rc,rc->", exact, exact, dtype=np.float64))
        noise += float(np.einsum("i,i->", difference, difference, dtype=np.float64))
    return math.sqrt(noise / signal) if signal else 0.0


def decode_rows(arrays: dict[str, Array], fmt: IntFormat, part: slice) -> Array:
    """Some rows of the weight that the arrays of a solver stand for."""
    by_row = not isinstance(fmt.granularity, PerTensor)
    return fmt.decode({k: a[part] if by_row or k == "codes" else a for k, a in arrays.items()})
