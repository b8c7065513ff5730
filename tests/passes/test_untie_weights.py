import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.graph.sites import find_sites
from onnxq.passes.base import Context
from onnxq.passes.inline_functions import InlineFunctions
from onnxq.passes.untie_weights import UntieWeights

RNG = np.random.default_rng(17)
IDS = {"ids": np.array([[1, 4, 2]])}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_an_embedding_behind_a_transposed_head_gets_its_own_table(build, judge, kinds):
    model = build("""main (int64[1, 3] ids) => (float[1, 3, 6] y) {
      t = Transpose <perm = [1, 0]> (head)  e = Gather (t, ids)  y = MatMul (e, head) }""",
                  head=normal(4, 6))  # fmt: skip
    report = judge(model, UntieWeights(), IDS)
    assert kinds(model) == ["Gather", "MatMul"]
    assert [site.site for site in report.changed] == ["Gather_1"]
    assert [site.weight.name for site in find_sites(model)] == ["head_gather", "head"]
    assert isinstance(model.graph.initializers["head_gather"].const_value, ir.LazyTensor)


def test_readers_of_one_orientation_stay_tied_unless_all_is_asked(build, judge, kinds):
    text = """main (float[2, 4] x) => (float[2, 4] y) {
      a = MatMul (x, w)  y = MatMul (a, w) }"""
    w = normal(4, 4)
    report = judge(build(text, w=w), UntieWeights(), {"x": normal(2, 4)}, modified=False)
    assert report.left[0].reason == "it reads the weight as 'MatMul_0' does"
    model = build(text, w=w)
    judge(model, UntieWeights(which="all"), {"x": normal(2, 4)})
    assert len({site.weight for site in find_sites(model)}) == 2


def test_both_orientations_of_a_square_weight_are_untied(build, judge, kinds):
    model = build(
        """main (float[2, 4] x) => (float[2, 4] y) {
      a = MatMul (x, w)  y = Gemm <transB = 1> (a, w) }""",
        w=normal(4, 4),
    )
    judge(model, UntieWeights(), {"x": normal(2, 4)})
    assert len({site.weight for site in find_sites(model)}) == 2


def test_a_weight_behind_a_reshape_is_left_with_its_reason(build, judge):
    model = build("""main (float[2, 4] x) => (float[2, 4] y) {
      a = MatMul (x, w)  r = Unsqueeze (w, axis)  y0 = MatMul (a, r)  y = Squeeze (y0, axis) }""",
                  w=normal(4, 4), axis=np.array([0]))  # fmt: skip
    report = judge(model, UntieWeights(which="all"), {"x": normal(2, 4)}, modified=False)
    assert report.left[0].reason == "its weight comes through Unsqueeze: fold constants first"


def test_functions_are_inlined_but_those_of_kept_domains_stay(judge):
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1, "onnxq" : 1]>
    main (float[2] x) => (float[2] y) { a = own.twice (x)  b = own.twice (a)  y = onnxq.f (b) }
    <domain: "own", opset_import: ["" : 21]> twice (p) => (q) { q = Add (p, p) }
    <domain: "onnxq", opset_import: ["" : 21]> f (p) => (q) { q = Neg (p) }"""
    model = ir.from_onnx_text(text)
    for index, node in enumerate(model.graph):
        node.name = f"call_{index}"
    for function in model.functions.values():
        for node in function:
            node.name = f"{function.name}_body"
    report = judge(model, InlineFunctions(), {"x": np.array([1, 2], np.float32)})
    assert [node.op_type for node in model.graph] == ["Add", "Add", "f"]
    assert [site.reason for site in report.left] == ["functions of 'onnxq' are kept"]


def test_functions_that_call_each_other_in_a_circle_are_refused():
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    main (float[2] x) => (float[2] y) { y = own.a (x) }
    <domain: "own", opset_import: ["" : 21, "own" : 1]> a (p) => (q) { q = own.b (p) }
    <domain: "own", opset_import: ["" : 21, "own" : 1]> b (p) => (q) { q = own.a (p) }"""
    with pytest.raises(UnsupportedGraph, match="own::a, own::b cannot be inlined"):
        InlineFunctions().call(ir.from_onnx_text(text), Context())
