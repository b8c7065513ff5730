"""Where QuantizeLinear and DequantizeLinear go: a plan made before anything is edited.

A *point* is a value that gets one Q/DQ pair behind its producer. Its readers are either some
(operator, input) pairs, and everybody else goes on reading the float value, or all of them, when
the producer is a kernel that writes int8 itself and has no float value to offer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnxq.calibration import ChannelRange, Range, range_of
from onnxq.graph import Site, is_weight, read_weight
from onnxq.passes.activation_grid import Parameters, activation_parameters
from onnxq.passes.qdq_targets import ActivationType, Target

__all__ = ["Placement", "Point", "observed_ranges"]


@dataclasses.dataclass
class Point:
    """A value that is quantized.

    Attributes:
        value: the float value.
        parameters: its codes.
        readers: (node, input index) that read the quantized value; every reader when ``all``.
        all: whether every reader, graph output and subgraph reads the quantized value.
    """

    value: ir.Value
    parameters: Parameters
    readers: set[tuple[ir.Node, int]] = dataclasses.field(default_factory=set)
    all: bool = False


def observed_ranges(model: ir.Model) -> dict[str, Range]:
    """The range per tensor of every observed value of the main graph, by name."""
    found: dict[str, Range] = {}
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        known = range_of(value)
        if known is not None and value.name:
            found[value.name] = known.overall if isinstance(known, ChannelRange) else known
    return found


class Placement:
    """The points of one model, gathered site by site and then spread over its operators."""

    def __init__(
        self,
        model: ir.Model,
        target: Target,
        *,
        ranges: Mapping[str, Range],
        dtype: ActivationType,
        symmetric: bool,
        power_of_two: bool = False,
    ) -> None:
        """Plan for ``model`` by the rules of ``target``; the model is only read."""
        self._model = model
        self._target = target
        self._ranges = ranges
        self._dtype: ActivationType = dtype
        self._symmetric = symmetric
        self._power_of_two = power_of_two
        self.points: dict[ir.Value, Point] = {}

    def on(self, copy: ir.Model) -> Placement:
        """An empty plan by the same rules for a copy of the model."""
        return Placement(
            copy,
            self._target,
            ranges=self._ranges,
            dtype=self._dtype,
            symmetric=self._symmetric,
            power_of_two=self._power_of_two,
        )

    def range_of(self, value: ir.Value) -> Range | None:
        """The observed range of a value, cut to the bounds of the Clip that writes it."""
        found = self._ranges.get(value.name or "")
        return None if found is None else _within_clip(value, found)

    def parameters(self, value: ir.Value) -> Parameters:
        """Scale and zero point of an observed value (of a zero when it was not observed)."""
        known = self.range_of(value) or Range(0.0, 0.0)
        return activation_parameters(
            known.low,
            known.high,
            dtype=self._dtype,
            symmetric=self._symmetric,
            power_of_two=self._power_of_two,
        )

    def writes_int8(self, site: Site) -> bool:
        """Whether the kernel of a site gives int8 results."""
        return site.kind in self._target.writes_int8

    def chain(self, site: Site) -> tuple[list[ir.Node], ir.Value]:
        """The nodes from a site to the end of what its kernel absorbs, and their last value."""
        nodes = [site.node] if site.bias_node is None else [site.node, site.bias_node]
        end = self._end(site.result) if self.writes_int8(site) else site.result
        last = end.producer()
        if end is not site.result and last is not None:
            nodes.append(last)
        return nodes, end

    def refusal(self, site: Site) -> str | None:
        """Why the activations of a site cannot be quantized; None when they can."""
        if site.input is None:
            return "it has no input"
        if is_weight(site.input):
            return "its input is a constant: fold constants first"
        missing = self._unobserved(site.input)
        if missing is None and self.writes_int8(site):
            missing = self._unobserved(self._end(site.result))
        return missing

    def add_site(self, site: Site) -> None:
        """Quantize the input of a site, and its output where the kernel writes int8."""
        if site.input is None:
            return
        self.add_input(
            site.node, next(i for i, v in enumerate(site.node.inputs) if v is site.input)
        )
        if self.writes_int8(site):
            self._point(self._end(site.result)).all = True

    def add_input(self, node: ir.Node, index: int) -> None:
        """Quantize one input of an operator."""
        value = node.inputs[index]
        if value is not None:
            self._point(value).readers.add((node, index))

    def input_scale(self, site: Site) -> float:
        """Scale of the quantized input of a site that was added."""
        if site.input is None:
            return 1.0
        return self.points[site.input].parameters.scale

    def spread(self, sites: Iterable[Site]) -> None:
        """Extend the points over operators that can run between them in int8."""
        capable = self._capable()
        for node in reversed(tuple(self._model.graph)):
            output = node.outputs[0] if node.outputs else None
            if output is None or output not in self.points or output not in capable:
                continue
            for index in self._activations(node):
                self.add_input(node, index)
            self.points[output].all = True
        self._share_parameters()
        if self._target.skip_inputs:
            self._add_skips({site.node for site in sites})

    def _point(self, value: ir.Value) -> Point:
        if value not in self.points:
            self.points[value] = Point(value, self.parameters(value))
        return self.points[value]

    def _unobserved(self, value: ir.Value) -> str | None:
        if value.dtype not in (None, ir.DataType.FLOAT):
            return f"its activations are {value.dtype.name}, and QuantizeLinear is used on float32"
        if self.range_of(value) is None:
            return f"no range was observed for {value.name!r}: run the calibrate pass on it"
        return None

    def _end(self, value: ir.Value) -> ir.Value:
        """The value behind the activation that the kernel writing ``value`` absorbs."""
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0].idx != 0:
            return value
        reader = uses[0].node
        output = reader.outputs[0]
        if reader.op_type not in self._target.absorbed or reader.graph is not self._model.graph:
            return value
        if self.range_of(output) is None:
            return value
        # Relu and Clip from 0 vanish only when the smallest code means 0.
        if reader.op_type == "Clip" and (bounds := _clip_bounds(reader)) != (0.0, bounds[1]):
            return value
        floor = activation_parameters(0.0, 1.0, dtype=self._dtype, symmetric=self._symmetric)
        return output if floor.zero == floor.grid.lowest else value

    def _activations(self, node: ir.Node) -> range:
        """Indices of the inputs that hold activations."""
        return range(1 if node.op_type in self._target.pass_through else len(node.inputs))

    def _capable(self) -> set[ir.Value]:
        """Outputs of operators that could run in int8, given the points so far."""
        found: set[ir.Value] = set()
        for node in self._model.graph:
            if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
                continue
            moves = node.op_type in self._target.pass_through
            if not moves and node.op_type not in self._target.integer_ops:
                continue
            inputs = [node.inputs[index] for index in self._activations(node)]
            output = node.outputs[0]
            if (moves or self.range_of(output) is not None) and all(
                value is not None and (value in found or value in self.points) for value in inputs
            ):
                found.add(output)
        return found

    def _share_parameters(self) -> None:
        """What only moves values keeps the codes of its input."""
        for node in self._model.graph:
            if node.op_type not in self._target.pass_through or not node.outputs:
                continue
            source, output = node.inputs[0], node.outputs[0]
            if source not in self.points or output not in self.points:
                continue
            if (node, 0) in self.points[source].readers:
                self.points[output].parameters = self.points[source].parameters

    def _add_skips(self, accepted: set[ir.Node]) -> None:
        """Quantize the input of a residual Add that does not come from a quantized kernel."""
        for node in tuple(self._model.graph):
            if node.op_type != "Add" or any(v is None or is_weight(v) for v in node.inputs):
                continue
            branches = [_is_fused(value, accepted) for value in node.inputs]
            if not any(branches):
                continue
            index = branches.index(False) if False in branches else 1
            value = node.inputs[index]
            if value is not None and self._unobserved(value) is None:
                self.add_input(node, index)


def _is_fused(value: ir.Value | None, accepted: set[ir.Node]) -> bool:
    """Whether a value is the output of a quantized Conv that nobody else reads."""
    producer = value.producer() if value is not None else None
    return (
        producer in accepted
        and producer is not None
        and producer.op_type in ("Conv", "ConvTranspose")
        and len(producer.outputs[0].uses()) == 1
    )


def _clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Constant bounds of a Clip; None for a missing or computed one."""
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None and is_weight(value):
            bounds.append(float(read_weight(value).reshape(())))
        else:
            attribute = node.attributes.get(name)
            bounds.append(None if attribute is None else attribute.as_float())
    return bounds[0], bounds[1]


def _within_clip(value: ir.Value, found: Range) -> Range:
    """The range, cut to the bounds of the Clip that writes the value: observers may overshoot."""
    producer = value.producer()
    if producer is None or producer.op_type != "Clip":
        return found
    smallest, largest = _clip_bounds(producer)
    low = found.low if smallest is None else max(found.low, smallest)
    high = found.high if largest is None else min(found.high, largest)
    return Range(min(low, high), high)
