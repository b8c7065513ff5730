"""Sites that are already quantized, fused, or out of reach, each with its sentence."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.sites import find_sites


def only(model):
    (site,) = find_sites(model)
    return site


def test_rotary_tables_are_refused_and_scaled_embeddings_are_not(written):
    model = written(
        """g (int64[N] at, float[N,4] x, float cos, float table, float k) => (float y, float z) {
            c = Gather(cos, at)
            u = Unsqueeze(c, axes)
            y = Mul(x, u)
            e = Gather(table, at)
            z = Mul(e, k)
        }""".replace("float k)", "float k, int64 axes)"),
        cos=(16, 4),
        table=(16, 4),
        k=np.array(8, np.float32),
        axes=np.array([0]),
    )
    rotary, embedding = find_sites(model)
    assert rotary.refusal == (
        "it looks up factors of a product (such as rotary tables), not an embedding"
    )
    assert embedding.refusal is None


def test_already_quantized_behind_dequantize_linear(written):
    model = written(
        """g (float[N,4] x, int8 w, float s) => (float y) {
            d = DequantizeLinear<axis=1>(w, s)
            y = MatMul(x, d)
        }""",
        w=np.ones((4, 6), np.int8),
        s=(6,),
    )
    site = only(model)
    assert site.already == "int8 behind DequantizeLinear"
    assert site.weight.dtype == ir.DataType.INT8 and (site.in_axis, site.out_axis) == (0, 1)


def test_fake_quantized_float_weight(written):
    model = written(
        """g (float[N,4] x, float w, float s) => (float y) {
            q = QuantizeLinear(w, s)
            d = DequantizeLinear(q, s)
            y = MatMul(x, d)
        }""",
        w=(4, 6),
        s=np.array(0.1, np.float32),
    )
    assert only(model).already == "QuantizeLinear and DequantizeLinear on a float weight"


FUSED = {
    "com.microsoft.MatMulNBits<K=32,N=6,bits=4,block_size=32>(x, w, s)": (
        "MatMulNBits 4 bits, blocks of 32",
        (1, 0),
    ),
    "com.microsoft.GatherBlockQuantized<block_size=32>(w, i, s)": (
        "GatherBlockQuantized 4 bits, blocks of 32",
        (2, 0),
    ),
    "MatMulInteger(i, w)": ("MatMulInteger", (1, 2)),
    "com.microsoft.DynamicQuantizeMatMul(x, w, s)": ("DynamicQuantizeMatMul", (1, 2)),
    "QLinearMatMul(i, s, z, w, s, z, s, z)": ("QLinearMatMul", (1, 2)),
    "QLinearConv(i, s, z, w, s, z, s, z)": ("QLinearConv", (1, 0)),
    "ConvInteger(i, w)": ("ConvInteger", (1, 0)),
}


@pytest.mark.parametrize("call", FUSED)
def test_integer_and_fused_operators_are_already_quantized(written, call):
    model = written(
        f"g (float[N,32] x, uint8 i, uint8 w, float s, uint8 z) => (y) {{\ny = {call}\n}}".replace(
            "(y)", "(float y)"
        ),
        w=np.ones((6, 1, 16), np.uint8),
        s=np.ones(1, np.float32),
        z=np.zeros(1, np.uint8),
    )
    site = only(model)
    already, axes = FUSED[call]
    assert site.already == already and site.weight.name == "w"
    assert (site.in_axis, site.out_axis) == axes


def test_fused_float_operators(written):
    model = written(
        """g (float[N,4] x, float w, float p, float k) => (float y, float z, float c) {
            y = com.microsoft.FusedMatMul<transB=1>(x, w)
            z = com.microsoft.Attention<num_heads=2>(x, p)
            c = com.microsoft.FusedConv(x, k)
        }""",
        w=(6, 4),
        p=(4, 12),
        k=(6, 4, 1, 1),
    )
    found = [(site.kind, site.in_axis, site.out_axis) for site in find_sites(model)]
    assert found == [("FusedMatMul", 1, 0), ("Attention", 0, 1), ("FusedConv", 1, 0)]


def test_the_standard_attention_operator_and_other_domains_hold_no_weight(written):
    model = written(
        """g (float q, float k) => (float y, float z) {
            y = Attention(q, k, k)
            z = custom.MatMul(q, k)
        }""",
        header='<ir_version: 10, opset_import: ["": 23, "custom": 1]>',
        k=(4, 4),
    )
    assert find_sites(model) == []


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_report_both_weights(written, kind):
    model = written(
        f"g (float x, float w, float r) => (float y) {{ y = {kind}<hidden_size=8>(x, w, r) }}",
        w=(1, 32, 4),
        r=(1, 32, 8),
    )
    sites = find_sites(model)
    assert [site.name.split(":")[-1] for site in sites] == ["W", "R"]
    assert {site.refusal for site in sites} == {
        "it is a recurrent layer: its gates are kept in float"
    }
    assert all(site.shape[site.out_axis] == 32 for site in sites)


REFUSED = [
    ("w = Mul(a, b)", "y = MatMul(x, w)", "its weight is computed by Mul 'n'"),
    (
        "w = Mul(c, c)",
        "y = MatMul(x, w)",
        "its weight is computed by Mul 'n' from constants only: fold constants first",
    ),
    ("w = Identity(a)", "y = MatMul(x, w)", "its weight is the input 'a' of the graph 'g'"),
    ("w = Identity(c)", "y = MatMul(w, c)", "both its operands are constant: fold constants first"),
    ("w = Reshape(c, s)", "y = MatMul(x, w)", "its weight 'c' is reshaped by Reshape 'n' "),
    ("w = Identity(v)", "y = MatMul(x, w)", "its weight 'v' is no matrix: it has 1 axes"),
    ("w = Identity(e)", "y = MatMul(x, w)", "its weight 'e' is empty: [4, 0]"),
    ("w = Identity(d)", "y = MatMul(x, w)", "its weight 'd' is a batch of matrices: [3, 4, 4]"),
    ("w = Identity(o)", "y = MatMul(x, w)", "it is an outer product, which sums over nothing"),
]


@pytest.mark.parametrize(("first", "second", "sentence"), REFUSED)
def test_refusals(written, first, second, sentence):
    model = written(
        "g (float x, float a, float b, float c, int64 s, float v, float e, float d, float o)"
        f" => (float y) {{\n{first}\n{second}\n}}",
        c=(4, 4),
        s=np.array([2, 8]),
        v=(4,),
        e=(4, 0),
        d=(3, 4, 4),
        o=(1, 1, 4),
    )
    model.graph[0].name = "n"
    assert only(model).refusal.startswith(sentence)


def test_attention_products_are_listed_with_the_reason(written):
    model = written("g (float[N,4] x, float[4,N] k) => (float y) { y = MatMul(x, k) }")
    site = only(model)
    assert site.weight is None and site.shape == ()
    assert site.refusal == "its weight is the input 'k' of the graph 'g'"


def test_a_weight_that_a_caller_may_override_is_refused(written):
    model = written("g (float[N,4] x, float w) => (float y) { y = MatMul(x, w) }", w=(4, 6))
    model.graph.inputs.append(model.graph.initializers["w"])
    assert only(model).refusal == (
        "its weight 'w' is also a model input, which a caller may override"
    )
