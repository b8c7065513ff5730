"""Constants become initializers, so that every other pass finds weights in one place.

Before → after: ``w = Constant<value>() ; y = MatMul(x, w)`` → ``y = MatMul(x, w)`` with ``w`` an
initializer of the graph the Constant was in. The tensor object itself moves: data that lie in a
file stay there, and nothing is read.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from onnxq.graph.walk import site_name, walk_nodes
from onnxq.graph.weights import is_weight, weight_tensor
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport
from onnxq.passes.match import home_of

__all__ = ["ConstantsToInitializers", "lift_constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantsToInitializers(Pass):
    """Turn Constant nodes into initializers, in the main graph and in If, Loop and Scan bodies.

    Matches: every Constant with a numeric value in a graph.
    Writes: an initializer of the same name, with the metadata of the Constant's output.
    Leaves: Constants in functions (a function has no initializers), Constants that are themselves
        graph outputs, strings, sparse tensors.
    """

    promise: ClassVar[Promise] = Promise.SAME_BITS

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Lift every Constant that can be, and say why of each that cannot."""
        sites = []
        for path, node in walk_nodes(model):
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                sites.append(
                    SiteReport(site=site_name(path, node), reason=lift_constant(model, node))
                )
        report = PassReport(modified=False, sites=tuple(sites))
        return dataclasses.replace(report, modified=bool(report.changed))


def lift_constant(model: ir.Model, node: ir.Node) -> str | None:
    """Lift one Constant, or return the reason why not."""
    graph, output = home_of(model, node), node.outputs[0]
    if not isinstance(graph, ir.Graph):
        return "it is in a function, which cannot hold initializers: inline functions first"
    if output.is_graph_output():
        return f"its output {output.name!r} is a graph output"
    if not is_weight(output):
        return "its value is a string, sparse, or an attribute of a function"
    tensor = weight_tensor(output)
    name = output.name
    weight = ir.Value(
        name=name,
        shape=ir.Shape([int(size) for size in tensor.shape.numpy()]),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
        doc_string=output.doc_string,
        metadata_props=dict(output.metadata_props),
    )
    weight.meta.update(output.meta)
    output.replace_all_uses_with(weight)
    graph.remove(node, safe=True)
    graph.register_initializer(weight)
    return None
