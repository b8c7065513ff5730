"""Dynamic int8: arithmetic bounds, fused kernels, bodies and functions, and what is left alone."""

import collections

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import RecipeError, UnsupportedGraph
from onnxq.graph import read_weight, save, walk_nodes
from onnxq.passes.base import Context
from onnxq.passes.dynamic_int8 import DynamicInt8
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.runtime import open_session

RNG = np.random.default_rng(9)
TINY = np.finfo(np.float32).tiny


def model(text, opset=17, functions="", **weights):
    """A text graph whose initializers are given as arrays."""
    own = ', "local" : 1' if functions else ""
    built = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : {opset}{own}]>\n{text}\n{functions}'
    )
    for name, array in weights.items():
        value = built.graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    for index, (_, node) in enumerate(walk_nodes(built)):
        node.name = node.name or f"{node.op_type}_{index}"
    return built


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(m, optimize=False, **feeds):
    with open_session(m, optimize=optimize) as session:
        return session.run(feeds)


def apply(m, **options):
    step = DynamicInt8(**options)
    step.requires(m)
    return step.call(m, Context())


def close(after, before, relative=0.03):
    return np.linalg.norm(after - before) < relative * np.linalg.norm(before)


def kernels(m, tmp_path):
    """Operator counts after ONNX Runtime's optimizations."""
    save(m, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    return collections.Counter(node.op_type for node in graph.node)


def dense(inputs=32, outputs=16):
    return model(
        f"main (float[n, s, {inputs}] x) => (float[n, s, {outputs}] y)"
        " <float[1] w = {0}, float[1] b = {0}> { m = MatMul(x, w) y = Add(m, b) }",
        w=normal(inputs, outputs),
        b=normal(outputs),
    )


@settings(max_examples=25, deadline=None)
@given(inputs=st.integers(2, 40), outputs=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_error_is_what_half_steps_explain(inputs, outputs, seed):
    """|ŷ − y| ≤ Σ (|x|·s_w/2 + (|w| + s_w/2)·s_x), the range being that of x itself."""
    m = dense(inputs, outputs)
    w = read_weight(m.graph.initializers["w"]).astype(np.float64)
    b = read_weight(m.graph.initializers["b"])
    x = np.random.default_rng(seed).standard_normal((1, 5, inputs)).astype(np.float32)
    assert len(apply(m).changed) == 1
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    step_w = np.abs(w).max(axis=0) / 127
    bound = np.abs(x).sum(-1, keepdims=True) * step_w / 2
    # Rounding the zero point cuts an end of the range by at most one more half step.
    bound = bound + (np.abs(w) + step_w / 2).sum(axis=0) * step_x
    error = np.abs(run(m, x=x)["y"] - (x.astype(np.float64) @ w + b))
    assert np.all(error <= bound * (1 + 1e-4) + 1e-5)


def test_one_site_becomes_one_kernel(tmp_path):
    m = dense()
    apply(m)
    assert kernels(m, tmp_path) == {"DynamicQuantizeMatMul": 1}


def test_siblings_share_the_quantized_activation(tmp_path):
    m = model(
        "main (float[n, 32] x) => (float[n, 16] y, float[n, 16] z)"
        " <float[1] w = {0}, float[1] v = {0}> { y = MatMul(x, w) z = MatMul(x, v) }",
        w=normal(32, 16),
        v=normal(32, 16),
    )
    apply(m)
    found = kernels(m, tmp_path)
    assert found == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2}


@pytest.mark.parametrize("flip_a", [0, 1])
@pytest.mark.parametrize("flip_b", [0, 1])
def test_gemm_keeps_its_attributes(flip_a, flip_b):
    m = model(
        f"main (float[{'32, 5' if flip_a else '5, 32'}] x) => (float[5, 16] y)"
        " <float[1] w = {0}, float[1] b = {0}>"
        f" {{ y = Gemm<alpha = 0.5, beta = 3.0, transA = {flip_a}, transB = {flip_b}>(x, w, b) }}",
        w=normal(16, 32) if flip_b else normal(32, 16),
        b=normal(5, 1),
    )
    x = normal(32, 5) if flip_a else normal(5, 32)
    before = run(m, x=x)["y"]
    assert apply(m).modified
    assert not any(node.op_type == "Gemm" for node in m.graph)
    assert close(run(m, x=x)["y"], before)


def test_computed_bias_of_gemm():
    m = model(
        "main (float[5, 32] x, float[16] c) => (float[5, 16] y)"
        " <float[1] w = {0}> { y = Gemm<beta = 2.0>(x, w, c) }",
        w=normal(32, 16),
    )
    feeds = {"x": normal(5, 32), "c": normal(16)}
    before = run(m, **feeds)["y"]
    apply(m)
    assert close(run(m, **feeds)["y"], before)


def test_bodies_read_weights_of_their_own_and_from_outside():
    m = model(
        "main (float[3, 8] x, bool c) => (float[3, 8] z) <float[1] w = {0}>"
        " { z = If(c) <then_branch = t () => (float[3, 8] p) { p = MatMul(x, w) },"
        " else_branch = e () => (float[3, 8] q) { r = MatMul(x, w) s = Relu(r)"
        " q = MatMul(s, w) }> }",
        w=normal(8, 8),
    )
    x = normal(3, 8)
    before = [run(m, x=x, c=np.array(c))["z"] for c in (True, False)]
    report = apply(m)
    assert len(report.changed) == 3
    assert len([n for n in m.graph if n.op_type == "DynamicQuantizeLinear"]) == 1
    for c, old in zip((True, False), before, strict=True):
        assert close(run(m, x=x, c=np.array(c))["z"], old)


def test_functions_hold_their_codes_as_constants():
    values = ", ".join(f"{v:.3f}" for v in RNG.standard_normal(16))
    m = model(
        "main (float[3, 4] x) => (float[3, 4] y) { y = local.f(x) }",
        functions='<domain: "local", opset_import: ["" : 17]>\nf (a) => (b)'
        f" {{ w = Constant<value = float[4, 4] {{{values}}}>() b = MatMul(a, w) }}",
    )
    x = normal(3, 4)
    before = run(m, x=x)["y"]
    report = apply(m)
    assert [site.site for site in report.changed] == ["local::f/MatMul_2"]
    (function,) = m.functions.values()
    kinds = [node.op_type for node in function]
    assert kinds.count("Constant") == 2 and "MatMul" not in kinds
    assert close(run(m, x=x)["y"], before)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_lstm_becomes_a_quantized_one(tmp_path, direction):
    count = 2 if direction == "bidirectional" else 1
    m = model(
        f"main (float[7, 1, 6] x) => (float[7, {count}, 1, 5] y, float[{count}, 1, 5] h)"
        " <float[1] w = {0}, float[1] r = {0}, float[1] b = {0}>"
        f' {{ y, h = LSTM<hidden_size = 5, direction = "{direction}">(x, w, r, b) }}',
        w=normal(count, 20, 6) * 0.5,
        r=normal(count, 20, 5) * 0.5,
        b=normal(count, 40) * 0.1,
    )
    x = normal(7, 1, 6)
    before = run(m, x=x)
    report = apply(m)
    assert report.modified and len(report.changed) == 1 and not report.left
    assert kernels(m, tmp_path)["DynamicQuantizeLSTM"] == 1
    after = run(m, x=x)
    assert list(after) == ["y", "h"]
    assert close(after["y"], before["y"]) and close(after["h"], before["h"])


def test_convolutions_only_when_asked():
    text = (
        "main (float[1, 4, 9, 9] x) => (float[1, 8, 9, 9] y) <float[1] w = {0}, float[1] b = {0}>"
        " { y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }"
    )
    m = model(text, w=normal(8, 4, 3, 3), b=normal(8))
    x = normal(1, 4, 9, 9)
    before = run(m, x=x)["y"]
    report = apply(m)
    assert not report.modified and "slower than a float Conv" in report.left[0].reason
    assert apply(m, convolutions=True).modified
    assert any(node.op_type == "ConvInteger" for node in m.graph)
    assert close(run(m, x=x)["y"], before)


def test_reasons_and_a_second_time():
    m = model(
        "main (float[4, 4] x) => (float[4, 4] y, float[4, 4] z, float[4, 4] u)"
        " <float[1] w = {0}> { y = MatMul(x, x) z = MatMul(w, x) u = MatMul(x, w) }",
        w=normal(4, 4),
    )
    report = apply(m, exclude=("MatMul_2",))
    reasons = [site.reason for site in report.left]
    assert not report.modified and len(reasons) == 3
    assert "is the input 'x'" in reasons[0]
    assert reasons[1].startswith("its weight is on the left")
    assert reasons[2] == "the recipe leaves it in float"
    assert apply(m).modified
    again = DynamicInt8().call(m, Context())
    assert not again.modified
    assert "it is already quantized (MatMulInteger)" in [site.reason for site in again.left]


def test_refusals_say_what_to_do():
    m = dense()
    apply(m)
    with pytest.raises(UnsupportedGraph, match=r"already quantized.*Quantize the float model"):
        DynamicInt8().requires(m)
    with pytest.raises(UnsupportedGraph, match="put convert_opset with minimum=11"):
        DynamicInt8().requires(model("main (float[1] x) => (float[1] y) { y = Neg(x) }", opset=10))


def test_float_weights_are_gone_unless_somebody_reads_them():
    m = model(
        "main (float[4, 4] x) => (float[4, 4] y, float[4, 4] z)"
        " <float[1] w = {0}, float[1] v = {0}>"
        " { a = MatMul(x, w) y = MatMul(a, v) z = Add(x, v) }",
        w=normal(4, 4),
        v=normal(4, 4),
    )
    apply(m)
    assert "w" not in m.graph.initializers and "v" in m.graph.initializers


def token_codes(x):
    """Symmetric codes and scales of rows, in float32 as the nodes compute them."""
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True) / np.float32(127), TINY)
    return np.rint(x / scale), scale


