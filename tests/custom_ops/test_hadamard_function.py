"""The operator in a model: its function, its kernel in ONNX Runtime and NumPy say the same."""

import importlib.resources
import threading

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import onnxq
from onnxq.custom_ops.hadamard import hadamard_node, hadamard_reference, is_hadamard
from onnxq.errors import OnnxqError, UnsupportedGraph
from onnxq.graph import load, save
from onnxq.graph.check import check_graph
from onnxq.graph.sites import find_sites
from onnxq.graph.stage import clone_model
from onnxq.numerics import _native
from onnxq.numerics.hadamard import core_matrix, factor_size, fast_apply
from onnxq.passes.base import Context, Promise
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.inline_functions import InlineFunctions
from onnxq.runtime import open_session, operators

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def network(shape, *sizes, dtype=FLOAT, opset=21):
    """x rotated by each size in turn."""
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(dtype))
    model = ir.Model(
        ir.Graph([x], [], nodes=[], opset_imports={"": opset}, name="g"), ir_version=10
    )
    value = x
    for index, size in enumerate(sizes):
        node = hadamard_node(model, value, size, name=f"rotate_{index}")
        model.graph.append(node)
        value = node.outputs[0]
    model.graph.outputs.append(value)
    return model


def draw(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def run(model, x, **options):
    with open_session(model, **options) as session:
        (result,) = session.run({"x": x}).values()
    return result


def kernel_bits(x, size):
    """What the best native kernel gives on the rows of x."""
    factors = factor_size(size)
    core = (core_matrix(factors) / np.sqrt(factors.core)).astype(np.float32)
    rows = np.ascontiguousarray(x.reshape(-1, size))
    y = np.empty_like(rows)
    _native.hadamard_rows(rows, core, y, 0, len(rows), "", 1)
    return y.reshape(x.shape)


SIZES = [1, 2, 12, 18, 36, 64, 96, 384, 576, 960, 1536, 3072]


@pytest.mark.parametrize("size", SIZES)
def test_function_kernel_and_numpy_agree(size):
    x = draw(2, 3, 2 * size)  # two runs of the size along the last axis
    factors = factor_size(size)
    core = core_matrix(factors) / np.sqrt(factors.core)
    wanted = fast_apply(x.astype(np.float64), size)
    assert np.allclose(hadamard_reference(x, core, size), wanted, rtol=0, atol=1e-12)
    length = np.linalg.norm(x.reshape(-1, size).astype(np.float64), axis=1).max()
    # two products of at most n terms with matrices of ‖ |A| ‖ ≤ √n, and three rounded constants
    depth = factors.core * max(factors.core, 16) + size**0.5 + 8
    bound = 2.0**-24 * depth * length
    model = network(["b", "s", 2 * size], size)
    by_kernel = run(model, x)
    assert np.array_equal(by_kernel, kernel_bits(x, size))
    for optimize in (False, True):
        by_function = run(model, x, custom_ops=False, optimize=optimize)
        assert np.abs(by_function - wanted).max() <= bound
    assert np.abs(by_kernel - wanted).max() <= bound


def test_the_switch_decides_which_of_both_runs(monkeypatch):
    model, x = network(["n", 1536], 1536), draw(40, 1536)
    kernel, function = kernel_bits(x, 1536), run(model, x, custom_ops=False)
    assert (kernel != function).any()  # they round otherwise: the test sees which ran
    assert np.array_equal(run(model, x), kernel)
    monkeypatch.setenv("ONNXQ_CUSTOM_OPS", "0")
    assert np.array_equal(run(model, x), function)
    assert np.array_equal(run(model, x, custom_ops=True), kernel)
    monkeypatch.setattr(operators, "_library", lambda: None)
    assert np.array_equal(run(model, x, custom_ops=True), function)


def test_the_function_is_plain_onnx():
    for size in (12, 64, 18):
        model, x = network(["n", size], size), draw(4, size)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        (result,) = ReferenceEvaluator(proto).run(None, {"x": x})
        assert np.abs(result - fast_apply(x.astype(np.float64))).max() < 1e-6


@pytest.mark.parametrize("size", [12, 64, 1536])
def test_float16_is_rounded_once_by_the_kernel(size):
    model = network(["n", size], size, dtype=HALF)
    x = draw(5, size, dtype=np.float16)
    by_kernel, by_function = run(model, x), run(model, x, custom_ops=False)
    assert by_kernel.dtype == by_function.dtype == np.float16
    factors = factor_size(size)
    core = (core_matrix(factors) / np.sqrt(factors.core)).astype(np.float16)
    wanted = hadamard_reference(x, core, size)
    half = 2.0**-11 * np.maximum(np.abs(wanted), 2.0**-14)
    assert (np.abs(by_kernel - wanted) <= half + 1e-5).all()
    assert np.abs(by_function - wanted).max() <= 2.0**-11 * 4 * np.abs(wanted).max()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_rows_do_not_change_a_bit(threads):
    model = network(["n", 4096], 4096)
    for rows in (0, 1, 3, 37):
        x = draw(rows, 4096)
        assert np.array_equal(run(model, x, threads=threads), kernel_bits(x, 4096))
    assert np.array_equal(run(network([64], 64), draw(64)), kernel_bits(draw(64), 64))


def test_in_a_chain_the_input_of_the_model_is_left_alone():
    model, x = network(["n", 64], 64, 16, 64), draw(300, 64)
    before = x.copy()
    wanted = fast_apply(fast_apply(fast_apply(x.astype(np.float64)), 16))
    assert np.abs(run(model, x) - wanted).max() < 1e-5
    assert np.array_equal(x, before)


def test_two_runs_at_once_in_one_session():
    x = [draw(200, 768) * scale for scale in range(1, 5)]
    results = {}
    with open_session(network(["n", 768], 768)) as session:
        work = [
            threading.Thread(target=lambda i=i: results.update({i: session.run({"x": x[i]})}))
            for i in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
    for index, result in results.items():
        assert np.array_equal(next(iter(result.values())), kernel_bits(x[index], 768))


def edited(change, *, size=24, strip=False):
    proto = ir.to_proto(network(["n", "c"], size))
    change(proto)
    if strip:
        del proto.functions[:]
    return proto.SerializeToString()


def test_what_does_not_fit_is_a_sentence_and_no_crash():
    payload = edited(lambda proto: None)
    with open_session(payload) as session, pytest.raises(OnnxqError) as wrong:
        session.run({"x": draw(2, 36)})
    assert "Hadamard: X has shape [2, 36]; its last axis must be a multiple of size = 24" in str(
        wrong.value
    )

    def five(proto):
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.eye(5, dtype="f"), "f"))
        proto.graph.node[0].input[1] = "f"

    with open_session(edited(five, strip=True)) as session, pytest.raises(OnnxqError) as wrong:
        session.run({"x": draw(2, 24)})
    assert "Hadamard: factor has shape [5, 5]; it must be [m, m] with size = 24" in str(wrong.value)

    def nothing(proto):
        proto.graph.node[0].attribute[0].i = 0

    with pytest.raises(UnsupportedGraph, match="attribute size is 0, and must be at least 1"):
        open_session(edited(nothing, strip=True))

    def unnamed(proto):
        del proto.graph.node[0].attribute[:]

    with pytest.raises(UnsupportedGraph, match="size"):
        open_session(edited(unnamed, strip=True))


