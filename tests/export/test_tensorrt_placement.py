"""`insert_qdq` for TensorRT keeps its rules; take any pair away or skew it, and one breaks."""

import functools

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.export.tensorrt_reading import Reading
from onnxq.export.tensorrt_rules import find_violations
from onnxq.export.to_tensorrt import TensorRt, TensorRtRtx
from onnxq.graph import find_sites, save
from onnxq.graph.stage import clone_model
from onnxq.passes.base import Context
from onnxq.passes.calibrate import Calibrate
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.quantize_weights import QuantizeWeights
from tests.export.tensorrt_graphs import F4, F8, I4, codes, graph, normal, steps

IMAGE = "(float[1, 8, 8, 8] x) => (float[n, c, h, k] y)"
TOKENS = "(float[2, 6, 32] x) => (float[a, b, c] y)"
PADS = "<pads = [1, 1, 1, 1]>"
GRAPHS = {
    "chain": (f"a = Conv{PADS}(x, w1, b1) r = Relu(a) y = Conv{PADS}(r, w2)", IMAGE),
    "depthwise": (
        f"a = Conv{PADS}(x, w1) r = Clip(a, zero, six)"
        " y = Conv<group = 8, pads = [1, 1, 1, 1]>(r, wd)",
        IMAGE,
    ),
    "transposed": (f"a = Conv{PADS}(x, w1) r = Relu(a) y = ConvTranspose{PADS}(r, wt, b1)", IMAGE),
    "identity": (
        f"r = Relu(x) a = Conv{PADS}(r, w1) s = Relu(a) c = Conv{PADS}(s, w2)"
        f" m = Add(c, r) t = Relu(m) y = Conv{PADS}(t, w1)",
        IMAGE,
    ),
    "two branches": (
        f"r = Relu(x) a = Conv{PADS}(r, w1) b = Conv{PADS}(r, w2) m = Add(a, b) t = Relu(m)"
        f" y = Conv{PADS}(t, w1)",
        IMAGE,
    ),
    "float skip": (f"a = Conv{PADS}(x, w1) s = Sigmoid(x) m = Add(s, a) y = Relu(m)", IMAGE),
    "concat": (
        f"a = Conv{PADS}(x, w1) r = Relu(a) b = Conv{PADS}(r, w2) s = Relu(b)"
        " m = Concat<axis = 1>(r, s) y = Conv(m, wc)",
        IMAGE,
    ),
    "pools": (
        f"a = Conv{PADS}(x, w1) r = Relu(a) p = MaxPool<kernel_shape = [2, 2]>(r)"
        f" q = AveragePool<kernel_shape = [2, 2]>(p) b = Conv{PADS}(q, w2)"
        " y = GlobalAveragePool(b)",
        IMAGE,
    ),
    "softmax": ("a = MatMul(x, m1) b = Add(a, b2) s = Softmax(b) y = MatMul(s, m2)", TOKENS),
    "norm": (
        "a = MatMul(x, m1) b = Add(a, x2) n = LayerNormalization(a, g) c = MatMul(n, m2)"
        " y = Add(c, a)",
        TOKENS,
    ),
    "attention": (
        "q = MatMul(x, m1) k = MatMul(x, m2) v = MatMul(x, m1)"
        " kt = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, kt) p = Softmax(s) o = MatMul(p, v)"
        " y = MatMul(o, m2)",
        TOKENS,
    ),
    "gemm": (
        "f = Flatten<axis = 2>(x) a = Gemm<transB = 1, alpha = 0.5>(f, m1, b2) r = Relu(a)"
        " y = Gemm(r, m2)",
        "(float[2, 6, 32] x) => (float[a, b] y)",
    ),
}


def weights(text):
    every = {
        "w1": normal(8, 8, 3, 3),
        "w2": normal(8, 8, 3, 3),
        "wd": normal(8, 1, 3, 3),
        "wt": normal(8, 8, 3, 3),
        "wc": normal(8, 16, 1, 1),
        "b1": normal(8),
        "b2": normal(32),
        "m1": normal(32, 32),
        "m2": normal(32, 32),
        "x2": normal(1, 6, 32),
        "g": normal(32),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: array for name, array in every.items() if name in words}


def quantized(name):
    return clone_model(once_quantized(name))


@functools.cache
def once_quantized(name):
    text, head = GRAPHS[name]
    model = graph(f"{head} {{ {text} }}", **weights(text))
    shape = tuple(model.graph.inputs[0].shape)
    data = Context(samples=[{"x": normal(*shape)} for _ in range(3)])
    Calibrate().call(model, data)
    step = InsertQdq(target="tensorrt", min_output_db=0.0, activation_matmuls=name == "attention")
    step.requires(model)
    assert step.call(model, data).modified
    return model


def rules(model, runtime="tensorrt"):
    return [violation.rule.name for violation in find_violations(Reading(model, runtime))]


def pairs(model):
    """Names of the QuantizeLinear nodes of activations."""
    return [node.name for node in model.graph if node.op_type == "QuantizeLinear"]


def node_of(model, name):
    return next(node for node in model.graph if node.name == name)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_rule_is_broken_and_every_product_is_an_integer_kernel(name):
    model = quantized(name)
    for runtime in ("tensorrt", "tensorrt-rtx"):
        assert rules(model, runtime) == []
    verdicts = TensorRt().check(model)
    assert verdicts.is_clean
    kinds = {verdict.execution.value for verdict in verdicts.sites}
    assert kinds == {"integer kernel"} and len(verdicts.sites) == len(find_sites(model))