def unlike_rows(*shape):
    """Rows of very different sizes, one of them zero."""
    x = normal(*shape) * np.float32(10) ** RNG.integers(-5, 5, (*shape[:-1], 1)).astype(np.float32)
    x[0] = 0
    return x


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("optimize", [True, False])
def test_rows_are_multiplied_as_integers_exactly(optimize, opset):
    """The int32 sums are exact: y = float(Σ q·w) · s_c · s_t in this order, bit for bit."""
    m = model(
        "main (float[n, 64] x) => (float[n, 16] y) <float[1] w = {0}> { y = MatMul(x, w) }",
        opset=opset,
        w=normal(64, 16),
    )
    assert len(apply(m, granularity="token").changed) == 1
    codes = read_weight(m.graph.initializers["w_int8"]).astype(np.int64)
    columns = read_weight(m.graph.initializers["w_scale"])
    x = unlike_rows(20, 64)
    q, scale = token_codes(x)
    sums = (q.astype(np.int64) @ codes).astype(np.float32)
    np.testing.assert_array_equal(run(m, optimize, x=x)["y"], sums * columns * scale)


def test_integer_rows_are_those_of_the_simulated_ones():
    """quantize_activations with 8 bits and dynamic_int8 by token round to the same codes."""
    text = "main (float[n, 64] x) => (float[n, 64] y) <float[1] w = {0}> { y = MatMul(x, w) }"
    integer, simulated = (model(text, opset=18, w=np.eye(64, dtype=np.float32)) for _ in "ab")
    apply(integer, granularity="token")
    QuantizeActivations(bits=8).call(simulated, Context())
    x = unlike_rows(50, 64)
    scale = token_codes(x)[1].astype(np.float64)
    codes = [np.rint(run(m, x=x)["y"] / scale) for m in (integer, simulated)]
    np.testing.assert_array_equal(*codes)


