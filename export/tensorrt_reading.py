"""A model as TensorRT sees it: its Q/DQ nodes, what they scale, and who reads them.

QuantizeLinear and DequantizeLinear are read once into `Coded`; `Reading` answers the questions of
the rules (`onnxq.export.tensorrt_rules`): where a value was rounded, over operators that only move
values, and which sites multiply by what.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import Site, find_sites, is_weight, read_weight, site_name, walk_nodes
from onnxq.graph.walk import is_operator_body
from onnxq.graph.weight_source import stored_weight

__all__ = [
    "DYNAMIC",
    "MOVES",
    "REALS",
    "WEIGHTED",
    "Coded",
    "Reading",
    "constant",
    "is_standard",
    "moves",
    "shape_of",
    "type_of",
]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators with kernels for quantized operands: convolution, transposed convolution, GEMM."""

MOVES = frozenset(
    [
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that commute with Q and DQ: Q is propagated backward over them, DQ forward."""

DYNAMIC = frozenset(["TRT_DynamicQuantize", "TRT_FP4DynamicQuantize", "TRT_MXFP8DynamicQuantize"])
"""TensorRT's own operators that round an activation in blocks, to scales of the moment."""

REALS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types that TensorRT computes in, and takes scales in."""

_STANDARD = ("", "ai.onnx")
_DEPTH = 32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """One QuantizeLinear or DequantizeLinear.

    Attributes:
        node: the node.
        name: its name, behind the path of its body or function.
        quantizes: whether it is a QuantizeLinear.
        data: what it rounds, or the codes it reads.
        scale: its scale.
        zero: its zero point; None when it has none.
        type: type of the codes; None where the model does not say.
        axis: of scales for each channel, or of blocks; not negative where the rank is known.
        of_weight: whether the data are known before the model runs.
    """

    node: ir.Node
    name: str
    quantizes: bool
    data: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    type: ir.DataType | None
    axis: int
    of_weight: bool

    @functools.cached_property
    def scales(self) -> np.ndarray[Any, Any] | None:
        """The scale as an array, also that of a second level of scales; None when computed."""
        return constant(self.scale)

    @property
    def scale_shape(self) -> tuple[int, ...] | None:
        """Shape of the scale; None when it is not known."""
        known = shape_of(self.scale)
        if known is None and self.scales is not None:
            return tuple(self.scales.shape)
        return known

    @property
    def is_per_tensor(self) -> bool:
        """Whether there is one scale for everything, as far as is known."""
        shape = self.scale_shape
        return shape is not None and int(np.prod(shape)) == 1

    @property
    def output(self) -> ir.Value:
        """What it gives."""
        return self.node.outputs[0]


class Reading:
    """One model, read for one runtime.

    Attributes:
        model: the model; only read.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        capabilities: the GPUs that are asked for, as major × 10 + minor; empty for any.
        plugins: operators that a plugin computes, whatever function the model has for them.
        nodes: (name, node) of all nodes outside of functions that are an operator's meaning.
        coded: all Q/DQ nodes, in graph order.
        sites: weights and products, as `onnxq.graph.find_sites` gives them.
    """

    def __init__(
        self,
        model: ir.Model,
        runtime: str = "tensorrt",
        capabilities: tuple[int, ...] = (),
        plugins: tuple[str, ...] = (),
    ) -> None:
        """Read ``model`` for ``runtime``."""
        self.model = model
        self.runtime = runtime
        self.capabilities = capabilities
        self.plugins = plugins
        self.nodes = [
            (site_name(path, node), node)
            for path, node in walk_nodes(model)
            if not is_operator_body(path)
        ]
        self._coded = {node: _coded(name, node) for name, node in self.nodes if _is_coding(node)}
        self.coded = tuple(self._coded.values())
        self.sites = tuple(find_sites(model))
        self._names = {node: name for name, node in self.nodes}

    def name(self, node: ir.Node) -> str:
        """Name of a node, with its path."""
        return self._names.get(node, node.name or node.op_type)

    def of(self, node: ir.Node | None) -> Coded | None:
        """The Q or DQ that a node is; None when it is neither."""
        return None if node is None else self._coded.get(node)

    def rounded(self, value: ir.Value | None) -> Coded | None:
        """The DequantizeLinear that a value comes from, over moves and casts of floats."""
        for _ in range(_DEPTH):
            producer = None if value is None else value.producer()
            found = self.of(producer)
            if found is not None:
                return None if found.quantizes else found
            if producer is None or not (moves(producer) or _casts_reals(producer)):
                return None
            value = producer.inputs[0]
        return None

    def is_cast(self, value: ir.Value | None, coded: Coded) -> bool:
        """Whether there is a cast between a DequantizeLinear and a value that comes from it."""
        while value is not None and value is not coded.output:
            producer = value.producer()
            if producer is None or is_standard(producer, "Cast"):
                return producer is not None
            value = producer.inputs[0]
        return False

    def quantizer(self, coded: Coded) -> Coded | None:
        """The QuantizeLinear whose codes a DequantizeLinear reads."""
        value: ir.Value | None = coded.data
        for _ in range(_DEPTH):
            producer = None if value is None else value.producer()
            found = self.of(producer)
            if found is not None:
                return found if found.quantizes else None
            if producer is None or not moves(producer):
                return None
            value = producer.inputs[0]
        return None

    def is_dynamic(self, coded: Coded) -> bool:
        """Whether codes and their scales are computed together, by an operator of TensorRT's."""
        producer = coded.data.producer()
        return producer is not None and producer.op_type in DYNAMIC

    def readers(self, value: ir.Value, *, casts: bool = True) -> Iterator[tuple[ir.Node, int]]:
        """Who reads a value in the end, over moves and, of a float value, casts."""
        for node, index in value.uses():
            if index == 0 and (moves(node) or (casts and _casts_reals(node))):
                for output in node.outputs:
                    yield from self.readers(output, casts=casts)
            else:
                yield node, index

    def is_output(self, value: ir.Value) -> bool:
        """Whether a value, or a move of it, leaves its graph."""
        return value.is_graph_output() or any(
            self.is_output(output)
            for node, index in value.uses()
            if moves(node) and index == 0
            for output in node.outputs
        )

    def operand(self, site: Site) -> Coded | None:
        """The DequantizeLinear of the weight of a site; None when it is not stored in codes."""
        return self.rounded(site.node.inputs[site.weight_index])

    def is_quantized(self, node: ir.Node) -> bool:
        """Whether the first two operands of a weighted operator come out of DequantizeLinear."""
        return len(node.inputs) > 1 and all(self.rounded(v) is not None for v in node.inputs[:2])


def is_standard(node: ir.Node, *kinds: str) -> bool:
    """Whether a node is one of these standard operators."""
    return node.domain in _STANDARD and node.op_type in kinds


def moves(node: ir.Node) -> bool:
    """Whether a node only moves values."""
    return node.domain in _STANDARD and node.op_type in MOVES


def _casts_reals(node: ir.Node) -> bool:
    """Whether a node casts from one floating-point type to another."""
    return is_standard(node, "Cast") and ir.DataType(node.attributes.get_int("to")) in REALS


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """A value that is known before the model runs, as float64; None when it is computed.

    Over Cast and Identity, and over the DequantizeLinear of a scale of two levels.
    """
    if value is None:
        return None
    if is_weight(value):
        return read_weight(value).astype(np.float64)
    producer = value.producer()
    if producer is None or producer.domain not in _STANDARD:
        return None
    if producer.op_type in ("Cast", "Identity"):
        return constant(producer.inputs[0])
    if producer.op_type != "DequantizeLinear" or len(producer.inputs) < 2:
        return None
    codes, scale = constant(producer.inputs[0]), constant(producer.inputs[1])
    if codes is None or scale is None or scale.size != 1:
        return None
    return np.asarray(codes * scale.reshape(()))


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a value where all of it is known."""
    if value is None:
        return None
    if value.shape is None and value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(size) for size in value.shape.numpy())


def _is_coding(node: ir.Node) -> bool:
    known = is_standard(node, "QuantizeLinear", "DequantizeLinear")
    return known and len(node.inputs) > 1 and None not in node.inputs[:2]


def _coded(name: str, node: ir.Node) -> Coded:
    data, scale = node.inputs[0], node.inputs[1]
    if data is None or scale is None:
        raise ValueError(f"{name!r} has no data or scale: ask _is_coding first")
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    quantizes = node.op_type == "QuantizeLinear"
    axis = node.attributes.get_int("axis", 1)
    if axis < 0 and data.shape is not None:
        axis += len(data.shape)
    return Coded(
        node=node,
        name=name,
        quantizes=quantizes,
        data=data,
        scale=scale,
        zero=zero,
        type=_code_type(node, zero) if quantizes else type_of(data),
        axis=axis,
        of_weight=stored_weight(data) is not None,
    )


def _code_type(node: ir.Node, zero: ir.Value | None) -> ir.DataType | None:
    """What a QuantizeLinear writes: its zero point says, or an attribute since opset 21."""
    if zero is not None:
        return type_of(zero)
    given = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(given) if given else None


def type_of(value: ir.Value) -> ir.DataType | None:
    """The element type of a value, where it is known."""
    if value.dtype is None and value.const_value is not None:
        return value.const_value.dtype
    return value.dtype
