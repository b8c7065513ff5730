"""quantize_weights with solvers that look at data: the written graph holds what they chose."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import CalibrationError, RecipeError
from onnxq.formats import parse_format
from onnxq.passes.base import Context
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import load_recipe, preset_names
from onnxq.runtime import open_session

DATA_AWARE = ["gptq", "coordinate_descent", "decoupleq"]


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def model(text, opset=21, **weights):
    built = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, array in weights.items():
        value = next(v for node in built.graph for v in node.inputs if v and v.name == name)
        for node in built.graph:
            for index, other in enumerate(node.inputs):
                if other is not None and other.name == name:
                    node.replace_input_with(index, value)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
        built.graph.register_initializer(value)
    for index, node in enumerate(built.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    return built


@pytest.fixture
def weights(rng):
    shapes = {"v": (32, 48), "w": (48, 24)}
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


@pytest.fixture
def samples(rng):
    mix = rng.standard_normal((32, 32)) * 0.9 ** np.arange(32)
    return [{"x": (rng.standard_normal((64, 32)) @ mix).astype(np.float32)} for _ in range(6)]


def two_layers(weights):
    return model(
        "main (float[n, 32] x) => (float[n, 24] y) <float[32, 48] v, float[48, 24] w>"
        "{ h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }",
        **weights,
    )


def run(m, x):
    with open_session(m, optimize=False) as session:
        return session.run({"x": x})["y"]


def apply(m, samples=None, **options):
    step = QuantizeWeights(accuracy_level=0, **options)
    step.requires(m)
    return step.call(m, Context(samples=samples))


def error(weights, samples, **options):
    exact = two_layers(weights)
    stored = two_layers(weights)
    apply(stored, samples, **options)
    gaps = [run(stored, s["x"]) - run(exact, s["x"]) for s in samples]
    return float(np.mean(np.square(gaps)))


@pytest.mark.parametrize("fmt", ["int3_channel", "int4_g16", "int3_g32_asym_f16", "int2_g16_asym"])
@pytest.mark.parametrize("solver", DATA_AWARE)
def test_data_aware_rounding_moves_the_output_less_than_nearest(solver, fmt, weights, samples):
    options = {"format": fmt} | ({"write": "matmul_nbits"} if fmt.startswith("int2") else {})
    plain = error(weights, samples, **options, search="mse")
    assert error(weights, samples, **options, solver=solver) < 0.8 * plain


def test_the_graph_computes_with_the_codes_of_the_solver(weights, samples):
    """The first layer's codes are those of the solver on E[x xᵀ], rebuilt here from the samples."""
    from onnxq.solvers.gptq import gptq
    from onnxq.solvers.statistics import Statistics

    m = two_layers(weights)
    report = apply(m, samples, format="int4_g16", solver="gptq", write="dequantize")
    x = np.concatenate([s["x"] for s in samples]).astype(np.float64)
    hessian = (x.T @ x / len(x)).astype(np.float32)
    statistics = Statistics(hessian=hessian, weight=len(x))
    fmt = parse_format("int4_g16")
    wanted = gptq(np.ascontiguousarray(weights["v"].T), fmt, statistics)
    stored = next(n for n in m.graph if n.op_type == "DequantizeLinear" and "v_" in n.name)
    codes = stored.inputs[0].const_value.numpy().astype(np.int8)
    assert np.mean(wanted["codes"] == codes.T) > 0.99  # sums in another order may move a code
    gap = fmt.decode(wanted) - weights["v"].T
    first = report.sites[0]
    expected = np.sqrt(np.mean((x @ gap.T) ** 2) / np.mean((x @ weights["v"]) ** 2))
    assert first.output_error == pytest.approx(expected, rel=0.02)
    assert first.solver == "gptq"


def test_gptaq_needs_the_asymmetric_flow_and_says_so(weights, samples):
    with pytest.raises(RecipeError, match="needs flow=asymmetric, not 'sequential'"):
        QuantizeWeights(solver="gptaq")
    options = {"format": "int2_g16_asym", "write": "matmul_nbits"}
    asymmetric = error(weights, samples, **options, solver="gptaq", flow="asymmetric")
    assert asymmetric < 1.05 * error(weights, samples, **options, solver="gptq")


