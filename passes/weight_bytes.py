"""How many bytes a weight will take in the file, told before it is quantized."""

from __future__ import annotations

import numpy as np

from onnxq.custom_ops.catalog import spec_of
from onnxq.formats import Format, IntFormat, matmul_nbits_block, packed_size
from onnxq.graph.sites import Site
from onnxq.passes.weight_forms import Form, written_form
from onnxq.passes.weight_layout import storage_bits, weight_type

__all__ = ["stored_bytes"]


def stored_bytes(site: Site, fmt: Format, write: str) -> int:
    """Bytes of codes, scales, zero points, tables and codebooks as they will be stored.

    Args:
        site: a site that can be written so (`onnxq.passes.weight_forms.site_refusal`).
        fmt: the format of its weight.
        write: of `quantize_weights`.
    """
    columns = _columns(site)
    rows = int(np.prod(site.shape)) // columns
    form = written_form(site, fmt, write)
    if not isinstance(fmt, IntFormat) or form == "operator":
        return _of_operator(fmt, (rows, columns))
    return _of_integers(fmt, form, rows, columns, _scale_bytes(site, fmt))


def _columns(site: Site) -> int:
    if site.kind in ("Conv", "ConvTranspose"):
        return int(np.prod(site.shape)) // site.shape[site.out_axis]
    return site.shape[site.in_axis]


def _scale_bytes(site: Site, fmt: IntFormat) -> int:
    return 2 if fmt.scale_dtype == "float16" else weight_type(site).bitwidth // 8


def _of_operator(fmt: Format, shape: tuple[int, int]) -> int:
    spec = spec_of(fmt, shape)
    if isinstance(spec, str):
        raise ValueError(f"{spec}; check operator_refusal first")
    stored: int = round(fmt.bits_per_weight(shape) * shape[0] * shape[1] / 8)
    absent = [name for name in spec.placeholders if not _has(fmt, name)]
    return stored + sum(int(spec.placeholders[name].nbytes) for name in absent)


def _has(fmt: Format, array: str) -> bool:
    """Whether packed weights of an integer format have an array that others lack."""
    if not isinstance(fmt, IntFormat):
        return False
    return {"zeros": not fmt.symmetric, "ratios": fmt.two_level}.get(array, True)


def _of_integers(fmt: IntFormat, form: Form, rows: int, columns: int, scale: int) -> int:
    if form == "dequantize":
        bits = storage_bits(fmt)
        count = int(np.prod(fmt.granularity.scales_shape(rows, columns)))
        zeros = 0 if fmt.symmetric else packed_size(count, bits)
        return packed_size(rows * columns, bits) + count * scale + zeros
    block = matmul_nbits_block(fmt, columns)
    groups = -(-columns // block)
    zeros = 0 if fmt.symmetric else rows * packed_size(groups, fmt.bits)
    return rows * groups * (packed_size(block, fmt.bits) + scale) + zeros
