"""What every test of a prepare pass does: build a graph from text, run the pass, judge it."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.check import check_graph
from onnxq.graph.opset import infer_shapes
from onnxq.graph.walk import walk_nodes
from onnxq.passes.base import Context
from onnxq.passes.promise import PromiseKeeper


def _build(text, opset=21, ir_version=10, **weights):
    """A graph in ONNX text syntax; arrays given by name become initializers of the main graph."""
    own = ', "com.microsoft" : 1' if "com.microsoft" in text else ""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{own}]>\n'
    model = ir.from_onnx_text(head + text)
    for name, array in weights.items():
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
        value.shape, value.dtype = ir.Shape(value.const_value.shape), value.const_value.dtype
        for _, node in walk_nodes(model):
            for index, other in enumerate(node.inputs):
                if other is not None and other.name == name:
                    node.replace_input_with(index, value)
        model.graph.register_initializer(value)
    for index, (_, node) in enumerate(walk_nodes(model)):
        node.name = node.name or f"{node.op_type}_{index}"
    infer_shapes(model)
    return model


def _judge(model, step, *samples, modified=True):
    """Run ``step``; check its promise on the samples, the graph, and that a second run rests."""
    names = [[value.name for value in side] for side in (model.graph.inputs, model.graph.outputs)]
    keeper = PromiseKeeper(model, samples)
    report = step.call(model, Context())
    check_graph(model)
    keeper.check(step.key(), step.promise, model)
    sides = (model.graph.inputs, model.graph.outputs)
    assert [[value.name for value in side] for side in sides] == names
    assert report.modified is modified
    assert step.call(model, Context()).modified is False
    return report


def _kinds(model):
    return [node.op_type for _, node in walk_nodes(model)]


@pytest.fixture
def build():
    return _build


@pytest.fixture
def judge():
    return _judge


@pytest.fixture
def kinds():
    return _kinds