def test_options_are_checked_before_any_work():
    with pytest.raises(RecipeError, match="There is no solver 'gtpq'; did you mean 'gptq'"):
        QuantizeWeights(solver="gtpq")
    with pytest.raises(RecipeError, match="has no option 'dampening'; did you mean 'damping'"):
        QuantizeWeights(solver="gptq", solver_options={"dampening": 0.1})
    with pytest.raises(RecipeError, match=r"Option damping = 'much' of solver 'gptq' is not valid"):
        QuantizeWeights(solver="gptq", solver_options={"damping": "much"})
    with pytest.raises(RecipeError, match="solver 'nearest' uses none"):
        QuantizeWeights(refit_scales=True)
    with pytest.raises(CalibrationError, match="token_weights is 'last'"):
        QuantizeWeights(solver="gptq", token_weights="last")


def test_without_data_the_solver_says_what_to_do(weights):
    with pytest.raises(
        CalibrationError, match=r"'gptq' needs calibration data.*set solver=nearest"
    ):
        apply(two_layers(weights), solver="gptq", format="int4_g16")
    assert QuantizeWeights(solver="gptq").needs_samples
    assert not QuantizeWeights().needs_samples


def test_data_free_sites_are_those_of_nearest(weights, samples):
    m, plain = two_layers(weights), two_layers(weights)
    options = {"format": "int4_g16", "search": "mse", "write": "dequantize"}
    report = apply(m, samples, **options, solver="gptq", data_free=("*_0",))
    apply(plain, **options)
    assert [site.solver for site in report.sites] == ["nearest", "gptq"]
    codes = [
        next(n for n in g.graph if n.op_type == "DequantizeLinear" and "v_" in n.name)
        .inputs[0]
        .const_value.numpy()
        for g in (m, plain)
    ]
    np.testing.assert_array_equal(codes[0], codes[1])


def test_refitted_scales_do_not_make_the_first_layer_worse(weights, samples):
    reports = [
        apply(two_layers(weights), samples, format="int3_g16", solver="gptq", refit_scales=refit)
        for refit in (False, True)
    ]
    before, after = (report.sites[0].output_error for report in reports)
    assert after < before


def test_a_site_in_a_body_is_rounded_to_nearest_with_a_note(rng):
    m = model(
        "main (float[n, 16] x, bool c) => (float[n, 16] y) <float[16, 16] w, float[16, 16] v>"
        "{ h = MatMul(x, w) y = If(c) <then_branch = a () => (float[n, 16] p) "
        "{ p = MatMul(h, v) }, else_branch = b () => (float[n, 16] q) { q = Identity(h) }> }",
        w=rng.standard_normal((16, 16)).astype(np.float32),
    )
    body = next(n for n in m.graph if n.op_type == "If").attributes["then_branch"].as_graph()
    inner = ir.Value(
        name="v2",
        shape=ir.Shape((16, 16)),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(rng.standard_normal((16, 16)).astype(np.float32), name="v2"),
    )
    m.graph.register_initializer(inner)
    body[0].replace_input_with(1, inner)
    body[0].name = "inner"
    samples = [
        {"x": rng.standard_normal((8, 16)).astype(np.float32), "c": np.array(True)}
        for _ in range(3)
    ]
    report = apply(m, samples, format="int4_g16", solver="gptq")
    by_solver = {site.solver: site for site in report.changed}
    assert set(by_solver) == {"gptq", "nearest"}
    assert "cannot be observed" in by_solver["nearest"].note


def test_groups_of_a_convolution_are_solved_each_on_its_own_channels(rng):
    kernel = rng.standard_normal((6, 2, 3, 3)).astype(np.float32)
    text = (
        "main (float[n, 4, 8, 8] x) => (float[n, 6, 6, 6] y) <float[6, 2, 3, 3] w>"
        "{ y = Conv<group=2>(x, w) }"
    )
    base = rng.standard_normal((1, 4, 8, 8)).cumsum(axis=3).astype(np.float32)
    samples = [
        {"x": base + 0.3 * rng.standard_normal(base.shape).astype(np.float32)} for _ in range(8)
    ]
    gaps = {}
    for solver in ("nearest", "gptq"):
        m = model(text, w=kernel)
        apply(m, samples, format="int3_channel", solver=solver, search="mse")
        gaps[solver] = np.mean(
            [(run(m, s["x"]) - run(model(text, w=kernel), s["x"])) ** 2 for s in samples]
        )
    assert gaps["gptq"] < 0.8 * gaps["nearest"]


