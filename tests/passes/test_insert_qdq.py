"""Static int8: arithmetic bounds, integer kernels in ONNX Runtime, and what is left alone."""

import collections
import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import find_sites, read_weight
from onnxq.numerics.powers import power_of_two_above
from onnxq.passes.base import Context
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.int8_weights import encode_int8, int32_bias, scale_floor
from onnxq.passes.qdq_outputs import Deviation
from onnxq.passes.qdq_trial import Trials, least_left, noise_reasons
from onnxq.passes.site_noise import noisiest
from onnxq.runtime import open_session

RNG = np.random.default_rng(5)


def model(text, opset=17, **weights):
    """A text graph whose initializers are given as arrays."""
    built = ir.from_onnx_text(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')
    for name, array in weights.items():
        value = built.graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    for index, node in enumerate(built.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    return built


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def samples(count=4, **shapes):
    return [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(count)]


def run(m, optimize=False, **feeds):
    with open_session(m, optimize=optimize) as session:
        return session.run(feeds)


def quantize(m, data, **options):
    Calibrate().call(m, Context(samples=data))
    step = InsertQdq(**{"min_output_db": 0.0, "correct_bias": False, **options})
    step.requires(m)
    return step.call(m, Context(samples=data))


def kernels(m, tmp_path):
    """Operator counts after ONNX Runtime's optimizations."""
    from onnxq.graph import save

    save(m, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    return collections.Counter(node.op_type for node in graph.node)


def dense(inputs=32, outputs=16, bias=True):
    tail = "y = Add(m, b)" if bias else "y = Identity(m)"
    return model(
        f"main (float[n, s, {inputs}] x) => (float[n, s, {outputs}] y)"
        f" <float[1] w = {{0}}, float[1] b = {{0}}> {{ m = MatMul(x, w) {tail} }}",
        w=normal(inputs, outputs),
        b=normal(outputs),
    )


def convolutions(**attributes):
    return model(
        "main (float[1, 4, 9, 9] x) => (float[1, 8, 9, 9] y)"
        " <float[1] w = {0}, float[1] b = {0}, float[1] v = {0}, float[1] c = {0}>"
        " { a = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a)"
        "   y = Conv<group = 8, pads = [1, 1, 1, 1]>(r, v, c) }",
        w=normal(8, 4, 3, 3),
        b=normal(8),
        v=normal(8, 1, 3, 3),
        c=normal(8),
    )


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(2, 40),
    outputs=st.integers(1, 12),
    rounding=st.sampled_from(["nearest", "sums"]),
    seed=st.integers(0, 99),
)
def test_the_error_is_what_half_steps_explain(inputs, outputs, rounding, seed):
    """|ŷ − y| ≤ Σ (|x|·t·s_w + (|w| + t·s_w)·s_x/2) + s_x·s_w/2, t half a step or one."""
    rng = np.random.default_rng(seed)
    m = dense(inputs, outputs)
    w = read_weight(m.graph.initializers["w"]).astype(np.float64)
    b = read_weight(m.graph.initializers["b"]).astype(np.float64)
    data = [{"x": rng.standard_normal((1, 5, inputs)).astype(np.float32)}]
    report = quantize(m, data, rounding=rounding)
    assert len(report.changed) == 1
    x = data[0]["x"].astype(np.float64)
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    step_w = np.abs(w).max(axis=0) / 127
    turn = 0.5 if rounding == "nearest" else 1.0
    bound = np.abs(x).sum(-1, keepdims=True) * turn * step_w
    # The zero point is rounded too, so an end of the range may be cut by one more half step.
    bound = bound + (np.abs(w) + turn * step_w).sum(axis=0) * step_x + step_x * step_w / 2
    error = np.abs(run(m, **data[0])["y"] - (x @ w + b))
    assert np.all(error <= bound * (1 + 1e-4) + 1e-5)


def test_matmul_becomes_an_integer_kernel(tmp_path):
    m = dense()
    quantize(m, samples(x=(1, 5, 32)))
    found = kernels(m, tmp_path)
    assert found["MatMulIntegerToFloat"] == 1 and found["MatMul"] == 0


def test_matmul_with_bias_and_static_shape_becomes_qgemm(tmp_path):
    m = model(
        "main (float[5, 32] x) => (float[5, 16] y) <float[1] w = {0}, float[1] b = {0}>"
        " { m = MatMul(x, w) y = Add(m, b) }",
        w=normal(32, 16),
        b=normal(16),
    )
    quantize(m, samples(x=(5, 32)))
    found = kernels(m, tmp_path)
    assert found["QGemm"] == 1 and found["Gemm"] == 0


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 0.5, beta = 2.0>"])
def test_gemm_becomes_qgemm_and_keeps_its_factors(tmp_path, attributes):
    flipped = "transB" in attributes
    m = model(
        "main (float[5, 32] x) => (float[5, 16] y) <float[1] w = {0}, float[1] b = {0}>"
        f" {{ y = Gemm{attributes}(x, w, b) }}",
        w=normal(16, 32) if flipped else normal(32, 16),
        b=normal(1, 16),
    )
    data = samples(x=(5, 32))
    before = run(m, **data[0])["y"]
    quantize(m, data)
    after = run(m, **data[0])["y"]
    assert np.linalg.norm(after - before) < 0.02 * np.linalg.norm(before)
    found = kernels(m, tmp_path)
    assert found["QGemm"] == 1 and found["Gemm"] == 0


def test_convolutions_absorb_relu_and_run_in_int8(tmp_path):
    m = convolutions()
    data = samples(x=(1, 4, 9, 9))
    before = run(m, **data[0])["y"]
    report = quantize(m, data)
    assert report.modified and len(report.changed) == 2
    found = kernels(m, tmp_path)
    assert found["QLinearConv"] == 2 and found["Conv"] == 0 and found["Relu"] == 0
    after = run(m, optimize=True, **data[0])["y"]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_a_constant_added_behind_a_conv_moves_into_it(tmp_path):
    m = model(
        "main (float[1, 4, 9, 9] x) => (float[1, 8, 9, 9] y)"
        " <float[1] w = {0}, float[1] b = {0}> { a = Conv<pads = [1, 1, 1, 1]>(x, w)"
        " y = Add(a, b) }",
        w=normal(8, 4, 3, 3),
        b=normal(1, 8, 1, 1),
    )
    data = samples(x=(1, 4, 9, 9))
    before = run(m, **data[0])["y"]
    quantize(m, data)
    assert [v.name for v in m.graph.outputs] == ["y"]
    assert kernels(m, tmp_path)["QLinearConv"] == 1
    after = run(m, **data[0])["y"]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_codes_are_stored_and_the_float_weight_is_gone():
    m = dense()
    quantize(m, samples(x=(1, 5, 32)), reduce_range=True)
    codes = read_weight(m.graph.initializers["w_int8"])
    assert codes.dtype == np.int8 and codes.shape == (32, 16)
    assert np.abs(codes).max() == 63
    assert not {"w", "b"} & set(m.graph.initializers)
    assert read_weight(m.graph.initializers["b_int32"]).dtype == np.int32


def test_a_float_conv_behind_int8_is_not_quantized_by_the_runtime(tmp_path):
    m = convolutions()
    data = samples(x=(1, 4, 9, 9))
    report = quantize(m, data, exclude=("Conv_2",))
    assert [site.reason for site in report.left] == ["the recipe leaves it in float"]
    found = kernels(m, tmp_path)
    assert found["QLinearConv"] == 1 and found["Conv"] + found["FusedConv"] == 1


def test_graph_output_and_body_readers_stay_valid():
    m = model(
        "main (float[1, 4, 9, 9] x, bool c) => (float[1, 8, 9, 9] a, float[1, 8, 9, 9] z)"
        " <float[1] w = {0}> { a = Conv<pads = [1, 1, 1, 1]>(x, w)"
        " z = If(c) <then_branch = t () => (float[1, 8, 9, 9] p) { p = Neg(a) },"
        " else_branch = e () => (float[1, 8, 9, 9] q) { q = Exp(a) }> }",
        w=normal(8, 4, 3, 3),
    )
    data = [{**sample, "c": np.array(True)} for sample in samples(x=(1, 4, 9, 9))]
    before = run(m, **data[0])
    quantize(m, data)
    after = run(m, **data[0])
    assert list(after) == ["a", "z"]
    assert np.array_equal(after["z"], -after["a"])
    assert np.linalg.norm(after["a"] - before["a"]) < 0.05 * np.linalg.norm(before["a"])


def test_other_readers_of_a_matmul_input_keep_the_float_value():
    m = model(
        "main (float[n, 32] x) => (float[n, 16] y, float[n, 32] z) <float[1] w = {0}>"
        " { e = Erf(x) y = MatMul(e, w) z = Neg(e) }",
        w=normal(32, 16),
    )
    data = samples(x=(3, 32))
    before = run(m, **data[0])["z"]
    quantize(m, data)
    assert np.array_equal(run(m, **data[0])["z"], before)


def test_a_shared_weight_is_stored_once_per_orientation():
    m = model(
        "main (float[n, 16] x, float[n, 16] v) => (float[n, 16] y, float[n, 16] z, float[n, 16] u)"
        " <float[1] w = {0}> { y = MatMul(x, w) z = MatMul(v, w) u = Gemm<transB = 1>(x, w) }",
        w=normal(16, 16),
    )
    data = samples(x=(3, 16), v=(3, 16))
    before = run(m, **data[0])
    report = quantize(m, data)
    assert len(report.changed) == 3
    stored = [n for n, v in m.graph.initializers.items() if n.startswith("w_int8") and v.uses()]
    assert len([n for n in stored if "zero" not in n]) == 2
    after = run(m, **data[0])
    for name, value in before.items():
        assert np.linalg.norm(after[name] - value) < 0.03 * np.linalg.norm(value)


def test_dead_channels_keep_their_bias():
    """A scale of almost zero would overflow int32; the channel is its bias."""
    weight = normal(8, 4, 3, 3)
    weight[2], weight[5] = 0.0, 1e-12
    m = convolutions()
    m.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    bias = read_weight(m.graph.initializers["b"])
    data = samples(x=(1, 4, 9, 9))
    quantize(m, data)
    codes = read_weight(m.graph.initializers["b_int32"]).astype(np.float64)
    scales = read_weight(m.graph.initializers["b_scale"])
    assert np.abs(codes).max() <= 2**30 * (1 + 1e-6)
    np.testing.assert_allclose(codes * scales, bias, rtol=0, atol=float(scales.max()))
    assert abs(codes[2] * scales[2] - bias[2]) <= abs(bias[2]) * 1e-6


def test_reasons_are_given():
    m = model(
        "main (float[4, 4] x, bool c) => (float[4, 4] y, float[4, 4] z, float[4, 4] u)"
        " <float[1] w = {0}> { p = MatMul(x, x) y = MatMul(w, p)"
        " z = If(c) <then_branch = t () => (float[4, 4] a) { a = MatMul(x, w) },"
        " else_branch = e () => (float[4, 4] b) { b = Neg(x) }> u = MatMul(x, w) }",
        w=normal(4, 4),
    )
    data = [{**sample, "c": np.array(True)} for sample in samples(x=(4, 4))]
    report = quantize(m, data)
    reasons = {site.site: site.reason for site in report.left}
    assert len(report.changed) == 1 and len(reasons) == 3
    assert "is the input 'x'" in reasons["MatMul_0"]
    assert reasons["MatMul_1"].startswith("its weight is on the left")
    (inner,) = (reason for site, reason in reasons.items() if "/" in site)
    assert inner.startswith("it is inside a body or function")


def test_weights_that_are_not_finite_are_left():
    m = dense()
    broken = read_weight(m.graph.initializers["w"])
    broken[0, 0] = np.inf
    Calibrate().call(m, Context(samples=samples(x=(1, 5, 32))))
    m.graph.initializers["w"].const_value = ir.tensor(broken, name="w")
    report = InsertQdq().call(m, Context())
    assert report.left[0].reason == "its weight 'w' holds NaN or infinity"
    assert not report.modified


def test_products_of_activations_on_request(tmp_path):
    m = model(
        "main (float[2, 4, 8] x, float[2, 8, 4] v) => (float[2, 4, 4] y) { y = MatMul(x, v) }"
    )
    data = samples(x=(2, 4, 8), v=(2, 8, 4))
    before = run(m, **data[0])["y"]
    assert not quantize(m.clone(), data).modified
    assert quantize(m, data, activation_matmuls=True).modified
    assert kernels(m, tmp_path)["MatMulIntegerToFloat"] == 1
    assert np.linalg.norm(run(m, **data[0])["y"] - before) < 0.05 * np.linalg.norm(before)


def test_a_second_time_changes_nothing_and_says_why():
    m = dense()
    data = samples(x=(1, 5, 32))
    assert quantize(m, data).modified
    again = InsertQdq().call(m, Context())
    assert not again.modified
    assert again.left[0].reason == "it is already quantized (int8 behind DequantizeLinear)"
    with pytest.raises(UnsupportedGraph, match=r"already quantized.*Quantize the float model"):
        InsertQdq().requires(m)


def test_refusals_say_what_to_run_first():
    with pytest.raises(CalibrationError, match="calibrate pass"):
        InsertQdq().requires(dense())
    with pytest.raises(UnsupportedGraph, match="put convert_opset with minimum=13"):
        InsertQdq().requires(model("main (float[1] x) => (float[1] y) { y = Neg(x) }", opset=11))
    with pytest.raises(RecipeError, match="choose one of onnxruntime-cpu, tensorrt"):
        InsertQdq(target="gpu").requires(dense())


def test_the_site_that_spoils_the_outputs_stays_in_float():
    """One channel of x is 1000 times larger and its weights are zero: int8 keeps nothing."""
    spoiled = normal(32, 16)
    spoiled[0] = 0.0
    m = model(
        "main (float[n, 32] x, float[n, 32] v) => (float[n, 16] y, float[n, 16] z)"
        " <float[1] w = {0}, float[1] u = {0}> { y = MatMul(x, w) z = MatMul(v, u) }",
        w=spoiled,
        u=normal(32, 16),
    )
    data = samples(x=(64, 32), v=(64, 32))
    for sample in data:
        sample["x"][:, 0] *= 1000
    report = quantize(m, data, min_output_db=25.0)
    assert [site.site for site in report.changed] == ["MatMul_1"]
    assert "dB at the outputs" in report.left[0].reason
    (left,) = (node for node in m.graph if node.name == "MatMul_0")
    assert left.inputs[0].name == "x" and left.inputs[1].name == "w"


def test_measuring_leaves_the_model_as_it_was():
    m = convolutions()
    data = samples(x=(1, 4, 9, 9))
    Calibrate().call(m, Context(samples=data))
    inputs, nodes = len(m.graph.inputs), len(m.graph)
    report = InsertQdq(min_output_db=300.0).call(m, Context(samples=data))
    assert not report.modified and len(report.left) == 2
    assert (len(m.graph.inputs), len(m.graph)) == (inputs, nodes)


@pytest.mark.parametrize(
    "text",
    [
        "main (float[n, 32] x) => (float[n, 16] y) <float[1] w = {0}, float[1] b = {0}>"
        " { r = Relu(x) m = MatMul(r, w) y = Add(m, b) }",
        "main (float[n, 32] x) => (float[n, 16] y) <float[1] w = {0}, float[1] b = {0}>"
        " { r = Relu(x) y = Gemm<alpha = 0.5, beta = 2.0>(r, w, b) }",
    ],
)
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "tensorrt"])
def test_bias_correction_takes_the_mean_error_out(text, target):
    data = [{"x": normal(256, 32) + 3} for _ in range(4)]
    built = model(text, w=normal(32, 16), b=normal(16))
    before = np.concatenate([run(built, **sample)["y"] for sample in data])
    means = []
    for correct in (False, True):
        m = built.clone()
        quantize(m, data, target=target, correct_bias=correct, rounding="nearest")
        after = np.concatenate([run(m, **sample)["y"] for sample in data])
        means.append(np.abs((after - before).mean(axis=0)).max())
    assert means[1] < 0.25 * means[0]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bias_correction_of_grouped_convolutions(groups):
    built = model(
        "main (float[1, 4, 24, 24] x) => (float[1, 8, 22, 22] y)"
        f" <float[1] w = {{0}}, float[1] b = {{0}}> {{ y = Conv<group = {groups}>(x, w, b) }}",
        w=normal(8, 4 // groups, 3, 3),
        b=normal(8),
    )
    data = [{"x": normal(1, 4, 24, 24) + np.float32(4)} for _ in range(4)]
    before = np.concatenate([run(built, **sample)["y"] for sample in data])
    means = []
    for correct in (False, True):
        m = built.clone()
        quantize(m, data, correct_bias=correct, rounding="nearest", target="tensorrt")
        after = np.concatenate([run(m, **sample)["y"] for sample in data])
        means.append(np.abs((after - before).mean(axis=(0, 2, 3))).max())
    assert means[1] < 0.25 * means[0]


def test_noisiest_drops_as_few_as_needed():
    noise = {"a": 4.0, "b": 1.0, "c": 2.0}
    assert noisiest(noise, 7.0) == []
    assert noisiest(noise, 3.5) == ["a"]
    assert noisiest(noise, 0.5) == ["a", "c", "b"]


def test_tensorrt_is_symmetric_keeps_float_bias_and_quantizes_the_skip():
    m = model(
        "main (float[1, 4, 9, 9] x) => (float[1, 4, 9, 9] y) <float[1] w = {0}, float[1] b = {0}>"
        " { r = Relu(x) a = Conv<pads = [1, 1, 1, 1]>(r, w, b) y = Add(a, r) }",
        w=normal(4, 4, 3, 3),
        b=normal(4),
    )
    quantize(m, samples(x=(1, 4, 9, 9)), target="tensorrt")
    quantizers = [node for node in m.graph if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 1  # Conv and Add share the rounded r; a goes into Add as it is
    zero = quantizers[0].inputs[2]
    assert zero.dtype == ir.DataType.INT8 and read_weight(zero) == 0
    (conv,) = (node for node in m.graph if node.op_type == "Conv")
    (add,) = (node for node in m.graph if node.op_type == "Add")
    assert conv.inputs[2].name == "b"
    assert add.inputs[0] is conv.outputs[0]
    assert add.inputs[1].producer().op_type == "DequantizeLinear"


def test_names_stay_unique():
    m = convolutions()
    quantize(m, samples(x=(1, 4, 9, 9)))
    names = [v.name for node in m.graph for v in node.outputs] + list(m.graph.initializers)
    assert len(names) == len(set(names))
    assert len({node.name for node in m.graph}) == len(m.graph)
    assert all(site.already for site in find_sites(m))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 30),
    axis=st.integers(0, 1),
    bits=st.sampled_from([7, 8]),
    seed=st.integers(0, 99),
)
def test_codes_are_within_half_a_step(rows, columns, axis, bits, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    codes, scale, error = encode_int8(weight, axis, bits=bits)
    spread = scale[:, None] if axis == 0 else scale[None, :]
    assert np.abs(codes).max() <= 2 ** (bits - 1) - 1
    assert np.all(np.abs(codes * spread - weight) <= spread * 0.5 * (1 + 1e-5))
    assert error == pytest.approx(
        np.linalg.norm(codes * spread - weight) / np.linalg.norm(weight), rel=1e-3, abs=1e-6
    )


def test_bias_codes_fit_and_scales_are_the_product():
    bias = np.array([1.0, -3.0, 0.0], np.float32)
    floor = scale_floor(bias, 0.1)
    codes, scales = int32_bias(bias, 0.1, np.maximum(floor, np.float32(1e-20)))
    assert codes.dtype == np.int32 and np.abs(codes.astype(np.int64)).max() <= 2**30 + 128
    np.testing.assert_allclose(codes * scales.astype(np.float64), bias, rtol=1e-6)


def near_ties():
    """Two layers before a softmax of great gain: rounding turns rows whose best two are close.

    Its numbers are its own, and so are those of its samples: whether a row is close enough to turn
    is up to them, and other tests draw from the shared generator any number of times.
    """
    rng = np.random.default_rng(7)

    def own(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    samples = [{"x": own(64, 32)} for _ in range(4)]
    found = model(
        "main (float[n, 32] x) => (float[n, 16] y) <float[1] w = {0}, float[1] u = {0},"
        " float[1] g = {0}> { h = MatMul(x, w) r = Relu(h) l = MatMul(r, u) s = Mul(l, g)"
        " y = Softmax<axis = -1>(s) }",
        w=own(32, 32),
        u=own(32, 16),
        g=np.array(20, np.float32),
    )
    return found, samples


def test_what_is_kept_together_is_checked_on_the_quantized_model():
    m, data = near_ties()
    report = quantize(m.clone(), data, min_output_db=300.0, check_together=True)
    assert not report.changed
    quiet = m.clone()
    report = quantize(quiet, data, min_output_db=15.0, check_together=True)
    found = Trials(m, data).deviation(quiet)
    assert found.noise <= 10**-1.5 and found.changed == 0 and found.decisions == 256
    for site in report.left:
        assert re.fullmatch(
            r"int8 here alone would leave \S+ dB at the outputs, (with the other sites \S+ dB at "
            r"the outputs( and \d+ of 256 decisions changed)?, )?and all of the model is to keep "
            r"15 dB",
            site.reason,
        )


def test_decisions_may_change_when_the_recipe_says_so():
    m, data = near_ties()
    strict, free, unchecked = (
        quantize(m.clone(), data, min_output_db=15.0, **options)
        for options in ({}, {"changed_decisions": 1.0}, {"check_together": False})
    )
    assert len(strict.changed) < len(free.changed) == len(unchecked.changed) == 2
    assert all("of 256 decisions changed" in site.reason for site in strict.left)


def test_fewest_sites_are_left_that_a_trial_of_the_rest_allows():
    ranked = ["a", "b", "c", "d", "e"]
    tried = []

    def keeps(count):
        def trial(left):
            tried.append(len(left))
            return len(left) >= count

        return trial

    assert least_left(ranked, 1, keeps(3)) == 3
    assert least_left(ranked, 4, keeps(3)) == 4
    assert least_left(ranked, 1, keeps(9)) == 5
    assert 5 not in tried, "with every site in float there is nothing to try"
    assert least_left(ranked, 5, keeps(9)) == 5


def test_the_reason_tells_sites_too_noisy_alone_from_those_too_noisy_together():
    together = Deviation([-1])
    plain = np.array([[10.0, -10.0], [0.1, -0.1]], np.float32)
    together.add([plain], [np.array([[10.0, -10.0], [-1.9, 1.9]], np.float32)])
    noise = {"a": 0.1, "b": 1e-4, "c": 0.0}
    reasons = noise_reasons(noise, ["a", "b", "c"], 1, 3, together, 30.0)
    assert reasons["a"] == (
        "int8 here alone would leave 10.0 dB at the outputs, and all of the model is to keep 30 dB"
    )
    assert reasons["b"] == (
        "int8 here alone would leave 40.0 dB at the outputs, with the other sites 14.0 dB at the "
        "outputs and 1 of 2 decisions changed, and all of the model is to keep 30 dB"
    )
    assert "alone would leave inf dB" in reasons["c"]


def test_scales_are_powers_of_two_where_a_device_shifts():
    """Each is the next power of two above the usual one, so steps are at most twice as coarse."""
    weights = {"w": normal(16, 8), "b": normal(8)}
    text = (
        "main (float[n, 16] x) => (float[n, 8] y) <float[1] w = {0}, float[1] b = {0}> "
        "{ y = Gemm(x, w, b) }"
    )
    data = samples(x=(4, 16))
    scales = {}
    for wanted in (False, True):
        m = model(text, **weights)
        quantize(m, data, power_of_two=wanted)
        nodes = [n for n in m.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
        scales[wanted] = {n.name: read_weight(n.inputs[1]).astype(np.float64) for n in nodes}
        if wanted:
            exact = data[0]["x"] @ weights["w"] + weights["b"]
            found = run(m, x=data[0]["x"])["y"]
            assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    assert scales[True].keys() == scales[False].keys()
    for name, found in scales[True].items():
        assert (np.frexp(found)[0] == 0.5).all()
        ratio = found / scales[False][name]
        # a bias has the product of two scales, each rounded up
        assert (ratio >= 1).all() and (ratio < 4).all()


@given(st.floats(1e-30, 1e30))
def test_the_next_power_of_two_is_not_below_and_less_than_twice(value):
    found = power_of_two_above(np.array([value, 2.0 ** np.floor(np.log2(value))]))
    assert value <= found[0] < 2 * value
    assert (np.frexp(found)[0] == 0.5).all()
    assert power_of_two_above(found).tolist() == found.tolist()
