"""Rounded activations: codes against NumPy, bounds per row, who shares what, and what is left."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnxq.calibration.site_statistics import walk_sites
from onnxq.errors import CalibrationError, RecipeError, UnsupportedGraph
from onnxq.graph import find_sites, save, walk_nodes
from onnxq.graph.check import check_graph
from onnxq.graph.topology import Topology
from onnxq.passes.base import Context
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import open_session

TINY = np.finfo(np.float32).tiny
RNG = np.random.default_rng(4)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def eye(build, size=8, kind="float", dtype=np.float32, opset=21):
    """y = x · 1, whose output is the rounded activation itself."""
    text = f"main ({kind}[n, s, {size}] x) => ({kind}[n, s, {size}] y) {{ y = MatMul(x, w) }}"
    return build(text, opset=opset, w=np.eye(size, dtype=dtype))


def apply(model, samples=None, **options):
    step = QuantizeActivations(**options)
    step.requires(model)
    report = step.call(model, Context(samples=samples))
    check_graph(model)
    return report


def run(model, optimize=True, **feeds):
    with open_session(model, optimize=optimize) as session:
        return session.run(feeds)


def symmetric(x, bits, clip=1.0):
    """Codes and scales per row, each step in float32 as the function states it."""
    limit = np.float32(2 ** (bits - 1) - 1)
    peak = np.abs(x).max(axis=-1, keepdims=True)
    scale = np.maximum(peak * np.float32(clip) / limit, TINY)
    return np.clip(np.rint(x / scale), -limit, limit), scale


def asymmetric(x, bits, clip=1.0):
    """Codes, scales and zero points per row."""
    limit = np.float32(2**bits - 1)
    share = np.float32(clip)
    above = np.maximum(x.max(axis=-1, keepdims=True), 0)
    below = np.minimum(x.min(axis=-1, keepdims=True), 0)
    scale = np.maximum(above * share / limit - below * share / limit, TINY)
    zero = -np.rint(below * share / scale)
    return np.clip(np.rint(x / scale) + zero, 0, limit), scale, zero


def spread(seed, rows=4, size=8):
    """Rows of very different sizes, one of them zero."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((1, rows, size)) * 10.0 ** random.integers(-6, 6, (1, rows, 1))
    x[0, 0] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("clip", [1.0, 0.9])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_rounding_is_numpys_bit_for_bit(build, bits, clip, optimize):
    m = eye(build)
    assert len(apply(m, bits=bits, clip=clip).changed) == 1
    for seed in range(5):
        x = spread(seed)
        codes, scale = symmetric(x, bits, clip)
        np.testing.assert_array_equal(run(m, optimize, x=x)["y"], codes * scale)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_rounding_is_numpys_bit_for_bit(build, bits):
    m = eye(build)
    apply(m, bits=bits, symmetric=False, clip=0.95)
    for seed in range(5):
        x = spread(seed) + np.float32(0.5)
        codes, scale, zero = asymmetric(x, bits, 0.95)
        np.testing.assert_array_equal(run(m, x=x)["y"], (codes - zero) * scale)


def test_codes_are_those_of_float64_but_for_ties(build):
    """x / s in float32 is off by half an ulp: a code may differ where 2^-17 lies to a tie."""
    m = eye(build, size=256)
    apply(m, bits=8)
    x = normal(1, 64, 256)
    scale = symmetric(x, 8)[1]
    exact = x.astype(np.float64) / scale
    codes = np.rint(run(m, x=x)["y"].astype(np.float64) / scale)
    from_tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
    assert (from_tie > 2.0**-17).mean() > 0.999
    np.testing.assert_array_equal(codes[from_tie > 2.0**-17], np.rint(exact)[from_tie > 2.0**-17])


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_value_moves_more_than_half_a_step(build, bits, is_symmetric):
    m = eye(build)
    apply(m, bits=bits, symmetric=is_symmetric)
    with open_session(m) as session:
        for seed in range(20):
            x = spread(seed, rows=9)
            scale = symmetric(x, bits)[1] if is_symmetric else asymmetric(x, bits)[1]
            error = np.abs(session.run({"x": x})["y"].astype(np.float64) - x)
            assert np.all(error <= scale * (0.5 + 2.0**-15))


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_a_row_twice_as_large_has_the_same_codes(build, is_symmetric):
    m = eye(build)
    apply(m, bits=4, symmetric=is_symmetric)
    x = spread(3)
    np.testing.assert_array_equal(run(m, x=2 * x)["y"], 2 * run(m, x=x)["y"])


