"""Points of a graph at which an activation is rounded, each written once for all who read it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxq.calibration import Range
from onnxq.graph.names import unique_value_name
from onnxq.graph.weights import add_weight
from onnxq.passes.activation_grid import Grid
from onnxq.passes.fake_quantization import fake_quantizer

__all__ = ["ActivationPoints", "Point", "grid_of"]

_TYPES = {
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One rounding of one value.

    Attributes:
        value: the activation.
        axes: what one dynamic scale is shared by; empty when it is calibrated.
        bits: width of a code.
        symmetric: without a zero point.
        clip: share of the range that is kept, when dynamic.
        range: the calibrated range; None for scales found as the model runs.
    """

    value: ir.Value
    axes: tuple[int, ...]
    bits: int
    symmetric: bool
    clip: float
    range: Range | None = None


class ActivationPoints:
    """Writes the points of one model; one per run of a pass."""

    def __init__(self, model: ir.Model) -> None:
        """Write into ``model``."""
        self._model = model
        self._written: dict[Point, ir.Value] = {}

    def write(self, node: ir.Node, point: Point) -> None:
        """Let ``node`` read the rounded value in the place of the value."""
        if point not in self._written:
            self._written[point] = self._rounded(point)
        for index, value in enumerate(node.inputs):
            if value is point.value:
                node.replace_input_with(index, self._written[point])

    def _rounded(self, point: Point) -> ir.Value:
        if point.range is not None:
            return self._static(point, point.range)
        made = fake_quantizer(
            self._model,
            point.value,
            axes=point.axes,
            bits=point.bits,
            symmetric=point.symmetric,
            clip=point.clip,
        )
        return self._insert([made], point)[-1]

    def _static(self, point: Point, found: Range) -> ir.Value:
        """[Clip →] QuantizeLinear → DequantizeLinear, with constant scale and zero point."""
        grid = grid_of(point, found)
        dtype = point.value.dtype or ir.DataType.FLOAT
        kind = _TYPES.get((point.bits, point.symmetric))
        nodes = []
        value = point.value
        if kind is None:  # no type of that width: a wider one whose ends are never reached
            kind = _TYPES[8, point.symmetric]
            ends = [(end - grid.zero) * grid.scale for end in (grid.lowest, grid.highest)]
            bounds = [self._constant(point, f"end_{i}", end, dtype) for i, end in enumerate(ends)]
            nodes.append(ir.node("Clip", [value, *bounds]))
            value = nodes[0].outputs[0]
        step = self._constant(point, "scale", grid.scale, dtype)
        origin = self._constant(point, "zero", grid.zero, kind)
        nodes.append(ir.node("QuantizeLinear", [value, step, origin]))
        nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], step, origin]))
        values = self._insert(nodes, point)
        values[-2].type = ir.TensorType(kind)  # its own: that of the value is shared
        return values[-1]

    def _insert(self, nodes: list[ir.Node], point: Point) -> list[ir.Value]:
        """Put nodes behind what computes the value, in its graph; gives their outputs."""
        home, producer = _graph_of(point.value), point.value.producer()
        label = f"{point.value.name}_a{point.bits}"
        for node in nodes:
            node.name = unique_value_name(home, f"{label}_{node.op_type}")
            output = node.outputs[0]
            output.name = unique_value_name(home, f"{label}_{node.op_type}_output")
            output.type, output.shape = point.value.type, point.value.shape
            if producer is None:
                home.insert_before(home[0], node)
            else:
                home.insert_after(producer, node)
            producer = node
        return [node.outputs[0] for node in nodes]

    def _constant(
        self, point: Point, what: str, number: float | int, dtype: ir.DataType
    ) -> ir.Value:
        return add_weight(
            _graph_of(point.value),
            f"{point.value.name}_a{point.bits}_{what}",
            shape=(),
            dtype=dtype,
            compute=np.array(number, dtype.numpy()),
        )


def _graph_of(value: ir.Value) -> ir.Graph:
    """The graph that computes the value, or whose input it is."""
    producer = value.producer()
    graph = value.graph if producer is None else producer.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{value.name!r} is in no graph that can be edited")
    return graph


def grid_of(point: Point, found: Range) -> Grid:
    """The values a point rounds to, with the scale as the type of the activation holds it.

    Symmetric: s = max|x| / (2^(b−1) − 1). Asymmetric, with zero in the range: s = (h − l) /
    (2^b − 1), z = round(−l / s). A range of a single zero gets scale 1.

    Args:
        point: tells bits, symmetry and type.
        found: the calibrated range.
    """
    dtype = point.value.dtype or ir.DataType.FLOAT
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if point.symmetric:
        top = (1 << (point.bits - 1)) - 1
        wished, bottom = found.magnitude / top, -top
    else:
        top, bottom = (1 << point.bits) - 1, 0
        wished = (high - low) / top
    tiny = float(np.finfo(np.float32).tiny if dtype == ir.DataType.FLOAT else 2.0**-14)
    scale = float(np.array(wished if wished >= tiny else 1.0, dtype.numpy()))
    zero = 0 if point.symmetric else int(np.clip(round(-low / scale), bottom, top))
    return Grid(scale=scale, zero=zero, lowest=bottom, highest=top)
