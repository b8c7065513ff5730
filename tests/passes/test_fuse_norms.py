# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Decomposed LayerNorm and RMSNorm: every spelling fires, every obstacle is named."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.passes.base import Context
from onnxq.passes.convert_opset import ConvertOpset
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.fuse_layer_norm import FuseLayerNorm
from onnxq.passes.fuse_rms_norm import FuseRmsNorm

RNG = np.random.default_rng(3)
NUMBERS = {
    "last": np.array([-1]),
    "eps": np.float32(1e-5),
    "two": np.float32(2),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "minus_half": np.float32(-0.5),
}
SQUARES = ["v = Mul ({d}, {d})", "v = Pow ({d}, two)"]
ENDS = [
    "q = Sqrt (e)  n = Div ({d}, q)",
    "q = Sqrt (e)  r = Reciprocal (q)  n = Mul ({d}, r)",
    "q = Sqrt (e)  r = Div (one, q)  n = Mul (r, {d})",
    "r = Pow (e, minus_half)  n = Mul ({d}, r)",
    "r = Pow (e, half)  n = Div ({d}, r)",
]
CENTRE = "m = ReduceMean <keepdims = 1> (x, last)  d = Sub (x, m)  "


def text(square, end, *, layer, tail="s = Mul (n, w)  y = Add (s, b)", shape="2, 3, 8"):
    d = "d" if layer else "x"
    return (
        f"main (float[{shape}] x) => (float[{shape}] y) {{ {CENTRE if layer else ''}"
        f"{square.format(d=d)}  u = ReduceMean <keepdims = 1> (v, last)  e = Add (u, eps)  "
        f"{end.format(d=d)}  {tail} }}"
    )


def weights(size=8):
    return {**NUMBERS, "w": RNG.standard_normal(size).astype("f"), "b": np.ones(size, "f")}


def sample(*shape):
    return {"x": RNG.standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("end", ENDS)
def test_every_spelling_of_layer_norm_becomes_one_node(build, judge, kinds, square, end):
    model = build(text(square, end, layer=True), **weights())
    judge(model, FuseLayerNorm(), sample(2, 3, 8))
    assert kinds(model) == ["LayerNormalization"]
    assert len(model.graph[0].inputs) == 3


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("opset", "name"), [(21, "SimplifiedLayerNormalization"), (23, "RMSNormalization")]
)
def test_every_spelling_of_rms_norm_becomes_one_node(build, judge, kinds, square, end, opset, name):
    model = build(text(square, end, layer=False), opset=opset, **weights())
    judge(model, FuseRmsNorm(), sample(2, 3, 8))
    assert kinds(model) == [name, "Add"]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    size=st.integers(2, 9),
    affine=st.sampled_from(
        ["s = Mul (w, n)  y = Add (b, s)", "y = Mul (n, w)", "y = Identity (n)"]
    ),
)
def test_any_shape_keeps_its_function(build, judge, kinds, shape, size, affine):
    dims = ", ".join(map(str, [*shape, size]))
    model = build(text(SQUARES[0], ENDS[0], layer=True, tail=affine, shape=dims), **weights(size))
    judge(model, FuseLayerNorm(), sample(*shape, size))
    assert "Sqrt" not in kinds(model)


def test_axes_as_an_attribute_of_old_opsets_after_conversion(build, judge, kinds):
    old = text(SQUARES[1], ENDS[0], layer=True).replace(
        "keepdims = 1> (x, last)", "axes = [2]> (x)"
    )
    old = old.replace("keepdims = 1> (v, last)", "axes = [2]> (v)")
    model = build(old, opset=12, ir_version=7, **weights())
    report = FuseLayerNorm().call(model, Context())
    assert report.left[0].reason.startswith("LayerNormalization needs opset 17, the model has 12")
    ConvertOpset(minimum=17).call(model, Context())
    FoldConstants().call(model, Context())
    judge(model, FuseLayerNorm(), sample(2, 3, 8))
    assert "LayerNormalization" in kinds(model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("=> (float[2, 3, 8] y)", "=> (float[2, 3, 8] y, float[2, 3, 1] u)"),
         "its ReduceMean output 'u' is also a graph output"),
        (("=> (float[2, 3, 8] y)", "=> (float[2, 3, 8] y, float[2, 3, 1] z)", "y = Add", "z = Neg (q)  y = Add"),
         "its Sqrt output 'q' is also read by Neg"),
        (("(v, last)", "(v, middle)"), "axes [-2], not the last ones"),
        (("Add (u, eps)", "Add (u, computed)", "m = Red", "computed = ReduceMax <keepdims = 0> (x)  m = Red"),
         "its epsilon 'computed' is computed"),
    ],
)  # fmt: skip
def test_an_obstacle_is_named_and_the_graph_left(build, judge, kinds, change, reason):
    changed = text(SQUARES[0], ENDS[0], layer=True)
    for old, new in zip(change[::2], change[1::2], strict=True):
        assert old in changed
        changed = changed.replace(old, new, 1)
    shape = {"middle": np.array([-2])}
    model = build(changed, **weights(), **shape)
    before = kinds(model)
    report = judge(model, FuseLayerNorm(), sample(2, 3, 8), modified=False)
    assert kinds(model) == before
    assert reason in report.left[0].reason


def test_a_scale_of_another_shape_is_not_taken_in(build, judge, kinds):
    model = build(text(SQUARES[0], ENDS[0], layer=True, tail="y = Mul (n, c)"),
                  c=np.arange(3, dtype=np.float32).reshape(3, 1), **NUMBERS)  # fmt: skip
    judge(model, FuseLayerNorm(), sample(2, 3, 8))
    assert kinds(model) == ["LayerNormalization", "Mul"]


def test_a_shared_scale_stays_shared(build, judge):
    model = build(
        """main (float[2, 8] x) => (float[2, 8] y) {
      v = Mul (x, x)  u = ReduceMean <keepdims = 1> (v, last)  e = Add (u, eps)  q = Sqrt (e)
      n = Div (x, q)  s = Mul (n, w)  y = Mul (s, w) }""",
        **weights(),
    )
    judge(model, FuseRmsNorm(), sample(2, 8))
    assert len(model.graph.initializers["w"].uses()) == 2


def test_a_norm_in_a_body_is_fused(build, judge, kinds):
    model = build(
        f"""main (float[2, 8] x, bool c) => (float[2, 8] y) {{
      y = If (c) <then_branch = t () => (float[2, 8] p) {{
          {CENTRE} v = Mul (d, d)  u = ReduceMean <keepdims = 1> (v, last)  e = Add (u, eps)
          q = Sqrt (e)  n = Div (d, q)  p = Mul (n, w) }},
        else_branch = f () => (float[2, 8] o) {{ o = Neg (x) }}> }}""",
        **weights(),
    )
    FoldConstants().call(model, Context())
    samples = [{**sample(2, 8), "c": np.array(flag)} for flag in (True, False)]
    report = judge(model, FuseLayerNorm(), *samples)
    assert "LayerNormalization" in kinds(model)
    assert report.changed[0].site.startswith("If_0/then_branch/")


def test_the_standard_form_says_which_opset_it_needs(build, judge):
    model = build(text(SQUARES[0], ENDS[0], layer=False), **weights())
    report = judge(model, FuseRmsNorm(form="standard"), sample(2, 3, 8), modified=False)
    assert report.left[0].reason.startswith("RMSNormalization needs opset 23, the model has 21")