def test_a_row_does_not_depend_on_the_others(build):
    m = eye(build)
    apply(m, bits=4)
    x = spread(5, rows=6)
    whole = run(m, x=x)["y"]
    for row in range(6):
        np.testing.assert_array_equal(run(m, x=x[:, row : row + 1])["y"][0, 0], whole[0, row])


def test_zeros_and_subnormal_numbers_stay_finite(build):
    m = eye(build)
    apply(m, bits=8)
    x = np.full((1, 2, 8), 1e-44, np.float32)
    x[0, 0] = 0
    y = run(m, x=x)["y"]
    np.testing.assert_array_equal(y[0, 0], 0)
    assert np.isfinite(y).all() and np.abs(y - x).max() <= TINY


def test_float16_is_rounded_in_float32(build):
    """60000 / 127 and its square are no problem where float16 would overflow or lose bits."""
    m = eye(build, kind="float16", dtype=np.float16)
    apply(m, bits=8)
    x = (spread(7) * 1e-2).astype(np.float16)
    x[0, 1] = [60000, -60000, 1, 2, 300, 472, 473, 1000]
    x[0, 2] = np.float16(6e-8)
    codes, scale = symmetric(x.astype(np.float32), 8)
    np.testing.assert_array_equal(run(m, x=x)["y"], (codes * scale).astype(np.float16))


SIBLINGS = """main (float[n, 8] x) => (float[n, 4] y, float[n, 4] z, float[n, 8] r)
    { y = MatMul(x, w) z = MatMul(x, v) r = Relu(x) }"""


def test_sites_that_read_a_value_share_one_rounding_and_others_keep_it(build, kinds):
    m = build(SIBLINGS, w=normal(8, 4), v=normal(8, 4))
    report = apply(m, bits=4)
    assert len(report.changed) == 2
    assert kinds(m).count("DynamicFakeQuantize") == 1
    x = normal(3, 8)
    np.testing.assert_array_equal(run(m, x=x)["r"], np.maximum(x, 0))
    topology = Topology(m)
    assert topology.siblings(topology.sites[0]) == (topology.sites[1],)


def test_overrides_give_a_site_its_own_bits(build, kinds):
    m = build(SIBLINGS, w=normal(8, 4), v=normal(8, 4))
    report = apply(m, bits=4, overrides={"MatMul_1": 8})
    assert [site.format for site in report.changed] == ["a4_token", "a8_token"]
    assert kinds(m).count("DynamicFakeQuantize") == 2


def test_the_report_says_that_it_is_simulated(build):
    report = apply(eye(build))
    assert "the product is computed in float" in report.changed[0].note


def test_a_second_application_finds_nothing(build):
    m = eye(build)
    apply(m)
    report = apply(m)
    assert not report.modified
    assert report.left[0].reason == "its activation is quantized already"


@pytest.mark.parametrize(
    ("flips", "axis"), [("alpha = 1.0", -1), ("transA = 1", 0), ("transB = 1", -1)]
)
def test_gemm_gets_a_scale_for_each_row_of_the_product(build, flips, axis):
    shape = (5, 8) if axis == -1 else (8, 5)
    m = build(
        f"main (float[a, b] x) => (float[5, 8] y) {{ y = Gemm<{flips}>(x, w) }}",
        w=np.eye(8, dtype=np.float32),
    )
    apply(m, bits=4)
    x = normal(*shape)
    codes, scale = symmetric(x if axis == -1 else x.T, 4)
    np.testing.assert_array_equal(run(m, x=x)["y"], codes * scale)


