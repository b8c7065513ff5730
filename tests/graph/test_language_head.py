"""The language head is found by where it stands, whatever it is called."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.language_head import language_heads


def model(text, **shapes):
    built = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]>\nmain {text}')
    for name, shape in shapes.items():
        value = ir.Value(name=name, const_value=ir.tensor(np.ones(shape, np.float32), name=name))
        value.shape, value.dtype = ir.Shape(shape), ir.DataType.FLOAT
        for node in built.graph:
            for index, other in enumerate(node.inputs):
                if other is not None and other.name == name:
                    node.replace_input_with(index, value)
        built.graph.register_initializer(value)
    for index, node in enumerate(built.graph):
        node.name = node.name or f"node_{index}"
    return built


@pytest.mark.parametrize(
    "end",
    [
        "y = MatMul(h, w)",
        "s = MatMul(h, w) y = Add(s, b)",
        "s = MatMul(h, w) d = Div(s, c) t = Tanh(d) y = Mul(t, c)",  # a cap
        "s = MatMul(h, w) f = Softmax(s) y = Cast <to = 10> (f)",
        "s = MatMul(h, w) y = Gather <axis = 1> (s, last)",
        "r = Reshape(h, flat) y = Gemm <transB = 1> (r, v)",
        "t = Transpose <perm = [1, 0]> (table) y = MatMul(h, t)",  # tied
    ],
)
def test_the_layer_that_gives_a_number_for_each_row_of_the_table(end):
    found = language_heads(
        model(
            "(int64[n, s] ids, int64 last, int64[2] flat) => (float[n, s, 200] y)"
            " { e = Gather(table, ids) q = MatMul(e, up) g = Relu(q) h = MatMul(g, down) "
            f"{end} }}",
            table=(200, 32),
            up=(32, 200),
            down=(200, 32),
            **({"w": (32, 200)} if "h, w" in end else {}),
            **({"b": (200,)} if ", b)" in end else {}),
            **({"c": ()} if ", c)" in end else {}),
            **({"v": (200, 32)} if ", v)" in end else {}),
        )
    )
    assert len(found) == 1
    assert found[0].node.op_type in ("MatMul", "Gemm")
    assert found[0].input.name in ("h", "r")


def test_an_encoder_and_a_classifier_have_none():
    encoder = "(int64[n, s] ids) => (float[n, s, 32] y)"
    body = "{ e = Gather(table, ids) g = MatMul(e, up) d = MatMul(g, down) y = Add(d, e) }"
    sizes = {"table": (200, 32), "up": (32, 200), "down": (200, 32)}
    assert language_heads(model(encoder + body, **sizes)) == []
    answers = "(int64[n, s] ids, int64[n, s] kind) => (float[n, s, 2] y)"
    body = "{ e = Gather(table, ids) k = Gather(kinds, kind) h = Add(e, k) y = MatMul(h, w) }"
    sizes = {"table": (200, 32), "kinds": (2, 32), "w": (32, 2)}
    assert language_heads(model(answers + body, **sizes)) == []


def test_without_a_table_it_has_many_times_more_outputs_than_inputs():
    text = "(float[n, s, 16] h) => (float[n, s, many] y) { y = MatMul(h, w) }"
    assert len(language_heads(model(text, w=(16, 129)))) == 1
    assert language_heads(model(text, w=(16, 128))) == []