def test_siblings_share_the_codes_of_rows():
    m = model(
        "main (float[n, 32] x) => (float[n, 16] y, float[n, 16] z)"
        " <float[1] w = {0}, float[1] v = {0}> { y = MatMul(x, w) z = MatMul(x, v) }",
        w=normal(32, 16),
        v=normal(32, 16),
    )
    apply(m, granularity="token")
    kinds = collections.Counter(node.op_type for node in m.graph)
    assert kinds["QuantizeLinear"] == 1 and kinds["MatMulInteger"] == 2


@pytest.mark.parametrize("flip_a", [0, 1])
def test_rows_of_gemm_bodies_and_convolutions(flip_a):
    m = model(
        f"main (float[{'32, 5' if flip_a else '5, 32'}] x, float[5, 3, 4, 4] i, bool c)"
        " => (float[5, 16] y, float[5, 8, 4, 4] z) <float[1] w = {0}, float[1] k = {0}>"
        f" {{ y = If(c) <then_branch = t () => (float[5, 16] p)"
        f" {{ p = Gemm<alpha = 0.5, transA = {flip_a}>(x, w) }},"
        f" else_branch = e () => (float[5, 16] q) {{ q = Gemm<transA = {flip_a}>(x, w) }}>"
        " z = Conv(i, k) }",
        w=normal(32, 16),
        k=normal(8, 3, 1, 1),
    )
    x = unlike_rows(5, 32)
    feeds = {
        "x": x.T.copy() if flip_a else x,
        "i": unlike_rows(5, 48).reshape(5, 3, 4, 4),
    }
    before = [run(m, **feeds, c=np.array(c)) for c in (True, False)]
    assert len(apply(m, granularity="token", convolutions=True).changed) == 3
    for c, old in zip((True, False), before, strict=True):
        new = run(m, **feeds, c=np.array(c))
        for name in "yz":  # each row, however small it is
            for row_new, row_old in zip(new[name][1:], old[name][1:], strict=True):
                assert close(row_new, row_old, 0.05)
            np.testing.assert_array_equal(new[name][0], 0)


def test_rows_in_functions():
    values = ", ".join(f"{v:.3f}" for v in RNG.standard_normal(16))
    m = model(
        "main (float[3, 4] x) => (float[3, 4] y) { y = local.f(x) }",
        functions='<domain: "local", opset_import: ["" : 17]>\nf (a) => (b)'
        f" {{ w = Constant<value = float[4, 4] {{{values}}}>() b = MatMul(a, w) }}",
    )
    x = normal(3, 4)
    before = run(m, x=x)["y"]
    apply(m, granularity="token")
    assert close(run(m, x=x)["y"], before)


def test_a_granularity_that_is_none_is_refused():
    with pytest.raises(RecipeError, match=r"'tensor' .* or 'token'"):
        DynamicInt8(granularity="channel")
