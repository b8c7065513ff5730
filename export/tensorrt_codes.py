"""What TensorRT takes as codes, zero points, scales and blocks: rules about one Q or DQ node.

Each function reads a model and yields what breaks its rule; the sentences of the rules and their
sources are in `onnxq.export.tensorrt_rules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxq.export.tensorrt_reading import REALS, Coded, Reading, constant, shape_of, type_of
from onnxq.graph import opset_of

__all__ = [
    "CODES",
    "Finding",
    "block_shape",
    "code_type",
    "finding",
    "gpu_generation",
    "opset",
    "scale_constant",
    "scale_shape",
    "scale_type",
    "scales_positive",
    "symmetric",
    "whole_blocks",
]

CODES = frozenset(
    {
        ir.DataType.INT8,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.INT4,
        ir.DataType.FLOAT4E2M1,
    }
)
"""Types of codes that TensorRT has kernels for."""

_INSTEAD = {
    ir.DataType.UINT8: "quantize for target tensorrt: int8 with zero point 0",
    ir.DataType.INT2: "store the weight as int4 in blocks of 64 or 128",
    ir.DataType.UINT2: "store the weight as int4 in blocks of 64 or 128, symmetric",
    ir.DataType.UINT4: "store the weight as int4, symmetric (without _asym in the format)",
}
_SINCE = {
    ir.DataType.FLOAT8E4M3FN: 19,
    ir.DataType.INT4: 21,
    ir.DataType.FLOAT4E2M1: 23,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What breaks a rule.

    Attributes:
        node: the node that breaks it.
        name: its name, with its path.
        tensor: the value concerned.
        found: what was found, a clause.
        remedy: what to do.
    """

    node: ir.Node
    name: str
    tensor: str
    found: str
    remedy: str


def finding(coded: Coded, found: str, remedy: str, tensor: ir.Value | None = None) -> Finding:
    """A finding at a Q or DQ node; ``tensor`` is its data unless given."""
    value = coded.data if tensor is None else tensor
    return Finding(
        node=coded.node, name=coded.name, tensor=value.name or "", found=found, remedy=remedy
    )


def code_type(reading: Reading) -> Iterator[Finding]:
    """Codes of another type than INT8, FP8 E4M3, INT4 or FP4; int32 is left to `float_bias`."""
    for coded in reading.coded:
        if coded.quantizes and coded.type is None:
            yield finding(
                coded,
                "it names no type of codes: ONNX then means uint8, and TensorRT writes int8",
                "give it a zero point of int8, or output_dtype",
            )
        elif coded.type not in CODES and coded.type not in (None, ir.DataType.INT32):
            kind = coded.type.name if coded.type is not None else ""
            remedy = _INSTEAD.get(coded.type, "quantize to int8 or FP8 E4M3 (float8e4m3fn)")
            yield finding(coded, f"its codes are {kind}", remedy)


def symmetric(reading: Reading) -> Iterator[Finding]:
    """A zero point that is not 0, or is computed."""
    for coded in reading.coded:
        if coded.zero is None or coded.type is ir.DataType.FLOAT8E4M3FN:
            continue
        zero = constant(coded.zero)
        remedy = "quantize symmetrically: insert_qdq with target=tensorrt, formats without _asym"
        if zero is None:
            yield finding(coded, "its zero point is computed as the model runs", remedy, coded.zero)
        elif np.any(zero != 0):
            worst = zero.reshape(-1)[np.argmax(np.abs(zero))]
            yield finding(coded, f"its zero point is {worst:g}, not 0", remedy, coded.zero)


def scale_constant(reading: Reading) -> Iterator[Finding]:
    """A scale that is computed."""
    for coded in reading.coded:
        if coded.scales is None and not reading.is_dynamic(coded):
            yield finding(
                coded,
                "its scale is computed as the model runs",
                "calibrate the scale, or leave the site in float",
                coded.scale,
            )


def scale_type(reading: Reading) -> Iterator[Finding]:
    """A scale of another type than float32, float16 or bfloat16."""
    for coded in reading.coded:
        kind = type_of(coded.scale)
        if kind is not None and kind not in REALS:
            yield finding(
                coded,
                f"its scale is {kind.name}",
                "store scales as float32, float16 or bfloat16; those of NVFP4 go through a "
                "DequantizeLinear of their own",
                coded.scale,
            )


