"""Weight-only quantization: the written graph computes with exactly the decoded weight."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import FormatError, UnsupportedGraph
from onnxq.formats import parse_format
from onnxq.graph.sites import find_sites
from onnxq.graph.weights import read_weight
from onnxq.passes.base import Context
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import open_session

RNG = np.random.default_rng(7)


def model(text, opset=21, **weights):
    """A text graph whose free names are given as arrays."""
    built = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, array in weights.items():
        free = {v for node in built.graph for v in node.inputs if v is not None and v.name == name}
        value = free.pop()
        for node in built.graph:
            for index, other in enumerate(node.inputs):
                if other in free:
                    node.replace_input_with(index, value)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
        built.graph.register_initializer(value)
    for index, node in enumerate(built.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    return built


def linear(columns=48, rows=20, dtype=np.float32):
    weight = RNG.standard_normal((columns, rows)).astype(dtype)
    return model(
        f"main (float[n, {columns}] x) => (float[n, {rows}] y)"
        f" <float[{columns}, {rows}] w> {{ y = MatMul(x, w) }}",
        w=weight,
    ), weight


def run(m, **feeds):
    with open_session(m, optimize=False) as session:
        return session.run(feeds)


def apply(m, **options):
    step = QuantizeWeights(**options)
    step.requires(m)
    return step.call(m, Context())


FORMATS = ["int8_channel", "int8_tensor", "int4_channel", "int4_g16", "int4_g16_asym", "int4_g32"]


@pytest.mark.parametrize("name", [*FORMATS, "int8_channel_asym", "int8_g16"])
@pytest.mark.parametrize("write", ["dequantize", "auto"])
def test_the_graph_computes_with_the_decoded_weight(name, write):
    m, weight = linear()
    report = apply(m, format=name, write=write, accuracy_level=0)
    fmt = parse_format(name)
    decoded = fmt.decode(fmt.encode(np.ascontiguousarray(weight.T))).astype(np.float64)
    x = RNG.standard_normal((5, 48)).astype(np.float32)
    exact = x.astype(np.float64) @ decoded.T
    plain = np.abs(x @ decoded.T.astype(np.float32) - exact).max()
    assert np.abs(run(m, x=x)["y"] - exact).max() <= 4 * plain + 1e-6 * np.abs(exact).max()
    (site,) = report.sites
    norm = np.linalg.norm(weight)
    assert site.error == pytest.approx(np.linalg.norm(weight - decoded.T) / norm, rel=1e-5)
    assert site.bits == pytest.approx(8 * site.nbytes / weight.size)


@pytest.mark.parametrize("name", ["int2_g16", "int2_g16_asym"])
def test_two_bits_in_both_forms(name):
    for write, opset in (("dequantize", 25), ("matmul_nbits", 21)):
        m, weight = linear()
        m.opset_imports[""] = opset
        m.ir_version = 13
        apply(m, format=name, write=write, accuracy_level=0)
        fmt = parse_format(name)
        decoded = fmt.decode(fmt.encode(np.ascontiguousarray(weight.T)))
        x = RNG.standard_normal((3, 48)).astype(np.float32)
        np.testing.assert_allclose(run(m, x=x)["y"], x @ decoded.T, atol=2e-5)


def test_nbits_is_what_auto_writes_for_groups_and_dequantize_for_channels():
    grouped, _ = linear()
    apply(grouped, format="int4_g16")
    assert [node.op_type for node in grouped.graph] == ["MatMulNBits"]
    assert grouped.graph[0].attributes["accuracy_level"].value == 4
    per_channel, _ = linear()
    apply(per_channel, format="int4_channel")
    assert [node.op_type for node in per_channel.graph] == ["DequantizeLinear", "MatMul"]
    assert "w" not in per_channel.graph.initializers


@pytest.mark.parametrize("name", ["ternary_tensor", "ternary", "ternary_g16_f16", "ternary2"])
def test_a_weight_that_is_ternary_already_is_written_exactly_and_said_to_be(name):
    trits = RNG.integers(-1, 2, (48, 20)).astype(np.float32)
    weight = trits * np.float32(0.0625 if name.endswith("f16") else 0.03)
    m = model(
        "main (float[n, 48] x) => (float[n, 20] y) <float[48, 20] w> { y = MatMul(x, w) }", w=weight
    )
    (site,) = apply(m, format=name).sites
    assert site.error == 0
    assert site.note == f"stored exactly: its weights are values of {name} already"
    assert [node.op_type for node in m.graph] == ["MatMulTernary"]
    x = RNG.integers(-127, 128, (5, 48)).astype(np.float32)
    x[:, 0] = 127  # whole tokens up to 127 are rounded to themselves
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_allclose(run(m, x=x)["y"], exact, rtol=1e-6, atol=1e-5)
    other, _ = linear()
    (site,) = apply(other, format=name).sites
    assert site.error > 0.1
    assert site.note is None


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("write", ["dequantize", "matmul_nbits"])
def test_gemm_in_either_orientation_with_alpha_and_beta(trans_b, alpha, beta, write):
    weight = RNG.standard_normal((20, 32) if trans_b else (32, 20)).astype(np.float32)
    bias = RNG.standard_normal(20).astype(np.float32)
    m = model(
        "main (float[n, 32] x) => (float[n, 20] y) <float[32, 20] w, float[20] c>"
        f"{{ y = Gemm<transB={trans_b}, alpha={alpha}, beta={beta}>(x, w, c) }}",
        w=weight,
        c=bias,
    )
    apply(m, format="int8_g32", write=write, accuracy_level=0)
    rows = weight if trans_b else weight.T
    fmt = parse_format("int8_g32")
    decoded = fmt.decode(fmt.encode(np.ascontiguousarray(rows)))
    x = RNG.standard_normal((3, 32)).astype(np.float32)
    expected = alpha * (x @ decoded.T) + beta * bias
    np.testing.assert_allclose(run(m, x=x)["y"], expected, atol=2e-5)


def test_convolutions_take_one_scale_per_output_channel():
    weight = RNG.standard_normal((6, 2, 3, 3)).astype(np.float32)
    weight[3] *= 100
    m = model(
        "main (float[1, 4, 8, 8] x) => (float[1, 6, 6, 6] y) <float[6, 2, 3, 3] w>"
        "{ y = Conv<group=2>(x, w) }",
        w=weight,
    )
    x = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)
    before = run(m, x=x)["y"]
    report = apply(m, format="int8_channel")
    assert report.sites[0].error < 1 / 127
    after = run(m, x=x)["y"]
    # |ΔW| ≤ scale / 2 for each of the 18 weights of an output, scale = max|W| / 127.
    bound = np.abs(weight).reshape(6, -1).max(1) / 127 / 2 * 18 * np.abs(x).max()
    assert (np.abs(after - before).reshape(6, -1).max(1) <= bound).all()
    left = apply(
        model(
            "main (float[1, 4, 8, 8] x) => (float[1, 6, 6, 6] y, float[n, 4] z) "
            "<float[6, 2, 3, 3] w, float[4, 4] v, float[n, 4] q>"
            "{ y = Conv<group=2>(x, w) z = MatMul(q, v) }".replace(", float[n, 4] q>", ">").replace(
                "x)", "x, float[n, 4] q)", 1
            ),
            w=weight,
            v=np.eye(4, dtype=np.float32),
        ),
        format="int4_g16",
    ).left
    assert "takes one scale per channel or tensor" in left[0].reason


def tied(tokens=40, width=32):
    table = RNG.standard_normal((width, tokens)).astype(np.float32)
    return model(
        f"main (int64[n] ids) => (float[n, {tokens}] y) <float[{width}, {tokens}] w> {{"
        " t = Transpose<perm=[1, 0]>(w) h = Gather(t, ids) y = MatMul(h, w) }",
        w=table,
    ), table


def test_a_tied_embedding_shares_its_codes_with_the_head():
    m, table = tied()
    report = apply(m, format="int8_g32", embedding_format="int8_g32", accuracy_level=0)
    assert [node.op_type for node in m.graph] == ["Reshape", "GatherBlockQuantized", "MatMulNBits"]
    codes = [v for v in m.graph.initializers.values() if v.dtype == ir.DataType.UINT8]
    assert len(codes) == 1
    assert len(report.changed) == 2
    fmt = parse_format("int8_g32")
    decoded = fmt.decode(fmt.encode(np.ascontiguousarray(table.T)))
    ids = np.array([0, 7, 39])
    np.testing.assert_allclose(run(m, ids=ids)["y"], decoded[ids] @ decoded.T, atol=1e-4)


def test_a_float_embedding_keeps_the_float_table():
    m, _ = tied()
    report = apply(m, format="int8_g32", accuracy_level=0)
    assert report.left[0].reason == "the recipe leaves it in float"
    assert "w" in m.graph.initializers


def test_an_override_and_an_exclusion_win_over_the_format():
    m = model(
        "main (float[n, 16] x) => (float[n, 16] y) <float[16, 16] a, float[16, 16] b, "
        "float[16, 16] c> { h = MatMul(x, a) g = MatMul(h, b) y = MatMul(g, c) }",
        **{name: RNG.standard_normal((16, 16)).astype(np.float32) for name in "abc"},
    )
    names = [site.name for site in find_sites(m)]
    report = apply(m, format="int4_g16", overrides={names[1]: "int8_g16"}, exclude=(names[2],))
    assert [site.format for site in report.sites] == ["int4_g16", "int8_g16", None]
    assert "leaves it in float" in report.sites[2].reason


def test_one_weight_read_twice_is_stored_once():
    m = model(
        "main (float[n, 16] x) => (float[n, 16] y) <float[16, 16] w>"
        "{ h = MatMul(x, w) y = MatMul(h, w) }",
        w=RNG.standard_normal((16, 16)).astype(np.float32),
    )
    apply(m, format="int8_channel")
    assert [node.op_type for node in m.graph] == ["DequantizeLinear", "MatMul", "MatMul"]


def test_sites_in_if_bodies_are_quantized_too():
    m = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        main (bool b, float[n, 2] x) => (float[n, 2] y)
        <float[2, 2] w = {1.0, 2.0, 3.0, -4.0}> {
          y = If (b) <
            then_branch = yes () => (float[n, 2] t) { t = MatMul(x, w) },
            else_branch = no () => (float[n, 2] e) { e = Identity(x) }>
        }"""
    )
    x = np.array([[1.0, 0.5]], np.float32)
    before = run(m, b=np.array(True), x=x)["y"]
    report = apply(m, format="int8_channel")
    assert len(report.changed) == 1
    np.testing.assert_allclose(run(m, b=np.array(True), x=x)["y"], before, atol=2 * 4 / 127 / 2)


