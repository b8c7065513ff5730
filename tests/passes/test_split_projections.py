"""Packed projections part by part: the same function, parts by name, what stays whole."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import find_sites
from onnxq.passes.base import Context
from onnxq.passes.split_projections import SplitProjections

RNG = np.random.default_rng(4)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(model):
    return [node.op_type for node in model.graph]


PLAIN = """main (float[n, s, 12] x) => (float[n, s, 6] a, float[n, s, 3] b, float[n, s, 3] c)
    { h = MatMul(x, w) a, b, c = Split<axis = -1>(h, sizes) }"""
BIASED = """main (float[n, s, 12] x) => (float[n, s, 6] a, float[n, s, 3] b, float[n, s, 3] c)
    { m = MatMul(x, w) h = Add(bias, m) a, b, c = Split<axis = 2>(h, sizes) }"""
SIZES = np.array([6, 3, 3], np.int64)


@pytest.mark.parametrize("text", [PLAIN, BIASED])
def test_each_part_is_a_site_of_its_own(build, judge, text):
    w, bias = normal(12, 12), normal(12)
    biases = {"bias": bias} if text is BIASED else {}
    m = build(text, w=w, sizes=SIZES, **biases)
    next(node for node in m.graph if node.op_type == "MatMul").name = "attn/qkv_proj"
    report = judge(m, SplitProjections(), {"x": normal(2, 3, 12)})
    assert report.changed[0].note == "now attn/q_proj, attn/k_proj, attn/v_proj"
    assert [s.name for s in find_sites(m)] == ["attn/q_proj", "attn/k_proj", "attn/v_proj"]
    assert kinds(m).count("MatMul") == 3 and kinds(m).count("Split") == 0
    stored = {s.name: s.weight.const_value.numpy() for s in find_sites(m)}
    np.testing.assert_array_equal(stored["attn/k_proj"], w[:, 6:9])
    assert not {"w", "bias", "sizes"} & set(m.graph.initializers)
    assert not SplitProjections().call(m, Context()).modified


@pytest.mark.parametrize("flipped", [0, 1])
def test_gemm_keeps_factors_and_slices_its_bias(build, judge, flipped):
    m = build(
        "main (float[3, 12] x) => (float[3, 5] a, float[3, 5] b)"
        f" {{ y = Gemm<alpha = 0.5, beta = 2.0, transB = {flipped}>(x, w, c)"
        " a, b = Split<axis = 1, num_outputs = 2>(y) }",
        w=normal(10, 12) if flipped else normal(12, 10),
        c=normal(10),
    )
    m.graph[0].name = "gate_up_proj"
    judge(m, SplitProjections(), {"x": normal(3, 12)})
    assert [s.name for s in find_sites(m)] == ["gate_proj", "up_proj"]
    assert kinds(m) == ["Gemm", "Gemm"]


def test_packed_attention_gets_queries_keys_and_values(build, judge):
    m = build(
        "main (float[1, s, 32] x, float[1, 1, p, 8] k, float[1, 1, p, 8] v, int32[1, 1] n,"
        " int32[] t) => (float[1, s, 16] y, float[1, 1, q, 8] pk, float[1, 1, q, 8] pv)"
        "{ h = MatMul(x, w) y, pk, pv = com.microsoft.GroupQueryAttention"
        "<num_heads = 2, kv_num_heads = 1>(h, , , k, v, n, t) }",
        w=normal(32, 32),
    )
    m.graph[0].name = "qkv"
    past = np.zeros((1, 1, 0, 8), np.float32)
    feeds = {"x": normal(1, 5, 32), "k": past, "v": past}
    feeds |= {"n": np.array([[4]], np.int32), "t": np.array(5, np.int32)}
    report = judge(m, SplitProjections(), feeds)
    assert report.changed[0].note == "now q, k, v"
    assert [s.shape for s in find_sites(m)] == [(32, 16), (32, 8), (32, 8)]


LEFT = {
    "nothing cuts its output": "{ h = MatMul(x, w) a = Relu(h) b = Neg(h) }",
    "what cuts its output cuts no channels": "{ h = MatMul(x, w) a, b = Split<axis = 0>(h, two) }",
    "its weight 'w' is read elsewhere too: run untie_weights first": (
        "{ h = MatMul(x, w) a, b = Split<axis = 1>(h, six) c = MatMul(x, w) }"
    ),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_stays_whole_says_why(build, reason):
    m = build(
        "main (float[4, 12] x) => (float[p, r] a, float[q, u] b)" + LEFT[reason],
        w=normal(12, 12),
        two=np.array([2, 2], np.int64),
        six=np.array([6, 6], np.int64),
    )
    report = SplitProjections().call(m, Context())
    assert {site.reason for site in report.left} == {reason} and not report.modified
    assert isinstance(m, ir.Model)
