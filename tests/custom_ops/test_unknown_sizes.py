"""Operators in graphs whose sizes have neither numbers nor names."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.catalog import spec_of
from onnxq.custom_ops.hadamard import hadamard_node
from onnxq.formats import parse_format
from onnxq.graph.weights import add_weight
from tests.custom_ops.matmul_cases import draw, one_node_model, run


def product():
    fmt, shape = parse_format("lut4"), (8, 64)
    packed = fmt.pack(fmt.encode(draw(*shape)))
    return one_node_model(spec_of(fmt, shape), fmt, packed, shape, leading=(None, None))


def rotation():
    x = ir.Value(name="x", shape=ir.Shape([None, None, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="g")
    model = ir.Model(graph, ir_version=10)
    graph.append(hadamard_node(model, x, 64, name="rotated"))
    graph.outputs.append(graph[0].outputs[0])
    return model


@pytest.mark.parametrize("made", (product, rotation))
@pytest.mark.parametrize("custom_ops", (False, True))
def test_a_result_is_reshaped_by_its_own_sizes(made, custom_ops):
    model = made()
    graph = model.graph
    y = graph.outputs.pop()
    minus = add_weight(graph, "minus", shape=(1,), dtype=ir.DataType.INT64, compute=np.array([-1]))
    sizes = ir.node("Shape", [y], {"start": 0, "end": 2}, name="sizes")
    target = ir.node("Concat", [sizes.outputs[0], minus], {"axis": 0}, name="target")
    shaped = ir.node("Reshape", [y, target.outputs[0]], name="shaped")
    for node in (sizes, target, shaped):
        node.outputs[0].name = f"{node.name}_output"
        graph.append(node)
    shaped.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(shaped.outputs[0])
    x = draw(2, 3, 64)
    assert run(model, x, custom_ops=custom_ops).shape[:2] == (2, 3)