def test_a_computed_weight_is_left_with_the_reason():
    m = model(
        "main (float[n, 16] x, float[16, 16] v) => (float[n, 16] y) <float[16, 16] w>"
        "{ s = Softmax(v) h = MatMul(x, s) y = MatMul(h, w) }",
        w=RNG.standard_normal((16, 16)).astype(np.float32),
    )
    report = apply(m, format="int8_channel")
    assert len(report.changed) == 1
    assert "computed" in report.left[0].reason


def test_a_quantized_model_is_refused_and_the_second_run_changes_nothing():
    m, _ = linear()
    assert apply(m, format="int4_g16").modified
    step = QuantizeWeights(format="int4_g16")
    with pytest.raises(UnsupportedGraph, match="already quantized"):
        step.requires(m)
    again = step.call(m, Context())
    assert not again.modified
    assert "already quantized" in again.left[0].reason


def test_an_opset_that_cannot_say_it_is_refused_with_what_to_run_first():
    m, _ = linear()
    m.opset_imports[""] = 17
    with pytest.raises(UnsupportedGraph, match="put convert_opset with minimum=21 earlier"):
        QuantizeWeights(format="int4_channel").requires(m)
    QuantizeWeights(format="int4_g16").requires(m)  # MatMulNBits needs no newer opset


