"""Editing of a graph for `insert_qdq`: weights and biases of sites, Q/DQ pairs of points."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import Site, add_weight, names_held, read_weight, unique_value_name
from onnxq.passes.activation_grid import Parameters
from onnxq.passes.int8_weights import (
    Int8Weight,
    Int8Weights,
    drop_unused,
    int32_bias,
    scale_floor,
)
from onnxq.passes.qdq_placement import Placement, Point
from onnxq.passes.qdq_targets import Target
from onnxq.passes.site_operands import operand_transposed

__all__ = ["QdqWriter"]

_TYPES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8}


class QdqWriter:
    """Writes one model; makes each Q/DQ pair, weight copy and DequantizeLinear once."""

    def __init__(
        self,
        model: ir.Model,
        weights: Int8Weights,
        *,
        integer_bias: bool,
        corrections: Mapping[str, np.ndarray[Any, Any]],
    ) -> None:
        """Write into ``model``; biases become int32 when ``integer_bias``.

        ``corrections``, by site name and [channels], are subtracted from biases.
        """
        self._corrections = corrections
        self._graph = model.graph
        self._weights = weights
        self._integer_bias = integer_bias
        self._dequantized: dict[ir.Value, ir.Value] = {}
        self._replaced: list[ir.Value] = []
        self._views: list[ir.Node] = []

    def naming(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, new names of the model come from this writer only."""
        return names_held(self._graph)

    def absorb_conv_bias(self, site: Site) -> Site:
        """Move the constant that an Add behind a Conv adds per channel into the Conv itself."""
        if site.kind not in ("Conv", "ConvTranspose") or site.bias_node is None:
            return site
        assert site.bias is not None  # the topology finds both or neither
        add, output = site.bias_node, site.bias_node.outputs[0]
        bias = read_weight(site.bias).reshape(-1)
        value = add_weight(
            self._graph,
            f"{site.bias.name}_flat",
            shape=bias.shape,
            dtype=ir.DataType.FLOAT,
            compute=bias.astype(np.float32, copy=False),
        )
        _set_input(site.node, 2, value)
        # The observed range belongs to the name, and so may an output of the graph.
        site.output.name, output.name = output.name, site.output.name
        output.replace_all_uses_with(site.output, replace_graph_outputs=True)
        self._graph.remove(add, safe=True)
        self._replaced.append(site.bias)
        return dataclasses.replace(site, bias=value, bias_node=None)

    def write_site(self, site: Site, input_scale: float) -> Int8Weight:
        """Replace weight and bias of a site whose input has the scale ``input_scale``."""
        assert site.weight is not None  # weight_refusal has been asked
        node = site.node
        bias = self.bias_of(site)
        transposed = operand_transposed(site)
        integer = self._integer_bias and bias is not None
        weight = self._weights.write(
            self._graph,
            site.weight,
            site.out_axis,
            factor=_take_factor(node, "alpha") if site.kind == "Gemm" else 1.0,
            transpose=transposed,
            floor=scale_floor(bias, input_scale) if integer and bias is not None else None,
        )
        axis = 1 - site.out_axis if transposed else site.out_axis
        operand = node.inputs[site.weight_index]
        node.replace_input_with(
            site.weight_index, self.dequantized(weight.codes, weight.scales, axis)
        )
        self._views.extend(site.via)
        self._replaced.extend(v for v in (site.weight, operand) if v is not None)
        if bias is not None and site.bias is not None:
            self._write_bias(site, bias, input_scale, weight)
        return weight

    def _shield(self, accepted: Collection[ir.Node], target: Target) -> None:
        """Keep the runtime from quantizing, on its own and coarsely, what was left in float.

        A Max of one operand between DequantizeLinear and such a node computes nothing, and no
        optimizer removes it.
        """
        for node in tuple(self._graph):
            if node in accepted or node.op_type not in target.requantizes or node.domain:
                continue
            value = node.inputs[0]
            if value is not None and _comes_dequantized(value, target):
                kept = self._node("Max", [value], {}, f"{value.name}_float")
                kept.type, kept.shape = value.type, value.shape
                producer = kept.producer()
                assert producer is not None  # just made
                self._graph.insert_before(node, producer)
                node.replace_input_with(0, kept)

    def _remove_unused(self) -> None:
        """Remove weights, biases and views that only the replaced operands used."""
        for node in reversed(dict.fromkeys(self._views)):
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                self._graph.remove(node, safe=True)
        drop_unused(self._replaced)

    def bias_of(self, site: Site) -> np.ndarray[Any, Any] | None:
        """The corrected bias of a site, one number per output channel, beta taken in.

        None when it cannot be written so, and is left as it is.
        """
        bias = self._bias_array(site)
        shift = self._corrections.get(site.name)
        return bias if bias is None or shift is None else bias - shift

    def _bias_array(self, site: Site) -> np.ndarray[Any, Any] | None:
        if site.bias is None:
            return None
        bias = read_weight(site.bias).astype(np.float32, copy=False)
        if site.kind == "Gemm":
            channels = site.shape[site.out_axis]
            if bias.ndim > 1 and bias.shape[0] != 1:
                return None
            bias = np.broadcast_to(bias.reshape(-1), (channels,))
            return bias * np.float32(site.node.attributes.get_float("beta", 1.0))
        if site.bias_node is not None and not _fits_rank(site, bias.ndim):
            return None
        return bias.reshape(-1)

    def _write_bias(
        self, site: Site, bias: np.ndarray[Any, Any], input_scale: float, weight: Int8Weight
    ) -> None:
        assert site.bias is not None  # it was read
        site.node.attributes.pop("beta", None)
        if self._integer_bias:
            codes, scales = int32_bias(bias, input_scale, weight.scale)
            value = self.dequantized(
                self._add(f"{site.bias.name}_int32", codes, ir.DataType.INT32),
                self._add(f"{site.bias.name}_scale", scales, ir.DataType.FLOAT),
                0,
            )
        elif site.kind == "Gemm" or site.name in self._corrections:
            value = self._add(f"{site.bias.name}_float", np.ascontiguousarray(bias), None)
        else:
            return
        if site.bias_node is None:
            operand = site.node.inputs[2]
            _set_input(site.node, 2, value)
        else:
            index = 1 - next(i for i, v in enumerate(site.bias_node.inputs) if v is site.output)
            operand = site.bias_node.inputs[index]
            site.bias_node.replace_input_with(index, value)
        self._replaced.extend(v for v in (site.bias, operand) if v is not None)

    def _add(self, name: str, array: np.ndarray[Any, Any], dtype: ir.DataType | None) -> ir.Value:
        kind = dtype or ir.DataType.FLOAT
        return add_weight(self._graph, name, shape=array.shape, dtype=kind, compute=array)

    def dequantized(self, codes: ir.Value, scales: ir.Value, axis: int) -> ir.Value:
        """The DequantizeLinear of stored codes, at the beginning of the graph."""
        if codes not in self._dequantized:
            shape = () if scales.shape is None else scales.shape.numpy()
            dtype = codes.dtype or ir.DataType.INT8
            # ONNX Runtime makes no QGemm of a weight whose zero point is left out.
            zero = self._add(f"{codes.name}_zero", np.zeros(shape, dtype.numpy()), dtype)
            attributes = {"axis": axis} if shape else {}
            output = self._node(
                "DequantizeLinear", [codes, scales, zero], attributes, f"{codes.name}_dequantized"
            )
            output.dtype, output.shape = ir.DataType.FLOAT, codes.shape
            node = output.producer()
            assert node is not None  # just made
            self._graph.insert_before(self._graph[0], node)
            self._dequantized[codes] = output
        return self._dequantized[codes]

    def _node(
        self, op: str, inputs: list[ir.Value | None], attributes: dict[str, int], name: str
    ) -> ir.Value:
        unique = unique_value_name(self._graph, name)
        node = ir.node(op, inputs, attributes, name=unique)
        node.outputs[0].name = unique
        return node.outputs[0]

    def write_points(
        self, placement: Placement, accepted: Collection[ir.Node], target: Target
    ) -> None:
        """Write every point, shield what stays in float, and remove what nobody reads."""
        for point in placement.points.values():
            self._write_point(point)
        self._shield(accepted, target)
        self._remove_unused()

    def _write_point(self, point: Point) -> None:
        """Put the Q/DQ pair of a point behind its producer and connect its readers."""
        value = point.value
        readers = set(point.readers)
        if point.all:
            readers = {(use.node, use.idx) for use in value.uses()}
        back = self.pair(value, point.parameters)
        for node, index in readers:
            node.replace_input_with(index, back)
        if point.all and value.is_graph_output():
            self._hand_over_output(value, back)

    def pair(self, value: ir.Value, parameters: Parameters) -> ir.Value:
        """Put QuantizeLinear and DequantizeLinear behind ``value``; gives the rounded value."""
        scale, zero = self._constants(value, parameters)
        coded = self._node("QuantizeLinear", [value, scale, zero], {}, f"{value.name}_quantized")
        coded.dtype, coded.shape = _TYPES[parameters.dtype], value.shape
        back = self._node("DequantizeLinear", [coded, scale, zero], {}, f"{value.name}_dequantized")
        back.dtype, back.shape = ir.DataType.FLOAT, value.shape
        new = [node for node in (coded.producer(), back.producer()) if node is not None]
        if (producer := value.producer()) is not None:
            self._graph.insert_after(producer, new)
        else:
            self._graph.insert_before(self._graph[0], new)
        return back

    def _hand_over_output(self, value: ir.Value, back: ir.Value) -> None:
        """Make ``back`` the graph output that ``value`` was, under its name."""
        name = value.name
        value.name = unique_value_name(self._graph, f"{name}_float")
        back.name = name
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = back

    def _constants(self, value: ir.Value, given: Parameters) -> tuple[ir.Value, ir.Value]:
        dtype = _TYPES[given.dtype]
        scale = np.asarray(given.scale, dtype=np.float32)
        zero = np.asarray(given.zero, dtype=dtype.numpy())
        return (
            self._add(f"{value.name}_quantized_scale", scale, ir.DataType.FLOAT),
            self._add(f"{value.name}_quantized_zero", zero, dtype),
        )


def _comes_dequantized(value: ir.Value, target: Target) -> bool:
    """Whether a value is dequantized just before, or before operators that only move it."""
    producer = value.producer()
    while producer is not None and producer.op_type in target.pass_through:
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _take_factor(node: ir.Node, name: str) -> float:
    """The factor attribute of a Gemm (1 when absent), which is removed from the node."""
    attribute = node.attributes.pop(name, None)
    return 1.0 if attribute is None else float(attribute.as_float())


def _fits_rank(site: Site, rank: int) -> bool:
    """Whether a bias of this rank may be flattened without changing the rank of the sum."""
    if rank <= 1:
        return True
    shape = site.input.shape if site.input is not None else None
    return shape is not None and rank <= len(shape)


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
