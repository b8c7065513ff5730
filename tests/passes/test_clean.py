import numpy as np
import onnx_ir as ir

from onnxq.graph.stage import Stage
from onnxq.passes.base import Context
from onnxq.passes.clean import Clean

X = {"x": np.array([1.0, -2.0, 3.0], np.float32)}


def test_identities_and_dead_nodes_go_and_output_names_stay(build, judge, kinds):
    model = build("""main (float[3] x) => (float[3] y, float[3] z) {
      a = Identity (x)  b = Relu (a)  dead = Exp (a)  dead2 = Neg (dead)
      y = Identity (b)  z = Abs (b) }""")
    report = judge(model, Clean(), X)
    assert kinds(model) == ["Relu", "Abs"]
    assert len(report.changed) == 4
    assert Clean.gives_stage is Stage.PREPARED


def test_an_identity_stays_where_it_gives_a_name_and_says_so(build, judge, kinds):
    model = build("""main (float[3] x) => (float[3] y, float[3] b, float[3] z) {
      y = Identity (x)  b = Relu (x)  z = Identity (b) }""")
    report = judge(model, Clean(), X, modified=False)
    assert kinds(model) == ["Identity", "Relu", "Identity"]
    assert [site.reason for site in report.left] == [
        "it gives a graph input or weight 'x' the output name 'y'",
        "what it reads, 'b', is a graph output under its own name",
    ]


def test_a_body_output_from_outside_keeps_its_identity(build, judge, kinds):
    model = build("""main (float[3] x, bool c) => (float[3] y) {
      r = Relu (x)
      y = If (c) <then_branch = t () => (float[3] a) { a = Identity (r) },
                  else_branch = e () => (float[3] b) { i = Identity (r)  b = Neg (i) }> }""")
    samples = [{**X, "c": np.array(flag)} for flag in (True, False)]
    report = judge(model, Clean(), *samples)
    assert kinds(model).count("Identity") == 1
    assert "not a value from outside" in report.left[0].reason


def test_equal_scalars_and_axes_become_one_but_equal_weights_do_not(build, judge):
    model = build(
        """main (float[3] x) => (float[3] y) {
          a = Mul (x, s1) b = Mul (a, s2) c = Mul (b, w1) d = Mul (c, w2)
          e = Unsqueeze (d, i1) f = Unsqueeze (e, i2) g = Squeeze (f, i3) y = Squeeze (g, i1) }""",
        s1=np.float32(2),
        s2=np.float32(2),
        w1=np.ones(3, np.float32),
        w2=np.ones(3, np.float32),
        i1=np.array([0]),
        i2=np.array([0]),
        i3=np.array([0]),
        unread=np.zeros(9, np.float32),
    )
    judge(model, Clean(), X)
    assert sorted(model.graph.initializers) == ["i1", "s1", "w1", "w2"]


def test_unsorted_nodes_and_shared_names_are_put_right(build):
    model = build("main (float[3] x) => (float[3] y) { a = Relu (x)  y = Neg (a) }")
    first, second = model.graph
    first.name = second.name = "same"
    model.graph.remove(first)
    model.graph.append(first)
    assert Clean().call(model, Context()).modified
    assert [node.op_type for node in model.graph] == ["Relu", "Neg"]
    assert len({node.name for node in model.graph}) == 2
    assert not Clean().call(model, Context()).modified


def test_unused_functions_and_opsets_go():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21, "own" : 1, "far" : 3]>
    main (float[2] x) => (float[2] y) { y = Relu (x) }
    <domain: "own", opset_import: ["" : 21]> twice (a) => (b) { b = Add (a, a) }""")
    assert Clean().call(model, Context()).modified
    assert not model.functions
    assert "far" not in model.opset_imports
