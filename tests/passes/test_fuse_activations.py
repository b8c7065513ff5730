# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Decomposed GELU and SiLU: every order of the factors fires, near misses do not."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.passes.fuse_gelu import FuseGelu
from onnxq.passes.fuse_silu import FuseSilu

RNG = np.random.default_rng(5)
NUMBERS = {
    "half": np.float32(0.5),
    "one": np.float32(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "root2": np.float32(math.sqrt(2)),
    "invroot2": np.float32(1 / math.sqrt(2)),
    "small": np.float32(0.044715),
    "rootpi": np.float32(math.sqrt(2 / math.pi)),
    "alpha": np.float32(1.702),
}
ERF = [
    "s = Div (x, root2)  t = Erf (s)  f = Add (t, one)",
    "s = Mul (x, invroot2)  t = Erf (s)  f = Add (one, t)",
]
TANH = [
    "c = Pow (x, three)  k = Mul (small, c)  i = Add (x, k)  a = Mul (i, rootpi)  t = Tanh (a)"
    "  f = Add (t, one)",
    "q = Mul (x, x)  c = Mul (x, q)  k = Mul (c, small)  i = Add (k, x)  a = Mul (rootpi, i)"
    "  t = Tanh (a)  f = Add (one, t)",
    "q = Mul (x, x)  k = Mul (q, small)  j = Add (one, k)  i = Mul (x, j)  a = Mul (rootpi, i)"
    "  t = Tanh (a)  f = Add (one, t)",
    "p = Mul (x, rootpi)  k = Mul (small, x)  q = Mul (k, x)  j = Add (q, one)  a = Mul (p, j)"
    "  t = Tanh (a)  f = Add (t, one)",
]
PRODUCTS = [
    "h = Mul (x, half)  y = Mul (h, f)",
    "h = Mul (f, half)  y = Mul (x, h)",
    "h = Mul (x, f)  y = Mul (half, h)",
    "h = Mul (f, x)  y = Div (h, two)",
    "h = Div (x, two)  y = Mul (f, h)",
]


def graph(build, body, opset=21, outputs="float[2, 5] y"):
    return build(f"main (float[2, 5] x) => ({outputs}) {{ {body} }}", opset=opset, **NUMBERS)


def sample():
    return {"x": 3 * RNG.standard_normal((2, 5)).astype(np.float32)}


@pytest.mark.parametrize(("factor", "product"), list(itertools.product([*ERF, *TANH], PRODUCTS)))
def test_every_spelling_of_gelu_becomes_one_node(build, judge, kinds, factor, product):
    model = graph(build, f"{factor}  {product}")
    judge(model, FuseGelu(), sample())
    assert kinds(model) == ["Gelu"]
    assert ("approximate" in model.graph[0].attributes) == (factor in TANH)


@pytest.mark.parametrize(("factor", "name"), [(ERF[0], "Gelu"), (TANH[0], "FastGelu")])
def test_below_opset_20_the_operators_of_onnx_runtime_are_written(
    build, judge, kinds, factor, name
):
    model = graph(build, f"{factor}  {PRODUCTS[0]}", opset=17)
    judge(model, FuseGelu(), sample())
    assert kinds(model) == [name]
    assert model.graph[0].domain == "com.microsoft"
    assert model.opset_imports["com.microsoft"] == 1


def test_an_inner_output_and_another_number_are_left(build, judge, kinds):
    body = f"{ERF[0]}  {PRODUCTS[0]}"
    model = graph(build, body, outputs="float[2, 5] y, float[2, 5] t")
    report = judge(model, FuseGelu(), sample(), modified=False)
    assert report.left[0].reason == "its Erf output 't' is also a graph output"
    model = graph(build, body.replace("Mul (x, half)", "Mul (x, one)"))
    assert judge(model, FuseGelu(), sample(), modified=False).sites == ()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shape=st.lists(st.integers(0, 4), min_size=0, max_size=4))
def test_any_shape_keeps_its_function(build, judge, kinds, shape):
    dims = ", ".join(map(str, shape))
    dims = f"[{dims}]" if shape else ""
    model = build(
        f"main (float{dims} x) => (float{dims} y) {{ {ERF[0]}  h = Mul (x, f)  y = Mul (h, half) }}",
        **NUMBERS,
    )
    judge(model, FuseGelu(), {"x": RNG.standard_normal(shape).astype(np.float32)})
    assert kinds(model) == ["Gelu"]


@pytest.mark.parametrize(
    ("body", "alpha"),
    [
        ("s = Sigmoid (x)  y = Mul (x, s)", 1.0),
        ("s = Sigmoid (x)  y = Mul (s, x)", 1.0),
        ("a = Mul (x, alpha)  s = Sigmoid (a)  y = Mul (x, s)", 1.702),
    ],
)
@pytest.mark.parametrize(
    ("form", "opset", "name"), [("onnxruntime", 15, "QuickGelu"), ("standard", 24, "Swish")]
)
def test_silu_becomes_one_node(build, judge, kinds, body, alpha, form, opset, name):
    model = graph(build, body, opset=opset)
    judge(model, FuseSilu(form=form), sample())
    assert kinds(model) == [name]
    assert model.graph[0].attributes["alpha"].as_float() == pytest.approx(alpha)


def test_silu_says_why_it_was_left(build, judge):
    two = graph(build, "s = Sigmoid (x)  z = Neg (s)  y = Mul (x, s)",
                outputs="float[2, 5] y, float[2, 5] z")  # fmt: skip
    report = judge(two, FuseSilu(), sample(), modified=False)
    assert "its Sigmoid output 's' is also read by Neg" in report.left[0].reason
    old = graph(build, "s = Sigmoid (x)  y = Mul (x, s)", opset=21)
    report = judge(old, FuseSilu(form="standard"), sample(), modified=False)
    assert report.left[0].reason.startswith("Swish needs opset 24, the model has 21")
    computed = graph(build, "k = ReduceMax <keepdims = 0> (x)  a = Mul (x, k)  s = Sigmoid (a)"
                     "  y = Mul (x, s)")  # fmt: skip
    report = judge(computed, FuseSilu(), sample(), modified=False)
    assert report.left[0].reason == "its factor 'k' is not a constant number"


def test_silu_in_a_loop_body_is_fused(build, judge, kinds):
    model = build("""main (float[2, 5] x, int64 n) => (float[2, 5] y) {
      go = Constant <value = bool {1}> ()
      y = Loop (n, go, x) <body = b (int64 i, bool c, float[2, 5] v) => (bool d, float[2, 5] w) {
        d = Identity (c)  s = Sigmoid (v)  w = Mul (v, s) }> }""")
    judge(model, FuseSilu(), {**sample(), "n": np.array(3)})
    assert "QuickGelu" in kinds(model) and "Sigmoid" not in kinds(model)
