"""How a quantized weight is written into the graph: the three forms of `quantize_weights`.

One weight read by several sites is stored once per form, and an embedding tied to a MatMulNBits
shares its codes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxq.formats import IntFormat, PerGroup, encode_matmul_nbits, matmul_nbits_layout
from onnxq.graph.orientation import to_rows
from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, weight_tensor
from onnxq.passes.base import SiteReport
from onnxq.passes.fake_quantization import rounded_by
from onnxq.passes.kept_columns_writing import counted, write_kept_columns
from onnxq.passes.weight_layout import (
    Stored,
    decode_rows,
    dequantize_attributes,
    dequantize_inputs,
    relative_error,
    weight_of,
    weight_type,
)
from onnxq.passes.weight_solving import WeightSolver

_TWICE = (
    "ONNX Runtime fuses it and rounds its activation once more, to 8 bits by blocks, unless "
    "session.qdq_matmulnbits_accuracy_level is 0; write=auto avoids that"
)


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """The stored values of one weight in one form, and what they cost."""

    values: tuple[ir.Value | None, ...]
    nbytes: int
    error: float
    elements: int


class WeightWriter:
    """Encodes weights and edits sites; one per run of the pass."""

    def __init__(
        self,
        model: ir.Model,
        scratch: Scratch,
        solver: WeightSolver,
        accuracy_level: int,
    ) -> None:
        """Write into ``model`` the codes of ``solver``; large arrays go to ``scratch``."""
        self._model = model
        self._scratch = scratch
        self._solver = solver
        self._accuracy_level = accuracy_level
        self._written: dict[tuple[object, ...], _Encoded] = {}
        self._dequantized: dict[tuple[object, ...], ir.Value] = {}
        self._kept: dict[str, int] = {}

    def keep_columns(self, site: Site, fmt: IntFormat) -> None:
        """Write the columns of a site that stay in full precision, before the site itself."""
        kept = self._solver.kept(site, fmt)
        if kept is not None:
            self._kept[site.name] = write_kept_columns(site, kept, self._scratch)

    def remove_unused(self) -> None:
        """Drop the float weights (and transposes of them) that nothing reads any more."""
        if self._written:
            RemoveUnusedNodesPass()(self._model)

    def dequantize(self, site: Site, fmt: IntFormat) -> SiteReport:
        """MatMul(x, W) → MatMul(x, DequantizeLinear(codes, scales[, zeros]))."""
        weight = weight_of(site)
        key = (id(weight), str(fmt), "dequantize", site.in_axis, site.out_axis)
        if key not in self._written:
            rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
            arrays = self._solver.arrays(site, rows, fmt)
            error = relative_error(rows, lambda part: decode_rows(arrays, fmt, part))
            stored = dequantize_inputs(site, fmt, arrays)
            encoded = self._store(site, fmt, stored, rows.size, error)
            node = ir.node(
                "DequantizeLinear",
                [value for value in encoded.values if value is not None],
                attributes=dequantize_attributes(site, fmt),
                name=f"{encoded.values[0].name}_DequantizeLinear" if encoded.values[0] else None,
            )
            output = node.outputs[0]
            output.name = f"{node.name}_output"
            output.dtype, output.shape = weight_type(site), ir.Shape(site.shape)
            _insert_early(_graph(site), node)
            self._written[key], self._dequantized[key] = encoded, output
        reader, index = (site.via[0], 0) if site.via else (site.node, site.weight_index)
        reader.replace_input_with(index, self._dequantized[key])
        report = self._report(site, fmt, self._written[key])
        if rounded_by(site) is None or not isinstance(fmt.granularity, PerGroup):
            return report
        return dataclasses.replace(report, note="; ".join(filter(None, (report.note, _TWICE))))

    def matmul_nbits(self, site: Site, fmt: IntFormat) -> SiteReport:
        """MatMul(x, W) or Gemm(x, W, c) → MatMulNBits(x, codes, scales[, zeros]) [+ c]."""
        encoded = self._blocks(site, fmt)
        columns, rows = site.shape[site.in_axis], site.shape[site.out_axis]
        # An activation that was rounded already is not to be rounded again, to other steps.
        level = self._accuracy_level if rounded_by(site) is None else 0
        node = ir.node(
            "MatMulNBits",
            [site.node.inputs[0], *(value for value in encoded.values if value is not None)],
            attributes={
                "K": columns,
                "N": rows,
                "bits": fmt.bits,
                "block_size": _group(fmt),
                "accuracy_level": level,
            },
            domain="com.microsoft",
            name=site.node.name,
        )
        _replace(site, node, self._epilogue(site, node))
        self._model.opset_imports.setdefault("com.microsoft", 1)
        return self._report(site, fmt, encoded)

    def gather_block_quantized(self, site: Site, fmt: IntFormat) -> SiteReport:
        """Gather(W, i) → GatherBlockQuantized(codes, i, scales[, zeros])."""
        encoded = self._blocks(site, fmt)
        codes, scales, zeros = encoded.values
        tokens, columns = site.shape[site.out_axis], site.shape[site.in_axis]
        shape = np.array([tokens, columns * fmt.bits // 8], np.int64)
        graph = _graph(site)
        flat = ir.node(
            "Reshape",
            [
                codes,
                add_weight(
                    graph, "table_shape", shape=(2,), dtype=ir.DataType.INT64, compute=shape
                ),
            ],
            name=f"{site.node.name}_table",
        )
        flat.outputs[0].name = f"{flat.name}_output"
        node = ir.node(
            "GatherBlockQuantized",
            [flat.outputs[0], site.node.inputs[1], scales, *([zeros] if zeros else [])],
            attributes={
                "bits": fmt.bits,
                "block_size": _group(fmt),
                "gather_axis": 0,
                "quantize_axis": 1,
            },
            domain="com.microsoft",
            name=site.node.name,
        )
        _replace(site, node, [flat, node])
        self._model.opset_imports.setdefault("com.microsoft", 1)
        return self._report(site, fmt, encoded)

    def _epilogue(self, site: Site, node: ir.Node) -> list[ir.Node]:
        """The nodes that take the place of a Gemm: scaling by alpha and adding beta · c."""
        nodes = [node]
        if site.kind != "Gemm":
            return nodes
        alpha = site.node.attributes.get_float("alpha", 1.0)
        beta = site.node.attributes.get_float("beta", 1.0)
        if alpha != 1.0:
            nodes.append(self._scaled(site, node.outputs[0], alpha, "alpha"))
        bias = site.node.inputs[2] if len(site.node.inputs) > 2 else None
        if bias is not None:
            if beta != 1.0:
                nodes.insert(0, self._scaled(site, bias, beta, "beta"))
                bias = nodes[0].outputs[0]
            result = nodes[-1].outputs[0]
            nodes.append(ir.node("Add", [result, bias], name=f"{site.node.name}_bias"))
        return nodes

    def _scaled(self, site: Site, value: ir.Value, factor: float, what: str) -> ir.Node:
        dtype = weight_type(site)
        constant = add_weight(
            _graph(site),
            f"{site.node.name}_{what}",
            shape=(),
            dtype=dtype,
            compute=np.array(factor, dtype.numpy()),
        )
        return ir.node("Mul", [value, constant], name=f"{site.node.name}_times_{what}")

    def _blocks(self, site: Site, fmt: IntFormat) -> _Encoded:
        """Codes, scales and zero points in MatMulNBits layout, stored once for tied weights."""
        key = (id(weight_of(site)), str(fmt), "blocks", site.in_axis)
        if key not in self._written:
            rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
            shrink = self._solver.plain_shrink(site, fmt)
            if shrink is None:
                arrays = self._solver.arrays(site, rows, fmt)
                encoded = matmul_nbits_layout(arrays, fmt)
                error = relative_error(rows, lambda part: decode_rows(arrays, fmt, part))
            else:  # codes of a plain rounding come packed from the kernel, with their errors
                encoded = encode_matmul_nbits(rows, fmt, shrink=shrink)
                squares = encoded["squares"]
                noise, signal = (0.0, 0.0) if squares is None else squares.sum(axis=1)
                error = math.sqrt(noise / signal) if signal else 0.0
            layout = {name: array for name, array in encoded.items() if array is not None}
            scale_type = ir.DataType.from_numpy(layout["scales"].dtype)
            stored: Stored = [(layout["B"], ir.DataType.UINT8), (layout["scales"], scale_type)]
            if not fmt.symmetric:
                stored.append((layout["zero_points"], ir.DataType.UINT8))
            self._written[key] = self._store(site, fmt, stored, rows.size, error)
        return self._written[key]

    def _report(self, site: Site, fmt: IntFormat, encoded: _Encoded) -> SiteReport:
        report = SiteReport(
            site=site.name,
            format=str(fmt),
            bits=8 * encoded.nbytes / encoded.elements,
            error=encoded.error,
            nbytes=encoded.nbytes,
            **self._solver.describe(site, fmt),
        )
        kept = self._solver.kept(site, fmt)
        return report if kept is None else counted(report, site, kept, self._kept[site.name])

    def _store(
        self, site: Site, fmt: IntFormat, stored: Stored, elements: int, error: float
    ) -> _Encoded:
        graph, weight = _graph(site), weight_of(site)
        values: list[ir.Value | None] = []
        nbytes = 0
        for (array, dtype), what in zip(stored, ("codes", "scales", "zeros"), strict=False):
            value = add_weight(
                graph,
                f"{weight.name}_{fmt}_{what}",
                shape=array.shape,
                dtype=dtype,
                compute=array,
            )
            tensor = self._scratch.keep(array, dtype)
            tensor.name = value.name
            value.const_value = tensor
            nbytes += tensor.nbytes
            if what == "scales" and dtype != weight_type(site):
                value = self._cast(site, value)
            values.append(value)
        values.extend([None] * (3 - len(values)))
        return _Encoded(tuple(values), nbytes, error, elements)

    def _cast(self, site: Site, scales: ir.Value) -> ir.Value:
        """Scales stored in fewer bits than the model computes in; runtimes fold the Cast."""
        node = ir.node("Cast", [scales], {"to": weight_type(site)}, name=f"{scales.name}_Cast")
        output = node.outputs[0]
        output.name = f"{node.name}_output"
        output.dtype, output.shape = weight_type(site), scales.shape
        _insert_early(_graph(site), node)
        return output


def _graph(site: Site) -> ir.Graph:
    """The graph new weights and nodes of a site go to: where its weight is, else its own."""
    graph = site.node.graph if site.weight is None else (site.weight.graph or site.node.graph)
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"site {site.name!r} is inside a function")
    return graph


def _insert_early(graph: ir.Graph, node: ir.Node) -> None:
    """Put a node that reads stored values at the front, behind what computes its inputs."""
    makers = [value.producer() for value in node.inputs if value is not None]
    behind = [maker for maker in makers if maker is not None]
    if behind:
        graph.insert_after(behind[-1], node)
    else:
        graph.insert_before(next(iter(graph)), node)


def _group(fmt: IntFormat) -> int:
    if not isinstance(fmt.granularity, PerGroup):
        raise ValueError(f"{fmt} has no groups")
    return fmt.granularity.size


def _replace(site: Site, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put ``nodes`` where the site's node is; the last one gives its output."""
    old = site.node
    for value, source in zip(nodes[-1].outputs, old.outputs, strict=True):
        value.type, value.shape = source.type, source.shape
    if old.graph is None:
        raise ValueError(f"site {site.name!r} has been removed from its graph")
    ir.convenience.replace_nodes_and_values(
        old.graph, old, [old], nodes, old.outputs, nodes[-1].outputs
    )