@pytest.mark.parametrize("name", GRAPHS)
def test_each_pair_is_needed(name):
    """Without one of its pairs a site computes in float, or a skip branch is not fused."""
    model = quantized(name)
    assert pairs(model)
    for pair in pairs(model):
        copy = clone_model(model)
        q = node_of(copy, pair)
        (dq,) = {use.node for use in q.outputs[0].uses()}
        dq.outputs[0].replace_all_uses_with(q.inputs[0])
        copy.graph.remove([dq, q], safe=True)
        found = rules(copy)
        assert found and set(found) <= {"both-inputs", "residual"}
        told = TensorRt().check(copy)
        assert not told.is_clean
        assert {v.rule for v in (*told.sites, *told.wasted)} & set(found) == set(found)


@pytest.mark.parametrize("name", GRAPHS)
def test_each_zero_point_is_needed(name):
    model = quantized(name)
    for pair in pairs(model):
        copy = clone_model(model)
        zero = node_of(copy, pair).inputs[2]
        zero.const_value = ir.tensor(np.int8(1), name=zero.name)
        assert any(v.rule == "symmetric" for v in TensorRt().check(copy).sites)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_tensorrt_rtx_runs_them_as_said(name, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    target = TensorRtRtx(capabilities=(89,))
    (built,) = target.build(save(quantized(name), tmp_path / "m.onnx"), tmp_path).values()
    assert built["unlike"] == {}
    assert set(built["products"]) == {"integer kernel"}


@pytest.mark.parametrize("fmt", ["int4_g64_pos", "int4_g128_pos"])
def test_weights_in_four_bits_are_written_as_it_reads_them(fmt):
    text = "a = MatMul(x, w) r = Relu(a) y = Gemm<transB = 1>(r, v)"
    model = graph(
        f"(float[4, 256] x) => (float[4, 64] y) {{ {text} }}",
        w=normal(256, 128),
        v=normal(64, 128),
    )
    assert QuantizeWeights(format=fmt, write="dequantize").call(model, Context()).modified
    assert rules(model) == [] and rules(model, "tensorrt-rtx") == (
        [] if "64" in fmt else ["int4-blocks"]
    )
    kernels = [verdict.kernel for verdict in TensorRt().check(model).sites]
    assert kernels == ["INT4 weight-only GEMM"] * 2


def test_scales_below_zero_are_told_by_name():
    model = graph("(float[4, 256] x) => (float[4, 64] y) { y = MatMul(x, w) }", w=normal(256, 64))
    QuantizeWeights(format="int4_g64", write="dequantize").call(model, Context())
    assert "scale-positive" in rules(model)


def stored(dtype, scales, attributes, *, rounded=False, outer=False):
    """x [8, 512] · W [512, 256]: weights in codes, activations in float or rounded alike."""
    given = {"c": codes(512, 256, dtype=dtype, most=6)}
    text = ""
    if rounded:
        given |= {"s": np.float32(0.02), "z": np.zeros((), dtype)}
        text += "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) "
    if outer:
        given |= {"i": np.ones(scales, F8), "o": np.float32(0.01)}
        text += "t = DequantizeLinear(i, o) "
    else:
        given["t"] = steps(*scales)
    text += f"w = DequantizeLinear{attributes}(c, t) y = MatMul({'xd' if rounded else 'x'}, w)"
    return graph(f"(float[8, 512] x) => (float[8, 256] y) {{ {text} }}", 23, **given)


def blocks(size, axis=0):
    shape = (512 // size, 256) if axis == 0 else (512, 256 // size)
    return shape, f"<axis = {axis}, block_size = {size}>"


CHANNELS = ((256,), "<axis = 1>")
STORED = {
    "int4 blocks of 8": (lambda: stored(I4, *blocks(8)), "low-bit kernel"),
    "int4 blocks of 256": (lambda: stored(I4, *blocks(256)), "low-bit kernel"),
    "int4 blocks of outputs": (lambda: stored(I4, *blocks(64, 1)), "low-bit kernel"),
    "int4 channels": (lambda: stored(I4, *CHANNELS), "float"),
    "int8 channels": (lambda: stored(np.int8, *CHANNELS), "low-bit kernel"),
    "int8 blocks": (lambda: stored(np.int8, *blocks(64)), "float"),
    "int8 both": (lambda: stored(np.int8, *CHANNELS, rounded=True), "integer kernel"),
    "fp8 channels": (lambda: stored(F8, *CHANNELS), "low-bit kernel"),
    "fp8 blocks": (lambda: stored(F8, *blocks(64)), "float"),
    "fp8 both": (lambda: stored(F8, *CHANNELS, rounded=True), "low-bit kernel"),
    "fp4 alone": (lambda: stored(F4, *blocks(16), outer=True), "float"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_stored_weights_run_as_the_check_says(name, tmp_path):
    """What docs/targets/tensorrt.md says of weights, as the engine shows it."""
    pytest.importorskip("tensorrt_rtx")
    make, execution = STORED[name]
    target = TensorRtRtx(capabilities=(120,))
    (built,) = target.build(save(make(), tmp_path / "m.onnx"), tmp_path).values()
    assert built["products"] == {execution: 1} and built["unlike"] == {}
