"""Matrix products in NVFP4 as TensorRT computes them: weights and activations in FP4.

For a MatMul or Gemm with a constant weight W [K, N], in blocks of 16 along K::

    o = max|W| / (448 · 6)             one float32 scale of the scales
    s = E4M3(max|block| / 6 / o)       FP8, one for each block
    c = E2M1(W / (s · o))              codes: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives

    MatMul(x, W) → MatMul(DQ(c_x, DQ(s_x)), DQ(c, DQ(s, o))), c_x, s_x = TRT_FP4DynamicQuantize(x)

An FP4 GEMM wants both operands so: activations are rounded as the model runs, by an operator of
TensorRT's own, which no other runtime has. That is why this is a step of the build and no pass.
Source: TensorRT developer guide, "Working with Quantized Types", Dynamic Quantization; NVFP4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import Site, add_weight, ensure_opset, find_sites, read_weight, unique_value_name
from onnxq.graph.weights import weight_tensor

__all__ = ["BLOCK", "encode_nvfp4", "to_nvfp4"]

Array = np.ndarray[Any, Any]

BLOCK = 16
_OPSET = 23
_LARGEST_CODE, _LARGEST_SCALE, _SMALLEST_SCALE = 6.0, 448.0, 2.0**-9
_CODE, _SCALE = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
_ACTIVATION_SCALE = 1.0
"""Scale of the scales of activations: E4M3 then holds blocks whose largest value is 0.012 to 2688,
from 0.1 on to 4 bits."""


def to_nvfp4(model: ir.Model) -> dict[str, str]:
    """Rewrite ``model`` in place; return why sites were left as they are, by name.

    Raises:
        UnsupportedGraph: an operator has no equivalent at opset 23.
    """
    left: dict[str, str] = {}
    chosen: list[Site] = []
    for site in find_sites(model):
        reason = _refusal(site)
        if reason is None:
            chosen.append(site)
        else:
            left[site.name] = reason
    if not chosen:
        return left
    ensure_opset(model, _OPSET)
    model.opset_imports.setdefault("trt", 1)
    model.ir_version = max(model.ir_version, 11)
    rounded: dict[ir.Value, ir.Value] = {}
    for site in chosen:
        _rewrite(site, rounded)
    return left


def encode_nvfp4(weight: Array, axis: int) -> tuple[Array, Array, Array]:
    """Codes (FP4), scales of blocks of 16 along ``axis`` (FP8) and the scale of scales (float32).

    Args:
        weight: a matrix; its length along ``axis`` is a multiple of 16.
        axis: what is summed over.
    """
    moved = np.moveaxis(np.asarray(weight, np.float32), axis, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1)
    top = float(largest.max())
    outer = np.asarray(top / (_LARGEST_CODE * _LARGEST_SCALE) if top > 0 else 1.0, np.float32)
    wanted = np.clip(largest / _LARGEST_CODE / outer, _SMALLEST_SCALE, _LARGEST_SCALE)
    scales = wanted.astype(_SCALE.numpy())
    steps = scales.astype(np.float32)[..., None] * outer
    codes = np.clip(blocks / steps, -_LARGEST_CODE, _LARGEST_CODE).astype(_CODE.numpy())
    back = np.moveaxis(codes.reshape(moved.shape), -1, axis)
    return np.ascontiguousarray(back), np.ascontiguousarray(np.moveaxis(scales, -1, axis)), outer


def _refusal(site: Site) -> str | None:
    """Why a site is no FP4 GEMM; None when it can be one."""
    if site.kind not in ("MatMul", "Gemm") or site.path:
        return f"it is a {site.kind}{' in a body' if site.path else ''}, and FP4 is for GEMM"
    if site.already is not None:
        return f"it is already quantized ({site.already})"
    if site.refusal is not None:
        return site.refusal
    if site.weight_index != 1 or site.via or len(site.shape) != 2:
        return "its weight is no plain matrix on the right: fold constants first"
    if site.kind == "Gemm" and site.node.attributes.get_int("transA"):
        return "it transposes its activations"
    if site.shape[site.in_axis] % BLOCK:
        return f"its {site.shape[site.in_axis]} inputs are not a whole number of blocks of {BLOCK}"
    return None


def _rewrite(site: Site, rounded: dict[ir.Value, ir.Value]) -> None:
    graph, weight, x = site.node.graph, site.weight, site.input
    if not isinstance(graph, ir.Graph) or weight is None or x is None:
        raise ValueError(f"site {site.name!r} was not asked for its refusal")
    kind = weight_tensor(weight).dtype
    if x not in rounded:
        rounded[x] = _round(graph, x, site.node, kind)
    index = next(i for i, value in enumerate(site.node.inputs) if value is x)
    site.node.replace_input_with(index, rounded[x])
    codes, scales, outer = _store(graph, weight, site)
    second = _node(graph, site.node, "DequantizeLinear", [scales, outer], {}, f"{codes.name}_steps")
    attributes = {"axis": site.in_axis, "block_size": BLOCK}
    name = f"{codes.name}_back"
    back = _node(graph, site.node, "DequantizeLinear", [codes, second], attributes, name)
    site.node.replace_input_with(1, _cast(graph, site.node, back, kind))


def _store(graph: ir.Graph, weight: ir.Value, site: Site) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The three arrays of a weight; computed when the model is saved."""
    shape = site.shape
    blocks = tuple(n // BLOCK if a == site.in_axis else n for a, n in enumerate(shape))

    def part(number: int) -> Callable[[], Array]:
        return lambda: np.asarray(encode_nvfp4(read_weight(weight), site.in_axis)[number])

    return (
        add_weight(graph, f"{weight.name}_fp4", shape=shape, dtype=_CODE, compute=part(0)),
        add_weight(graph, f"{weight.name}_scales", shape=blocks, dtype=_SCALE, compute=part(1)),
        add_weight(
            graph, f"{weight.name}_scale", shape=(), dtype=ir.DataType.FLOAT, compute=part(2)
        ),
    )


def _round(graph: ir.Graph, x: ir.Value, before: ir.Node, kind: ir.DataType) -> ir.Value:
    """An activation rounded as the model runs, and back; once for all readers."""
    scale = add_weight(
        graph,
        f"{x.name}_fp4_scale",
        shape=(),
        dtype=ir.DataType.FLOAT,
        compute=np.asarray(_ACTIVATION_SCALE, np.float32),
    )
    quantizer = ir.node(
        "TRT_FP4DynamicQuantize",
        [x, scale],
        {"axis": -1, "block_size": BLOCK, "scale_type": int(_SCALE)},
        domain="trt",
        num_outputs=2,
        name=unique_value_name(graph, f"{x.name}_fp4"),
    )
    for output, what, dtype in zip(
        quantizer.outputs, ("codes", "scales"), (_CODE, _SCALE), strict=True
    ):
        output.name, output.dtype = unique_value_name(graph, f"{x.name}_fp4_{what}"), dtype
    graph.insert_before(before, quantizer)
    codes, scales = quantizer.outputs
    steps = _node(graph, before, "DequantizeLinear", [scales, scale], {}, f"{x.name}_fp4_steps")
    attributes = {"axis": -1, "block_size": BLOCK}
    name = f"{x.name}_fp4_back"
    back = _node(graph, before, "DequantizeLinear", [codes, steps], attributes, name)
    back.shape = x.shape
    return _cast(graph, before, back, kind)


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, kind: ir.DataType) -> ir.Value:
    """What comes out of DequantizeLinear has the type of its scale, float32."""
    if kind is ir.DataType.FLOAT:
        return value
    return _node(graph, before, "Cast", [value], {"to": int(kind)}, f"{value.name}_cast", kind)


def _node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    attributes: dict[str, int],
    name: str,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    unique = unique_value_name(graph, name)
    node = ir.node(op_type, inputs, attributes, name=unique)
    node.outputs[0].name, node.outputs[0].dtype = unique, dtype
    graph.insert_before(before, node)
    return node.outputs[0]
