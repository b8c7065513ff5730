# ruff: noqa: E501 - a graph in text syntax reads best on one line
import numpy as np
import onnx_ir as ir

from onnxq.graph.check import name_nodes
from onnxq.graph.walk import walk_graphs
from onnxq.passes.constants_to_initializers import ConstantsToInitializers

X = np.arange(6, dtype=np.float32).reshape(2, 3)
BODY = """
main (float[2, 3] x, bool c) => (float[2, 3] y) {
  two = Constant <value_float = 2.0> ()
  y = If (c) <
    then_branch = yes () => (float[2, 3] a) {
      k = Constant <value = float[3] {1, 2, 3}> ()
      s = Mul (x, k)
      a = Mul (s, two)
    },
    else_branch = no () => (float[2, 3] b) { b = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> () }>
}
"""


def test_constants_of_main_graph_and_bodies_become_initializers(build, judge, kinds):
    model = build(BODY)
    tensor = next(iter(model.graph)).attributes["value_float"]
    model.graph[0].outputs[0].meta["fact"] = 1
    samples = [{"x": X, "c": np.array(flag)} for flag in (True, False)]
    report = judge(model, ConstantsToInitializers(), *samples)
    assert tensor is not None
    assert len(report.changed) == 2
    initializers = {p: list(g.initializers) for p, g in walk_graphs(model)}
    assert initializers == {"": ["two"], "If_1/then_branch": ["k"], "If_1/else_branch": []}
    assert model.graph.initializers["two"].meta["fact"] == 1


def test_a_constant_that_is_an_output_stays_with_its_reason(build, judge, kinds):
    model = build("main () => (float[2] y) { y = Constant <value = float[2] {1, 2}> () }")
    report = judge(model, ConstantsToInitializers(), {}, modified=False)
    assert [site.reason for site in report.left] == ["its output 'y' is a graph output"]


def test_constants_in_functions_stay_with_their_reason(build, judge):
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    main (float[2] x) => (float[2] y) { y = own.twice (x) }
    <domain: "own", opset_import: ["" : 21]>
    twice (a) => (b) { k = Constant <value_float = 2.0> () b = Mul (a, k) }"""
    model = ir.from_onnx_text(text)
    name_nodes(model)
    x = np.ones(2, np.float32)
    report = judge(model, ConstantsToInitializers(), {"x": x}, modified=False)
    assert "inline functions first" in report.left[0].reason


def test_the_tensor_itself_moves_and_is_not_copied(build):
    from onnxq.passes.base import Context

    model = build(
        "main (float[3] x) => (float[3] y) { k = Constant <value = float[3] {1, 2, 3}> () y = Mul (x, k) }"
    )
    tensor = model.graph[0].attributes["value"].as_tensor()
    ConstantsToInitializers().call(model, Context())
    assert model.graph.initializers["k"].const_value is tensor