def test_a_weight_on_the_left_sums_over_the_rows(build):
    m = build(
        "main (float[n, 8, s] x) => (float[n, 8, s] y) { y = MatMul(w, x) }",
        w=np.eye(8, dtype=np.float32),
    )
    apply(m, bits=4)
    x = normal(2, 8, 3)
    codes, scale = symmetric(np.moveaxis(x, 1, -1), 4)
    np.testing.assert_array_equal(run(m, x=x)["y"], np.moveaxis(codes * scale, -1, 1))


def test_a_convolution_gets_a_scale_for_each_sample(build):
    m = build(
        "main (float[n, 3, h, v] x) => (float[n, 3, h, v] y) { y = Conv(x, w) }",
        w=np.eye(3, dtype=np.float32)[:, :, None, None],
    )
    apply(m, bits=4)
    x = normal(2, 3, 4, 5) * np.float32([1, 100])[:, None, None, None]
    codes, scale = symmetric(x.reshape(2, -1), 4)
    np.testing.assert_array_equal(run(m, x=x)["y"], (codes * scale).reshape(x.shape))


def test_bodies_share_the_rounding_of_an_outer_value(build):
    m = build(
        "main (float[3, 8] x, bool c) => (float[3, 8] z)"
        " { z = If(c) <then_branch = t () => (float[3, 8] p) { p = MatMul(x, w) },"
        " else_branch = e () => (float[3, 8] q) { r = MatMul(x, w) s = Relu(r)"
        " q = MatMul(s, w) }> }",
        w=np.eye(8, dtype=np.float32),
    )
    assert len(apply(m, bits=4).changed) == 3
    assert [node.op_type for node in m.graph] == ["DynamicFakeQuantize", "If"]
    x = normal(3, 8)
    codes, scale = symmetric(x, 4)
    once = codes * scale
    np.testing.assert_array_equal(run(m, x=x, c=np.array(True))["z"], once)
    codes, scale = symmetric(np.maximum(once, 0), 4)
    np.testing.assert_array_equal(run(m, x=x, c=np.array(False))["z"], codes * scale)


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_static_ranges_round_to_the_calibrated_grid(build, bits, is_symmetric):
    m = eye(build)
    samples = [{"x": normal(1, 4, 8)} for _ in range(3)]
    report = apply(m, samples, bits=bits, granularity="tensor", symmetric=is_symmetric)
    assert report.changed[0].format == f"a{bits}_tensor"
    seen = np.stack([sample["x"] for sample in samples])
    if is_symmetric:
        top, bottom = 2 ** (bits - 1) - 1, -(2 ** (bits - 1)) + (bits not in (4, 8))
        scale, zero = np.float32(np.abs(seen).max() / top), 0
    else:
        top, bottom = 2**bits - 1, 0
        scale = np.float32((float(seen.max()) - float(seen.min())) / top)
        zero = round(-float(seen.min()) / float(scale))
    x = normal(1, 4, 8) * 3
    want = (np.clip(np.rint(x / scale) + zero, bottom, top) - zero) * scale
    np.testing.assert_array_equal(run(m, False, x=x)["y"], want.astype(np.float32))
    assert not apply(m, samples, granularity="tensor").modified


