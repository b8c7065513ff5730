# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Decomposed attention and rotary embedding as the exporters write them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.passes.fuse_attention import FuseAttention
from onnxq.passes.fuse_rope import FuseRope

RNG = np.random.default_rng(11)
SCALE = {"s": np.float32(0.5), "r": np.float32(2.0), "zero": np.float32(0)}


def attention(scores, tail="p = Softmax <axis = -1> (z)  y = MatMul (p, v)", mask="1, 1, 3, 4"):
    return (
        "main (float[2, 2, 3, 4] q, float[2, 2, 4, 4] k, float[2, 2, 4, 4] v,"
        f" float[{mask}] mask) => (float[2, 2, 3, 4] y) {{ {scores}  {tail} }}"
    )


def inputs(mask=(1, 1, 3, 4)):
    shapes = {"q": (2, 2, 3, 4), "k": (2, 2, 4, 4), "v": (2, 2, 4, 4), "mask": mask}
    return {name: RNG.standard_normal(shape).astype("f") for name, shape in shapes.items()}


TRANSPOSE = "t = Transpose <perm = [0, 1, 3, 2]> (k)  "


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ("m = MatMul (q, t)  z = Add (m, mask)", 1.0),
        ("m = MatMul (q, t)  n = Mul (m, s)  z = Add (mask, n)", 0.5),
        ("m = MatMul (q, t)  n = Div (m, r)  z = Add (n, mask)", 0.5),
        ("a = Mul (q, s)  b = Mul (t, s)  m = MatMul (a, b)  z = Add (m, mask)", 0.25),
        ("m = MatMul (q, t)  z = Mul (m, s)", 0.5),
    ],
)
def test_every_place_of_the_scale_becomes_one_node(build, judge, kinds, scores, scale):
    model = build(attention(TRANSPOSE + scores), opset=23, **SCALE)
    judge(model, FuseAttention(), inputs())
    assert kinds(model) == ["Attention"]
    assert model.graph[0].attributes["scale"].as_float() == scale


@pytest.mark.parametrize("mask", [(1, 1, 1, 4), (2, 1, 1, 4), (1, 2, 3, 4), (2, 2, 3, 4)])
def test_masks_that_broadcast_keep_the_function(build, judge, kinds, mask):
    scores = TRANSPOSE + "m = MatMul (q, t)  n = Mul (m, s)  z = Add (n, mask)"
    model = build(attention(scores, mask=", ".join(map(str, mask))), opset=23, **SCALE)
    judge(model, FuseAttention(), inputs(mask))
    assert kinds(model)[-1] == "Attention" and "Softmax" not in kinds(model)
    assert ("Expand" in kinds(model)) == (mask[2] == 1)


def test_the_key_in_token_order_is_turned_first(build, judge, kinds):
    text = attention("t = Transpose <perm = [0, 2, 3, 1]> (k)  z = MatMul (q, t)")
    text = text.replace("float[2, 2, 4, 4] k", "float[2, 4, 2, 4] k")
    model = build(text, opset=23)
    feeds = {**inputs(), "k": RNG.standard_normal((2, 4, 2, 4)).astype(np.float32)}
    judge(model, FuseAttention(), feeds)
    assert kinds(model) == ["Transpose", "Attention"]


GUARD = "p = Softmax <axis = -1> (z)  i = IsNaN (p)  g = Where (i, zero, p)  y = MatMul (g, v)"


def test_a_guard_against_nan_rows_stays_unless_the_mask_is_finite(build, judge, kinds):
    scores = TRANSPOSE + "m = MatMul (q, t)  z = Add (m, mask)"
    model = build(attention(scores, GUARD), opset=23, **SCALE)
    report = judge(model, FuseAttention(), inputs(), modified=False)
    assert "guards against rows that its mask 'mask'" in report.left[0].reason
    finite = (
        TRANSPOSE + "c = Less (mask, zero)  w = Where (c, zero, low)  m = MatMul (q, t)"
        "  z = Add (m, w)"
    )
    model = build(attention(finite, GUARD), opset=23, low=np.float32(-3e38), **SCALE)
    judge(model, FuseAttention(), inputs())
    assert "Attention" in kinds(model) and "IsNaN" not in kinds(model)


