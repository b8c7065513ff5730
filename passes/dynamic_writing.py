"""Editing of a graph for `dynamic_int8`: integer products, convolutions and LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import (
    Site,
    add_weight,
    is_weight,
    read_weight,
    unique_value_name,
    walk_graphs,
)
from onnxq.graph.versions import opset_of
from onnxq.passes.dynamic_activations import DynamicActivations
from onnxq.passes.int8_weights import Int8Weight, Int8Weights, drop_unused, encode_int8
from onnxq.passes.site_operands import weight_refusal

__all__ = ["DynamicWriter", "dynamic_refusal", "lstm_refusal"]

_KINDS = ("MatMul", "Gemm", "Conv")
_GATE_INPUTS = ("W", "R")
_LSTM_INPUTS = 8


def dynamic_refusal(site: Site) -> str | None:
    """Why a site cannot become an integer product; None when it can."""
    if site.kind not in _KINDS:
        return f"{site.kind} has no form with activations quantized at run time"
    reason = weight_refusal(site)
    if reason is None and site.kind != "Conv" and len(site.shape) != 2:
        reason = f"its weight has shape {list(site.shape)}, and MatMulInteger is used on matrices"
    return reason


def lstm_refusal(site: Site) -> str | None:
    """Why an LSTM cannot become DynamicQuantizeLSTM; None when it can.

    W [directions, 4·hidden, inputs] and R [directions, 4·hidden, hidden] must both be constant.
    """
    node = site.node
    for index, label in enumerate(_GATE_INPUTS, start=1):
        value = node.inputs[index]
        if not is_weight(value) or value is None:
            return f"its weight {label} is computed: fold constants first"
        array = read_weight(value)
        if array.dtype != np.float32 or array.ndim != 3:
            return f"its weight {label} is {array.dtype}{list(array.shape)}, not 3-D float32"
        if not np.isfinite(array).all():
            return f"its weight {value.name!r} holds NaN or infinity"
    if node.attributes.get_int("layout", 0):
        return "its layout is batch first, which DynamicQuantizeLSTM does not take"
    return None


class DynamicWriter:
    """Rewrites sites of one model; quantizes each activation once in each graph."""

    def __init__(self, model: ir.Model, weights: Int8Weights, *, rows: bool = False) -> None:
        """Write into ``model``; activations get a scale for each row when ``rows``."""
        self._model = model
        self._weights = weights
        self._rows = rows
        self._replaced: list[ir.Value] = []
        # A node of a function only knows the graph inside it, which must not get initializers.
        self._homes: dict[ir.Node | ir.Value, ir.Graph | ir.Function] = {}
        for _, graph in walk_graphs(model):
            self._homes.update(dict.fromkeys(graph.inputs, graph))
            self._homes.update(dict.fromkeys(graph, graph))
        self._activations = DynamicActivations(self._homes, opset_of(model), rows=rows)

    def write(self, site: Site) -> Int8Weight:
        """Rewrite one site; an LSTM with both its weights, and its node goes."""
        if site.kind == "LSTM":
            return self._write_lstm(site)
        return self._write_conv(site) if site.kind == "Conv" else self._write_product(site)

    def finish(self) -> None:
        """Remove the float weights that nobody reads any more."""
        drop_unused(self._replaced)

    def _write_product(self, site: Site) -> Int8Weight:
        # By now the node may read what replaced the value the site was found with.
        x = site.node.inputs[0]
        assert site.weight is not None and x is not None  # dynamic_refusal has been asked
        node = site.node
        graph = self._homes[node]
        alpha = node.attributes.get_float("alpha", 1.0) if site.kind == "Gemm" else 1.0
        flipped = site.out_axis == 0
        weight = self._weights.write(
            graph, site.weight, site.out_axis, factor=alpha, transpose=flipped
        )
        if site.kind == "Gemm" and bool(node.attributes.get_int("transA", 0)):
            x = self._before(node, "Transpose", [x], {"perm": [1, 0]}, f"{x.name}_transposed")[0]
        read = self._activations.codes(x)
        product = self._before(
            node,
            "MatMulInteger",
            [read.codes, weight.codes, read.zero],
            {},
            f"{site.output.name}_int32",
        )[0]
        result = self._rescaled(site, product, read.scale, weight.scales)
        if site.kind == "Gemm":
            result = self._plus_bias(site, result)
        self._replace(site, result)
        return weight

    def _write_conv(self, site: Site) -> Int8Weight:
        # By now the node may read what replaced the value the site was found with.
        x = site.node.inputs[0]
        assert site.weight is not None and x is not None  # dynamic_refusal has been asked
        node = site.node
        graph = self._homes[node]
        weight = self._weights.write(graph, site.weight, site.out_axis)
        read = self._activations.codes(x, tuple(range(1, len(site.shape))))
        attributes = dict(node.attributes)
        product = self._before(
            node,
            "ConvInteger",
            [read.codes, weight.codes, read.zero],
            attributes,
            f"{site.output.name}_int32",
        )[0]
        shape = (-1,) + (1,) * (len(site.shape) - 2)
        spread = weight.scale.reshape(shape)
        scales = self._constant(node, f"{weight.scales.name}_spread", spread)
        result = self._rescaled(site, product, read.scale, scales)
        own = node.inputs[2] if len(node.inputs) > 2 else None
        if own is not None:
            axes = self._constant(node, f"{own.name}_shape", np.asarray(shape, dtype=np.int64))
            bias = self._before(node, "Reshape", [own, axes], {}, f"{own.name}_spread")[0]
            result = self._before(node, "Add", [result, bias], {}, f"{site.output.name}_sum")[0]
        self._replaced.append(weight.scales)
        self._replace(site, result)
        return weight

    def _rescaled(
        self, site: Site, product: ir.Value, scale: ir.Value, scales: ir.Value
    ) -> ir.Value:
        """``float(product) · (s_x · s_c)``, in the order that ONNX Runtime recognises.

        With a scale for each row, s_x · s_c would be as large as the product: one after the other.
        """
        node, name = site.node, site.output.name
        number = self._before(
            node, "Cast", [product], {"to": int(ir.DataType.FLOAT)}, f"{name}_integer"
        )[0]
        if self._rows:
            columns = self._before(node, "Mul", [number, scales], {}, f"{name}_columns")[0]
            return self._before(node, "Mul", [columns, scale], {}, f"{name}_rescaled")[0]
        both = self._before(node, "Mul", [scale, scales], {}, f"{name}_scale")[0]
        return self._before(node, "Mul", [number, both], {}, f"{name}_rescaled")[0]

    def _plus_bias(self, site: Site, result: ir.Value) -> ir.Value:
        """Add ``beta · C`` of a Gemm."""
        node = site.node
        own = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if own is None or beta == 0.0:
            return result
        if beta != 1.0:
            if is_weight(own):
                scaled = read_weight(own) * np.float32(beta)
                self._replaced.append(own)
                own = self._constant(node, f"{own.name}_scaled", scaled)
            else:
                factor = self._constant(node, f"{own.name}_beta", np.asarray(beta, np.float32))
                own = self._before(node, "Mul", [own, factor], {}, f"{own.name}_scaled")[0]
        return self._before(node, "Add", [result, own], {}, f"{site.output.name}_sum")[0]

    def _write_lstm(self, site: Site) -> Int8Weight:
        """LSTM → DynamicQuantizeLSTM: weights transposed to [directions, in, 4·hidden]."""
        node = site.node
        inputs = [*node.inputs, *[None] * (_LSTM_INPUTS - len(node.inputs))]
        extra: list[ir.Value] = []
        stored = []
        for index in (1, 2):
            value = inputs[index]
            assert value is not None  # lstm_refusal has been asked
            codes, scales, zeros, weight = self._gates(node, value)
            self._replaced.append(value)
            inputs[index] = codes
            extra.extend((scales, zeros))
            stored.append(weight)
        attributes = {k: v for k, v in node.attributes.items() if k != "layout"}
        outputs = self._before(
            node,
            "DynamicQuantizeLSTM",
            [*inputs, *extra],
            attributes,
            node.outputs[0].name or "lstm",
            domain="com.microsoft",
            count=len(node.outputs),
        )
        self._model.opset_imports.setdefault("com.microsoft", 1)
        for old, new in zip(node.outputs, outputs, strict=True):
            _take_over(old, new)
        self._homes[node].remove(node, safe=True)
        total = stored[0].nbytes + stored[1].nbytes
        weights = sum(int(np.prod(w.codes.shape.numpy())) for w in stored if w.codes.shape)
        return Int8Weight(
            codes=stored[0].codes,
            scales=stored[0].scales,
            scale=stored[0].scale,
            error=max(w.error for w in stored),
            bits=8.0 * total / weights,
            nbytes=total,
        )

    def _gates(
        self, node: ir.Node, value: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value, Int8Weight]:
        """Codes [directions, in, 4·hidden], scales and zero points [directions, 4·hidden]."""
        array = read_weight(value)
        directions, gates, width = array.shape
        rows, scale, error = encode_int8(array.reshape(directions * gates, width), 0)
        codes = rows.reshape(array.shape).transpose(0, 2, 1)
        scale = scale.reshape(directions, gates)
        coded = self._constant(node, f"{value.name}_int8", np.ascontiguousarray(codes))
        scales = self._constant(node, f"{value.name}_scale", scale)
        zeros = self._constant(node, f"{value.name}_zero", np.zeros_like(scale, dtype=np.int8))
        nbytes = codes.size + scale.nbytes + scale.size
        weight = Int8Weight(coded, scales, scale, error, 8.0 * nbytes / codes.size, nbytes)
        return coded, scales, zeros, weight

    def _before(
        self,
        node: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, Any],
        name: str,
        *,
        domain: str = "",
        count: int = 1,
    ) -> Sequence[ir.Value]:
        """A new node before ``node``; gives its outputs."""
        graph = self._homes[node]
        attrs = [
            value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(key, value)
            for key, value in attributes.items()
        ]
        unique = unique_value_name(graph, name)
        made = ir.Node(domain, op, inputs, attrs, num_outputs=count, name=unique)
        for index, output in enumerate(made.outputs):
            output.name = unique if index == 0 else f"{unique}_{index}"
        graph.insert_before(node, made)
        self._homes[made] = graph
        return made.outputs

    def _constant(self, node: ir.Node, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        dtype = ir.DataType.from_numpy(array.dtype)
        return add_weight(self._homes[node], name, shape=array.shape, dtype=dtype, compute=array)

    def _replace(self, site: Site, result: ir.Value) -> None:
        """Let ``result`` stand for the output of a site, whose node goes."""
        operand = site.node.inputs[site.weight_index]
        _take_over(site.output, result)
        self._homes[site.node].remove(site.node, safe=True)
        for via in reversed(site.via):
            unused = not any(v.uses() or v.is_graph_output() for v in via.outputs)
            if unused and via in self._homes and via.graph is not None:
                self._homes[via].remove(via, safe=True)
        self._replaced.extend(v for v in (site.weight, operand) if v is not None)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Give every use of ``old``, its type and its name to ``new``."""
    name = old.name
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}_float"
    new.name = name
