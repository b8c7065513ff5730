"""Matching and replacing: what every fusion relies on."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.passes.base import Context
from onnxq.passes.fuse_rms_norm import FuseRmsNorm
from onnxq.passes.fuse_silu import FuseSilu
from onnxq.passes.match import Any, Either, Number, Op, find, read_elsewhere

X = {"x": np.array([1.0, -2.0, 3.0], np.float32)}


def test_a_name_is_one_value_and_sums_match_in_both_orders(build):
    model = build("main (float[3] x, float[3] z) => (float[3] y) { a = Neg (x)  y = Add (z, a) }")
    root = model.graph[1]
    assert find(root, Op("Add", (Op("Neg", (Any("p"),)), Any("q")))).values["q"].name == "z"
    assert find(root, Op("Add", (Op("Neg", (Any("p"),)), Any("p")))) is None
    assert find(root, Op("Sub", (Any("p"), Any("q")))) is None
    assert find(root, Either((Op("Sub", (Any("p"),)), Op("Add", (Any("p"),))))) is not None


@pytest.mark.parametrize(("number", "matches"), [(0.5, True), (0.500001, True), (0.501, False)])
def test_numbers_match_up_to_the_digits_that_exporters_write(build, number, matches):
    model = build("main (float[3] x) => (float[3] y) { y = Mul (x, k) }", k=np.float32(number))
    assert (find(model.graph[0], Op("Mul", (Any("x"), Number(0.5)))) is not None) is matches


def test_a_reader_inside_a_body_counts(build):
    model = build("""main (float[3] x, bool c) => (float[3] y, float[3] z) {
      s = Sigmoid (x)  y = Mul (x, s)
      z = If (c) <then_branch = t () => (float[3] a) { a = Neg (s) },
                  else_branch = e () => (float[3] b) { b = Neg (x) }> }""")
    found = find(model.graph[1], Op("Mul", (Any("x"), Op("Sigmoid", (Any("x"),)))))
    assert "its Sigmoid output 's' is also read by Neg" in read_elsewhere(found)


def test_the_new_output_keeps_name_type_and_metadata(build):
    model = build("""main (float[3] x) => (float[3] y) {
      s = Sigmoid (x)  m = Mul (x, s)  y = Neg (m) }""")
    old = model.graph[1].outputs[0]
    old.meta["onnxq.range"] = (0.0, 1.0)
    old.metadata_props["from"] = "layer 3"
    assert FuseSilu().call(model, Context()).modified
    new = model.graph[0].outputs[0]
    assert (new.name, new.dtype, list(new.shape)) == ("m", ir.DataType.FLOAT, [3])
    assert new.meta["onnxq.range"] == (0.0, 1.0)
    assert new.metadata_props["from"] == "layer 3"


def test_a_match_in_a_function_gets_its_weight_and_its_domain_there(judge):
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    main (float[3] x) => (float[3] y) { y = own.norm (x) }
    <domain: "own", opset_import: ["" : 21]> norm (float[3] p) => (float[3] r) {
      a = Constant <value = int64[1] {-1}> ()  e = Constant <value = float {0.00001}> ()
      q = Mul (p, p)  m = ReduceMean <keepdims = 1> (q, a)  s = Add (m, e)  t = Sqrt (s)
      u = Div (p, t)  g = Sigmoid (u)  r = Mul (u, g) }"""
    model = ir.from_onnx_text(text)
    model.graph[0].name = "call"
    function = next(iter(model.functions.values()))
    for index, node in enumerate(function):
        node.name = f"inner_{index}"
    function.inputs[0].shape, function.inputs[0].dtype = ir.Shape([3]), ir.DataType.FLOAT
    judge(model, FuseRmsNorm(), X)
    judge(model, FuseSilu(), X)
    kinds = [node.op_type for node in function]
    assert "SimplifiedLayerNormalization" in kinds and "QuickGelu" in kinds
    assert not function.graph.initializers
    assert function.opset_imports["com.microsoft"] == 1