def test_scales_in_float16_are_stored_so_and_computed_with(weights, rng):
    m = model(
        "main (float[n, 32] x) => (float[n, 48] y) <float[32, 48] v> { y = MatMul(x, v) }",
        v=weights["v"],
    )
    report = apply(m, format="int4_g16_asym_f16", write="dequantize")
    assert report.sites[0].bits == pytest.approx(4 + (16 + 4) / 16)
    fmt = parse_format("int4_g16_asym_f16")
    decoded = fmt.decode(fmt.encode(np.ascontiguousarray(weights["v"].T)))
    x = rng.standard_normal((5, 32)).astype(np.float32)
    np.testing.assert_allclose(run(m, x), x @ decoded.T, atol=2e-5)


def test_block_operators_do_not_take_scales_through_a_cast(weights):
    m = model(
        "main (float[n, 32] x) => (float[n, 48] y) <float[32, 48] v> { y = MatMul(x, v) }",
        v=weights["v"],
    )
    (left,) = apply(m, format="int4_g16_f16", write="matmul_nbits").left
    assert "float16 scales, and the operator takes those of the model's type" in left.reason
    apply(m, format="int4_g16_f16")
    assert [node.op_type for node in m.graph] == ["Cast", "DequantizeLinear", "MatMul"]


@pytest.mark.parametrize("name", ["int4_gptq", "int3_gptq", "int2_gptq", "int4_gptaq", "int4_cd"])
def test_presets_with_solvers_ask_for_data(name):
    assert name in preset_names()
    assert load_recipe(name).needs_samples


def test_samples_carry_token_weights_to_the_solver_only(tmp_path, rng):
    """Rows of weight 0 do not count: the codes are those of the samples without them."""
    import onnxq

    m = model(
        "main (float[b, t, 16] x) => (float[b, t, 24] y) <float[16, 24] w> { y = MatMul(x, w) }",
        w=rng.standard_normal((16, 24)).astype(np.float32),
    )
    x = rng.standard_normal((8, 1, 20, 16)).astype(np.float32)
    x[:, :, 10:, :8] *= 30
    counts = np.repeat([[1.0, 0.0]], 10, axis=1).reshape(1, 20, order="F")
    weighted = [{"x": sample, "token_weights": counts} for sample in x]
    settings = [
        "quantize_weights.format=int3_channel",
        "quantize_weights.token_weights=given",
    ]
    done = onnxq.quantize(m, "int4_gptq", data=weighted, set=settings, out=tmp_path / "a")
    short = onnxq.quantize(
        m, "int4_gptq", data=[{"x": sample[:, :10]} for sample in x], set=settings[:1]
    )
    plain = [{"x": sample} for sample in x]
    unweighted = onnxq.quantize(m, "int4_gptq", data=plain, set=settings[:1])
    errors = [q.quantized_sites[0].output_error for q in (done, short, unweighted)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)  # H differs by rounding, codes by a few
    assert errors[2] != pytest.approx(errors[1], rel=0.05)
    with pytest.raises(CalibrationError, match="'token_weights', which is no input"):
        onnxq.quantize(m, "int4_gptq", data=weighted, set=settings[:1])


