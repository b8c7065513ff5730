"""How TensorRT wants stored weights: axis, blocks, who reads them.

Each function reads a model and yields what breaks its rule; the sentences of the rules and their
sources are in `onnxq.export.tensorrt_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.export.tensorrt_codes import Finding, block_shape, finding
from onnxq.export.tensorrt_reading import WEIGHTED, Coded, Reading, is_standard, shape_of
from onnxq.graph import Site
from onnxq.graph.weight_source import trace

__all__ = [
    "float_bias",
    "fp4_scales",
    "int4_blocks",
    "weight_axis",
    "weight_kernel",
    "weights_only",
]

_INT4_BLOCKS = (64, 128)
_FP4_BLOCK = 16
_NARROW = (ir.DataType.INT4, ir.DataType.FLOAT4E2M1)


def weight_axis(reading: Reading) -> Iterator[Finding]:
    """Scales for each channel of a weight along another axis than that of output features."""
    for site in reading.sites:
        coded = reading.operand(site)
        if coded is None or not coded.of_weight or coded.is_per_tensor or site.is_embedding:
            continue
        shape = coded.scale_shape
        if shape is None or len(shape) != 1 or site.refusal is not None:
            continue
        wanted = axis_at(site, coded, site.out_axis)
        if wanted is not None and coded.axis != wanted:
            yield finding(
                coded,
                f"its scales are along axis {coded.axis}, and the output features of "
                f"{site.kind} {site.name!r} are axis {wanted}",
                "quantize the weight with one scale for each output channel (int8_channel)",
                coded.scale,
            )


def weight_kernel(reading: Reading) -> Iterator[Finding]:
    """Codes of a weight that no weighted operator reads: a table to look up, a factor of a Mul."""
    for coded in reading.coded:
        if coded.quantizes or not coded.of_weight or coded.type is ir.DataType.INT32:
            continue
        readers = list(reading.readers(coded.output))
        if any(is_standard(node, *WEIGHTED) or reading.of(node) for node, _ in readers):
            continue
        who = ", ".join(dict.fromkeys(node.op_type for node, _ in readers)) or "nobody"
        yield finding(
            coded,
            f"its weight is read by {who}, in float: it is stored small and computed with in full",
            "leave it in float, or in float16, unless the size of the file is what counts",
        )


def float_bias(reading: Reading) -> Iterator[Finding]:
    """A bias stored as int32 behind DequantizeLinear."""
    for coded in reading.coded:
        if not coded.quantizes and coded.type is ir.DataType.INT32:
            yield finding(
                coded,
                "it dequantizes int32, as a bias for integer kernels is stored for ONNX Runtime",
                "leave the bias in float: insert_qdq with target=tensorrt",
            )


def weights_only(reading: Reading) -> Iterator[Finding]:
    """Activations rounded to INT4, or to FP4 with calibrated scales."""
    for coded in reading.coded:
        if coded.quantizes and not coded.of_weight and coded.type in _NARROW:
            yield finding(
                coded,
                f"it rounds an activation to {coded.type.name}",
                "leave the activation in float (weight-only), or round it to int8 or FP8",
            )


def int4_blocks(reading: Reading) -> Iterator[Finding]:
    """INT4 weights that are no GEMM operand in blocks, of 64 or 128 along what is summed.

    TensorRT-RTX takes blocks of any size along either axis, as long as there are several.
    """
    for site, coded in _weights(reading):
        if coded.type is not ir.DataType.INT4:
            continue
        remedy = (
            "use a format int4_g64_pos or int4_g128_pos with write=dequantize on MatMul or Gemm"
        )
        if site.kind not in ("MatMul", "Gemm"):
            yield finding(coded, f"it is the weight of a {site.kind}, no GEMM", remedy)
            continue
        if reading.runtime == "tensorrt-rtx":
            found = None if _has_blocks(coded) else "its scales are not for several blocks"
        else:
            found = _blocked(site, coded, _INT4_BLOCKS)
        if found is not None:
            yield finding(coded, found, remedy, coded.scale)


def _has_blocks(coded: Coded) -> bool:
    """Whether there are several blocks along one axis."""
    block, data = block_shape(coded), shape_of(coded.data)
    if block is None or data is None:
        return False
    return any(1 < size < whole for size, whole in zip(block, data, strict=True))


def fp4_scales(reading: Reading) -> Iterator[Finding]:
    """FP4 weights without the two levels of scales of NVFP4 in blocks of 16."""
    for site, coded in _weights(reading):
        if coded.type is not ir.DataType.FLOAT4E2M1:
            continue
        remedy = "store it as NVFP4: blocks of 16, FP8 E4M3 scales, one float32 scale for these"
        if site.kind not in ("MatMul", "Gemm"):
            yield finding(coded, f"it is the weight of a {site.kind}, no GEMM", remedy)
            continue
        found = _blocked(site, coded, (_FP4_BLOCK,))
        second = reading.of(coded.scale.producer())
        if found is None and (second is None or second.type is not ir.DataType.FLOAT8E4M3FN):
            found = "its scales are not FP8 E4M3 behind a DequantizeLinear"
        elif found is None and second is not None and not second.is_per_tensor:
            found = "the scale of its scales is not one number"
        if found is not None:
            yield finding(coded, found, remedy, coded.scale)


def _weights(reading: Reading) -> Iterator[tuple[Site, Coded]]:
    """The sites of the model with the DequantizeLinear of their weight."""
    for site in reading.sites:
        coded = reading.operand(site)
        if coded is not None and coded.of_weight:
            yield site, coded


def axis_at(site: Site, coded: Coded, axis: int) -> int | None:
    """The axis of the codes of a weight that is axis ``axis`` of the stored tensor."""
    axes = trace(coded.data).axes
    return axes.index(axis) if axis in axes else None


def _blocked(site: Site, coded: Coded, sizes: tuple[int, ...]) -> str | None:
    """Why the scales of a weight are not those of blocks of ``sizes``; None when they are."""
    wanted = " or ".join(str(size) for size in sizes)
    block, along = block_shape(coded), axis_at(site, coded, site.in_axis)
    if block is None or along is None:
        return f"its scales are not for blocks of {wanted}"
    if block[along] not in sizes:
        return f"it has blocks {list(block)}, not of {wanted} along the inputs, axis {along}"
    return None