def test_shapes_are_inferred_without_the_function():
    proto = ir.to_proto(network(["n", 64], 64))
    del proto.functions[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with open_session(proto.SerializeToString()) as session:
        assert session.outputs[0].shape == ("n", 64)


def test_plain_onnxruntime_takes_the_library(tmp_path):
    path = save(network(["n", 576], 576), tmp_path / "model.onnx")
    x, results = draw(3, 576), []
    for _ in range(2):  # one domain for all sessions
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(onnxq.ops_library())
        session = onnxruntime.InferenceSession(str(path), options)
        results.append(session.run(None, {"x": x})[0])
    assert np.array_equal(results[0], kernel_bits(x, 576))
    assert np.array_equal(results[0], results[1])
    plain = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    assert np.abs(plain - results[0]).max() < 1e-5
    with pytest.raises(Exception, match="Domain already set"):
        options.register_custom_ops_library(onnxq.ops_library())
        onnxruntime.InferenceSession(str(path), options)


def test_an_installation_without_the_library_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    operators._library.cache_clear()
    with pytest.raises(OnnxqError, match=r"has no libonnxq_ops\.so: build it"):
        onnxq.ops_library()
    operators._library.cache_clear()


def test_function_and_factor_are_added_once(tmp_path):
    model = network(["n", 1536], 1536, 64, 1536, 128)
    check_graph(model)
    assert [key[1] for key in model.functions] == ["Hadamard"]
    assert set(model.graph.initializers) == {"onnxq_hadamard_1_float", "onnxq_hadamard_12_float"}
    assert find_sites(model) == []
    again = load(save(clone_model(model), tmp_path / "model.onnx"))
    check_graph(again)
    assert sum(map(is_hadamard, again.graph)) == 4
    x = draw(2, 1536)
    assert np.array_equal(run(again, x), run(model, x))


def test_inlining_leaves_it_unless_it_is_asked_to():
    model, x = network(["n", 576], 576, 64), draw(3, 576)
    assert InlineFunctions().call(model, Context()).modified is False
    assert all(is_hadamard(node) for node in model.graph)
    function = run(model, x, custom_ops=False, optimize=False)
    inline = InlineFunctions(keep=())
    assert (InlineFunctions().promise, inline.promise) == (Promise.SAME_BITS, Promise.SAME_FUNCTION)
    assert inline.call(model, Context()).modified is True
    assert not any(is_hadamard(node) for node in model.graph)
    assert np.array_equal(run(model, x, optimize=False), function)
    FoldConstants().call(model, Context())
    assert [node.op_type for node in model.graph].count("MatMul") == 4  # two for each rotation
    left = {node.op_type for node in model.graph}
    assert left - {"Constant"} == {"Shape", "Reshape", "MatMul"}
    assert np.abs(run(model, x, optimize=False) - function).max() < 1e-6


def test_other_types_and_old_opsets_are_refused():
    with pytest.raises(UnsupportedGraph, match="takes float32 or float16, and 'x' is BFLOAT16"):
        network(["n", 64], 64, dtype=ir.DataType.BFLOAT16)
    with pytest.raises(UnsupportedGraph, match=r"opset 15, and the model is in opset 13: run con"):
        network(["n", 64], 64, opset=13)
    network(["n", 64], 64, opset=15)