@settings(max_examples=25, deadline=None)
@given(
    columns=st.integers(2, 70),
    rows=st.integers(2, 33),
    name=st.sampled_from([*FORMATS, "int3_g16", "int8_channel_asym"]),
    search=st.sampled_from(["minmax", "mse"]),
)
def test_any_shape_goes_through_and_the_error_is_that_of_the_format(columns, rows, name, search):
    m, weight = linear(columns, rows)
    report = apply(m, format=name, search=search, accuracy_level=0)
    x = np.eye(columns, dtype=np.float32)
    computed = run(m, x=x)["y"]
    error = np.linalg.norm(computed - weight) / max(np.linalg.norm(weight), 1e-30)
    assert error == pytest.approx(report.sites[0].error, abs=1e-4)


def test_weights_read_back_are_the_ones_reported():
    m, weight = linear()
    apply(m, format="int8_channel", write="dequantize")
    dequantize = m.graph[0]
    codes, scales = (read_weight(value) for value in dequantize.inputs[:2])
    assert codes.dtype == np.int8 and codes.shape == weight.shape
    assert np.abs(codes.astype(int)).max() <= 127
    assert (np.abs(codes * scales - weight) <= scales / 2 * (1 + 1e-5)).all()


def test_nan_names_the_weight_and_the_site():
    m, weight = linear()
    weight[3, 4] = np.nan
    with pytest.raises(FormatError, match="Weight 'w' of 'MatMul_0': the weight holds NaN"):
        apply(m, format="int4_g16")


def test_operators_that_hold_weights_but_take_no_codes_are_reported():
    m = model(
        "main (float[n, 8] x) => (float[n, 4] y) <float[8, 4] w>"
        "{ y = com.microsoft.FusedMatMul<alpha=0.5>(x, w) }",
        w=RNG.standard_normal((8, 4)).astype(np.float32),
    )
    report = apply(m, format="int8_channel")
    assert [site.reason for site in report.sites] == [
        "FusedMatMul takes float weights only, and is no MatMul, Gemm or convolution"
    ]