def test_attention_says_why_it_was_left(build, judge):
    scores = TRANSPOSE + "m = MatMul (q, t)  z = Add (m, mask)"
    report = judge(build(attention(scores)), FuseAttention(), inputs(), modified=False)
    assert report.left[0].reason.startswith("Attention needs opset 23, the model has 21")
    text = attention(scores).replace("y) {", "y, float[2, 2, 3, 4] p) {")
    report = judge(build(text, opset=23), FuseAttention(), inputs(), modified=False)
    assert report.left[0].reason == "its Softmax output 'p' is also a graph output"
    axis = attention(scores, "p = Softmax <axis = 2> (z)  y = MatMul (p, v)")
    report = judge(build(axis, opset=23), FuseAttention(), inputs(), modified=False)
    assert report.left[0].reason == "its Softmax is not over the last axis"


def rope(batch, heads, length, size, *, split=None, twice="h, h", extra=""):
    x = f"float[{batch}, {heads}, {length}, {size}]"
    return f"""main ({x} x, float[1, {length}, {size // 2}] h) => ({x} y{extra}) {{
      e = Concat <axis = -1> ({twice})  c0 = Cos (e)  s0 = Sin (e)
      c = Unsqueeze (c0, one)  s = Unsqueeze (s0, one)
      lo = Slice (x, start, half, last)  hi = Slice (x, half, far, last)  neg = Neg (hi)
      rot = Concat <axis = -1> (neg, lo)  a = Mul (x, c)  b = Mul (rot, s)  y = Add (a, b) }}"""


def rope_numbers(half):
    return {
        "one": np.array([1]),
        "start": np.array([0]),
        "half": np.array([half]),
        "far": np.array([2**63 - 1]),
        "last": np.array([3]),
    }


def rope_inputs(batch, heads, length, size):
    return {
        "x": RNG.standard_normal((batch, heads, length, size)).astype(np.float32),
        "h": RNG.standard_normal((1, length, size // 2)).astype(np.float32),
    }


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batch=st.integers(1, 3), heads=st.integers(1, 3), length=st.integers(1, 5), half=st.integers(1, 6)
)  # fmt: skip
def test_rope_of_any_shape_becomes_one_node(build, judge, kinds, batch, heads, length, half):
    dims = (batch, heads, length, 2 * half)
    model = build(rope(*dims), opset=23, **rope_numbers(half))
    judge(model, FuseRope(), rope_inputs(*dims))
    assert "RotaryEmbedding" in kinds(model) and "Neg" not in kinds(model)


def test_rope_says_why_it_was_left(build, judge):
    dims = (2, 2, 3, 8)

    def left(text, opset=23, half=4):
        model = build(text, opset=opset, **rope_numbers(half))
        return judge(model, FuseRope(), rope_inputs(*dims), modified=False).left[0].reason

    assert left(rope(*dims), opset=21).startswith("RotaryEmbedding needs opset 23")
    assert "two halves of its cos 'c' are not seen to be equal" in left(
        rope(*dims, twice="h, g").replace("e = C", "g = Neg (h)  e = C", 1)
    )
    output = left(rope(*dims, extra=", float[2, 2, 3, 8] rot"))
    assert output == "its Concat output 'rot' is also a graph output"


def test_layers_share_the_angles(build, judge, kinds):
    text = rope(2, 2, 3, 8).replace("y) {", "y, float[2, 2, 3, 8] y2) {").replace(
        "y = Add (a, b) }",
        """y = Add (a, b)
      lo2 = Slice (y, start, half, last)  hi2 = Slice (y, half, far, last)  neg2 = Neg (hi2)
      rot2 = Concat <axis = -1> (neg2, lo2)  a2 = Mul (y, c)  b2 = Mul (rot2, s)
      y2 = Add (a2, b2) }""",
    )  # fmt: skip
    model = build(text, opset=23, **rope_numbers(4))
    report = judge(model, FuseRope(), rope_inputs(2, 2, 3, 8))
    assert len(report.changed) == 2
    assert kinds(model).count("Expand") == 2