def test_statistics_are_those_of_rounded_activations(build):
    """GPTQ's H = E[x xᵀ] is of what the site is given, which is on the grid."""
    m = build("main (float[n, 8] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=normal(8, 4))
    apply(m, bits=4)
    x = normal(6, 8)
    seen = []
    walk_sites(m, [{"x": x}], find_sites(m), lambda _, s: seen.append(s[0].hessian))
    codes, scale = symmetric(x, 4)
    rounded = (codes * scale).astype(np.float64)
    np.testing.assert_allclose(seen[0], rounded.T @ rounded / 6, rtol=1e-5)


def test_what_is_left_alone_says_why(build):
    m = build(
        "main (int64[n] i, float[n, 8] x, float[8, 4] c) => (float[n, 8] e, float[n, 4] y,"
        " float[n, 4] z) { e = Gather(t, i) y = MatMul(x, c) z = MatMul(x, w) }",
        t=normal(5, 8),
        w=normal(8, 4),
    )
    report = apply(m, exclude=("MatMul_2",))
    reasons = {site.site: site.reason for site in report.left}
    assert "looks up rows" in reasons["Gather_0"]
    assert reasons["MatMul_2"] == "the recipe leaves it in float"
    assert not report.modified


def test_sites_in_functions_are_left(build):
    m = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'
        " main (float[3, 2] x) => (float[3, 2] y) { y = local.f(x) }"
        ' <domain: "local", opset_import: ["" : 21]> f (a) => (b)'
        " { w = Constant<value = float[2, 2] {1., 0., 0., 1.}>() b = MatMul(a, w) }"
    )
    for _, node in walk_nodes(m):
        node.name = node.op_type
    assert "inline functions first" in apply(m).left[0].reason


def test_refusals_say_what_to_do(build):
    with pytest.raises(RecipeError, match="whole numbers from 2 to 8"):
        QuantizeActivations(bits=16)
    with pytest.raises(RecipeError, match=r"'token' .* or 'tensor'"):
        QuantizeActivations(granularity="channel")
    with pytest.raises(RecipeError, match=r"share of a token's range that is kept, in \(0, 1\]"):
        QuantizeActivations(clip=0.0)
    with pytest.raises(RecipeError, match="set observer=percentile"):
        QuantizeActivations(clip=0.9, granularity="tensor")
    with pytest.raises(UnsupportedGraph, match="convert_opset with minimum=18"):
        apply(eye(build, opset=17))
    with pytest.raises(CalibrationError, match="or set granularity=token"):
        apply(eye(build), granularity="tensor")


def test_options_come_back_as_the_pass():
    step = QuantizeActivations(bits=4, overrides={"*down*": 8}, exclude=("head",))
    assert QuantizeActivations(**step.options()) == step
    assert dataclasses.is_dataclass(step)


def two_layers(build):
    return build(
        "main (float[n, 64] x) => (float[n, 16] y) { h = MatMul(x, w) y = MatMul(h, v) }",
        w=normal(64, 32),
        v=normal(32, 16),
    )


def test_weights_behind_a_rounded_activation_do_not_round_it_again(build):
    """MatMulNBits at accuracy_level 4 would round to 8 bits by blocks, on steps of its own."""
    m = two_layers(build)
    apply(m, bits=4, exclude=("MatMul_1",))
    step = QuantizeWeights(format="int4_g32", write="matmul_nbits")
    step.call(m, Context())
    first, second = (node for node in m.graph if node.op_type == "MatMulNBits")
    assert first.attributes.get_int("accuracy_level") == 0
    assert second.attributes.get_int("accuracy_level") == 4
    x = normal(3, 64)
    exact = run(m, False, x=x)["y"]
    np.testing.assert_allclose(run(m, x=x)["y"], exact, atol=1e-5 * np.abs(exact).max())


def test_blocks_behind_dequantize_linear_say_that_the_runtime_rounds_again(build):
    m = two_layers(build)
    apply(m, bits=4, exclude=("MatMul_1",))
    report = QuantizeWeights(format="int4_g32", write="dequantize").call(m, Context())
    first, second = report.changed
    assert "write=auto avoids that" in first.note and second.note is None


def test_a_runtime_that_knows_no_onnxq_runs_it(build, tmp_path):
    m = eye(build)
    apply(m, bits=4)
    path = save(m, tmp_path / "m.onnx")
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = spread(11)
    codes, scale = symmetric(x, 4)
    np.testing.assert_array_equal(plain.run(None, {"x": x})[0], codes * scale)