@pytest.mark.parametrize("node", ["Gemm", "MatMul", "Conv"])
def test_the_mean_of_the_error_goes_into_the_bias(node, rng):
    """On the calibration data the mean output of every channel is that of the float model."""
    bias = rng.standard_normal(12).astype(np.float32)
    if node == "Conv":
        w = rng.standard_normal((12, 4, 3, 3)).astype(np.float32)
        text = (
            "main (float[n, 8, 6, 6] x) => (float[n, 12, 4, 4] y) <float[12, 4, 3, 3] w, "
            "float[12] b> { y = Conv<group=2>(x, w, b) }"
        )
        shape, axes = (3, 8, 6, 6), (0, 2, 3)
    else:
        w = rng.standard_normal((16, 12)).astype(np.float32)
        body = {
            "Gemm": "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)",
            "MatMul": "h = MatMul(x, w) y = Add(h, b)",
        }[node]
        text = (
            f"main (float[n, 16] x) => (float[n, 12] y) <float[16, 12] w, float[12] b> {{{body}}}"
        )
        shape, axes = (20, 16), (0,)
    samples = [{"x": (rng.random(shape) + 1).astype(np.float32)} for _ in range(4)]
    means = {}
    for corrected in (False, True):
        m = model(text, w=w, b=bias)
        apply(
            m, samples, format="int3_channel", solver="gptq", correct_bias=corrected, search="mse"
        )
        gaps = [run(m, s["x"]) - run(model(text, w=w, b=bias), s["x"]) for s in samples]
        means[corrected] = np.abs(np.mean(gaps, axis=(0, *(axis + 1 for axis in axes)))).max()
    assert means[True] < 1e-4 < 1e-2 < means[False]


def loud(samples):
    """The samples with two input channels ten times as loud."""
    scale = np.ones(32, np.float32)
    scale[[3, 20]] = 10.0
    return [{"x": s["x"] * scale} for s in samples]


@pytest.mark.parametrize("write", ["dequantize", "matmul_nbits"])
@pytest.mark.parametrize("solver", DATA_AWARE)
def test_columns_kept_in_float_take_the_outliers(solver, write, weights, samples):
    samples = loud(samples)
    options = {"format": "int2_g16_asym", "write": write, "solver": solver}
    if write == "dequantize":
        options["format"] = "int4_g16_asym"
    assert error(weights, samples, **options, keep_columns=4) < 0.8 * error(
        weights, samples, **options
    )


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_kept_columns_of_a_gemm_at_a_graph_output(weights, samples, alpha):
    """The report's error is that of the graph: correction, bias and alpha in their places."""
    m = model(
        "main (float[n, 32] x) => (float[n, 24] y) <float[24, 32] v, float[24] b>"
        f"{{ y = Gemm<transB=1, alpha={alpha}>(x, v, b) }}",
        v=np.ascontiguousarray(weights["w"].T[:, :32]),
        b=np.linspace(-1, 1, 24, dtype=np.float32),
    )
    x = np.concatenate([s["x"] for s in samples])
    exact = run(m, x)
    report = apply(m, samples, format="int2_g16_asym", solver="gptq", keep_columns=3)
    assert m.graph.outputs[0].name == "y"
    site = report.sites[0]
    assert site.note == "3 columns kept in float"
    signal = np.mean((exact - np.linspace(-1, 1, 24)) ** 2)
    assert site.output_error == pytest.approx(
        np.sqrt(np.mean((run(m, x) - exact) ** 2) / signal), rel=0.01
    )
    codes, scales, zeros = 24 * 32 // 4, 24 * 2 * 4, 24  # zero points: two of 2 bits in a byte
    assert site.nbytes == codes + scales + zeros + 3 * 24 * 4 + 3 * 8
    assert site.bits == pytest.approx(8 * site.nbytes / (24 * 32))


def test_sites_without_room_for_kept_columns_say_why(weights, samples):
    report = apply(two_layers(weights), samples, solver="gptq", format="int4_g16", keep_columns=32)
    first, second = report.sites
    assert first.note == "no columns kept: it has 32 columns, not more than the 32 to keep"
    assert second.note == "32 columns kept in float"
    with pytest.raises(RecipeError, match="a solver that needs no drift, such as gptq"):
        QuantizeWeights(solver="gptaq", flow="asymmetric", keep_columns=4)
    with pytest.raises(RecipeError, match="solver 'nearest' uses none"):
        QuantizeWeights(keep_columns=4)


def test_tiles_of_shared_scales_are_left_with_the_reason(weights):
    report = apply(two_layers(weights), format="int8_b4x4")
    assert "shares a scale among rows, and DequantizeLinear has one for each" in (
        report.sites[0].reason
    )