def scales_positive(reading: Reading) -> Iterator[Finding]:
    """A scale that is 0, negative, NaN or infinite."""
    for coded in reading.coded:
        if coded.scales is None:
            continue
        bad = ~((coded.scales > 0) & np.isfinite(coded.scales))
        if bad.any():
            where = [int(i) for i in np.argwhere(bad)[0]]
            yield finding(
                coded,
                f"its scale at {where} is {coded.scales[bad][0]:g}",
                "use positive scales (formats with _pos); 1 for what is all zeros",
                coded.scale,
            )


def scale_shape(reading: Reading) -> Iterator[Finding]:
    """Scales that are neither one, nor one for each channel, nor one for blocks of one axis."""
    for coded in reading.coded:
        scale, data = coded.scale_shape, shape_of(coded.data)
        if scale is None or data is None or np.prod(scale) == 1:
            continue
        if len(scale) == 1:
            channels = data[coded.axis] if coded.axis < len(data) else None
            if len(data) != 1 and channels != scale[0]:
                yield finding(
                    coded,
                    f"it has {scale[0]} scales along axis {coded.axis}, which has {channels}",
                    "set axis to that of the channels",
                    coded.scale,
                )
        elif block_shape(coded) is None:
            yield finding(
                coded,
                f"its scales {list(scale)} are not those of blocks of {list(data)} along one axis",
                "give one scale for the tensor, for each channel, or for whole blocks of one axis",
                coded.scale,
            )


def whole_blocks(reading: Reading) -> Iterator[Finding]:
    """Blocks that do not divide their axis: TensorRT takes their size from the shapes alone."""
    for coded in reading.coded:
        size, data, scale = (
            coded.node.attributes.get_int("block_size", 0),
            shape_of(coded.data),
            coded.scale_shape,
        )
        if size == 0 or data is None or scale is None or len(scale) != len(data):
            continue
        whole, count = data[coded.axis], scale[coded.axis]
        if whole % size and whole % count == 0:
            yield finding(
                coded,
                f"its last block of {size} is cut off: axis {coded.axis} has {whole}, and TensorRT "
                f"would read {count} blocks of {whole // count}",
                "leave this weight in float, or use a block size that divides it",
                coded.scale,
            )


def block_shape(coded: Coded) -> tuple[int, ...] | None:
    """The block that has one scale, by axis; None when there are no blocks along a single axis."""
    scale, data = coded.scale_shape, shape_of(coded.data)
    if scale is None or data is None or len(scale) != len(data) or len(scale) < 2:
        return None
    if any(s == 0 or d % s for d, s in zip(data, scale, strict=True)):
        return None
    block = tuple(d // s for d, s in zip(data, scale, strict=True))
    return block if sum(size != 1 for size in block) <= 1 else None


def opset(reading: Reading) -> Iterator[Finding]:
    """An operator set that cannot say what a node means."""
    have = opset_of(reading.model)
    for coded in reading.coded:
        need = _SINCE.get(coded.type, 10) if coded.type is not None else 10
        shape = coded.scale_shape
        if shape is not None and np.prod(shape) != 1:
            need = max(need, 21 if len(shape) > 1 else 13)
        if have < need:
            kind = coded.type.name if coded.type is not None else "codes"
            yield finding(
                coded,
                f"{kind} with scales {list(shape or ())} needs opset {need}, the model has {have}",
                f"put convert_opset with minimum={need} first in the recipe",
            )


def gpu_generation(reading: Reading) -> Iterator[Finding]:
    """FP8 before Ada (8.9), FP4 before Blackwell (10.0; in TensorRT-RTX 12.0)."""
    if not reading.capabilities:
        return
    oldest = min(reading.capabilities)
    needs = {
        ir.DataType.FLOAT8E4M3FN: 89,
        ir.DataType.FLOAT4E2M1: 120 if reading.runtime == "tensorrt-rtx" else 100,
    }
    second_level = {coded.scale.producer() for coded in reading.coded}
    for coded in reading.coded:
        need = needs.get(coded.type, 0) if coded.type is not None else 0
        if oldest < need and coded.node not in second_level and coded.type is not None:
            yield finding(
                coded,
                f"{coded.type.name} runs from compute capability {need / 10:.1f} on, and "
                f"{oldest / 10:.1f} is asked for",
                "build for newer GPUs only, or quantize to int8 or int4",
            )
