"""Models for the plugins of TensorRT: what is asked for, what is rewritten, what `check` says."""

import sys
import types

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.tensorrt.nodes import PLUGINS
from onnxq.errors import UnsupportedGraph, UsageError
from onnxq.export import tensorrt_plugins
from onnxq.export.target import Execution
from onnxq.export.targets import target_with
from onnxq.export.tensorrt_plugins import OPERATORS, plugin_choice, use_plugins
from onnxq.export.to_tensorrt import TensorRt, TensorRtRtx
from onnxq.graph import load, save
from onnxq.passes.base import Context
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import open_session
from tests.custom_ops.fake_tensorrt_plugin import Module
from tests.export.tensorrt_graphs import graph, normal


def quantized(fmt):
    """Two products of one shared weight, and one of its own, by an operator."""
    model = graph(
        "(float[n, 128] x) => (float[n, 64] y) {"
        " a = MatMul(x, w) h = Relu(a) b = MatMul(h, w) y = MatMul(b, v) }",
        23,
        w=normal(128, 128),
        v=normal(128, 64),
    )
    assert QuantizeWeights(format=fmt, write="operator").call(model, Context()).modified
    return model


def products(model):
    return [node for node in model.graph if node.domain == "onnxq"]


FORMATS = ("int4_g32", "lut4", "vq_d4n256", "e8p2", "ternary", "trellis2_hyb")


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_site_of_an_operator_is_a_plugin(fmt):
    verdicts = TensorRt(plugins=("onnxq",)).check(quantized(fmt))
    found = [v for v in verdicts.sites if v.rule == "plugin"]
    assert verdicts.is_clean and len(found) == 3
    kind = products(quantized(fmt))[0].op_type
    assert f"plugins must be registered for: {kind}" in verdicts.notes
    assert {v.execution for v in found} == {Execution.LOW_BIT}
    assert {v.kernel for v in found} == {f"{kind} plugin"}


def test_without_plugins_the_sentence_says_how_to_build_them():
    model = quantized("lut4")
    reasons = {
        v.reason for v in TensorRt().check(model).sites if v.rule in ("parser", "bare-codes")
    }
    assert len(reasons) > 1 and all("or set plugins=onnxq" in reason for reason in reasons)
    (reason, *_) = reasons
    assert "or set plugins=onnxq" in reason and "ONNXQ_TENSORRT_INCLUDE=" in reason
    (reason, *_) = {v.reason for v in TensorRtRtx().check(model).sites if v.rule == "parser"}
    assert "plugins" not in reason  # TensorRT-RTX takes none


def test_codes_become_int8_and_functions_go(tmp_path):
    model = quantized("int4_g32")
    with TensorRt(plugins=("onnxq",))._prepared(model, tmp_path / "m.onnx") as path:
        written = load(path)
    assert not written.functions and model.functions
    for before, after in zip(products(model), products(written), strict=True):
        for old, new in zip(before.inputs[1:], after.inputs[1:], strict=True):
            codes, given = old.const_value.numpy(), new.const_value.numpy()
            assert given.dtype == (np.int8 if codes.dtype == np.uint8 else codes.dtype)
            np.testing.assert_array_equal(given.view(codes.dtype), codes)
    stored = [value.const_value.dtype for value in written.graph.initializers.values()]
    assert ir.DataType.UINT8 not in stored


def test_what_others_read_too_is_copied(tmp_path):
    model = quantized("int4_g32")
    codes = products(model)[0].inputs[1]
    cast = ir.node("Cast", [codes], {"to": 1}, name="other")
    cast.outputs[0].name, cast.outputs[0].dtype = "seen", ir.DataType.FLOAT
    cast.outputs[0].shape = codes.shape
    model.graph.append(cast)
    model.graph.outputs.append(cast.outputs[0])
    use_plugins(model, OPERATORS)
    assert codes.const_value.dtype is ir.DataType.UINT8 and cast.inputs[0] is codes
    copy = products(model)[0].inputs[1]
    assert copy.name == f"{codes.name}_int8" and copy.const_value.dtype is ir.DataType.INT8
    load(save(model, tmp_path / "m.onnx"))


def test_a_model_without_plugins_is_left_alone(tmp_path):
    model = quantized("ternary")
    path = save(model, tmp_path / "m.onnx")
    with TensorRt()._prepared(load(path), path) as parsed:
        assert parsed == path
    with open_session(path) as session:
        assert session.run({"x": np.ones((2, 128), np.float32)})["y"].shape == (2, 64)


def test_what_no_plugin_takes_is_refused():
    model = quantized("int4_g32")
    model.graph.inputs[0].dtype = ir.DataType.BFLOAT16
    says = "its input 'x' is BFLOAT16, and plugins take float32 or float16"
    (verdict,) = [v for v in TensorRt(plugins=("onnxq",)).check(model).sites if v.reason]
    assert (verdict.execution, verdict.rule) == (Execution.UNSUPPORTED, "plugin")
    assert verdict.reason == says
    with pytest.raises(UnsupportedGraph, match=f"has no plugin: {says}"):
        use_plugins(model, OPERATORS)


def test_what_plugins_may_be():
    assert plugin_choice(()).operators == ()
    assert plugin_choice(("MatMulLut",)).operators == ("MatMulLut",)
    assert plugin_choice(("MatMulLut",)).libraries == ()
    assert plugin_choice("MatMulLut,Hadamard").operators == ("MatMulLut", "Hadamard")
    target = target_with("tensorrt", ["plugins=onnxq"])
    assert set(target._plugins()) == set(OPERATORS)
    given = plugin_choice(("onnxq", "/a/libmine.so"))
    assert set(given.operators) == set(OPERATORS) and "Hadamard" in given.operators
    assert given.libraries == (tensorrt_plugins.LIBRARY, "/a/libmine.so")
    with pytest.raises(UsageError, match=r"plugins=MatMulLuT is no .*did you mean 'MatMulLut'"):
        plugin_choice(("MatMulLuT",))


def test_plugins_in_python_are_registered(monkeypatch):
    module = Module()
    monkeypatch.setitem(sys.modules, "tensorrt_of_tests", types.ModuleType("tensorrt_of_tests"))
    monkeypatch.setitem(sys.modules, "tensorrt_of_tests.plugin", module)
    found = types.SimpleNamespace(__name__="tensorrt_of_tests", __version__="0.0")
    choice = plugin_choice(("python",))
    assert choice.load(found) == () and set(choice.operators) == set(OPERATORS)
    assert set(module.plugins) == {f"onnxq::{name}" for name in OPERATORS}
    monkeypatch.setitem(sys.modules, "tensorrt_of_tests.plugin", types.ModuleType("plugin"))
    with pytest.raises(UsageError, match=r"tensorrt_of_tests 0\.0 takes no plugins in Python"):
        choice.load(found)


class Registry:
    """What TensorRT's plugin registry does, for libraries it takes."""

    def __init__(self, takes):
        self.takes, self.loaded = takes, []

    def load_library(self, path):
        self.loaded.append(path)
        return object() if self.takes else None


def tensorrt(registry):
    return types.SimpleNamespace(get_plugin_registry=lambda: registry, __version__="0.0")


def test_libraries_are_loaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_plugins, "_LOADED", set())
    library = tmp_path / "libmine.so"
    library.write_bytes(b"")
    registry = Registry(True)
    for _ in range(2):
        assert plugin_choice((str(library),)).load(tensorrt(registry)) == (library,)
    assert registry.loaded == [str(library)]


def test_a_library_that_is_not_there_or_not_taken_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_plugins, "_LOADED", set())
    with pytest.raises(UsageError, match="no library of plugins"):
        plugin_choice((str(tmp_path / "x.so"),)).load(tensorrt(Registry(True)))
    (tmp_path / "x.so").write_bytes(b"")
    with pytest.raises(UsageError, match=r"TensorRT 0\.0 does not load"):
        plugin_choice((str(tmp_path / "x.so"),)).load(tensorrt(Registry(False)))
    monkeypatch.setattr(tensorrt_plugins, "LIBRARY", "libnone.so")
    with pytest.raises(UsageError, match=r"has no libnone\.so.*ONNXQ_TENSORRT_INCLUDE"):
        plugin_choice(("onnxq",)).load(tensorrt(Registry(True)))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("float16", [False, True])
def test_inputs_have_the_types_that_plugins_take(fmt, float16, tmp_path):
    """In the model that is parsed: networks are strongly typed, so nothing else is tried."""
    target = TensorRt(plugins=("onnxq",), float16=float16)
    with target._prepared(quantized(fmt), tmp_path / "m.onnx") as path:
        written = load(path)
    may_be = {"u": ("INT8",), "i": ("INT8",), "h": ("FLOAT16",), "t": ("INT8", "FLOAT16")}
    may_be["s"] = ("FLOAT16",) if float16 else ("FLOAT", "FLOAT16")
    for node in products(written):
        stored = [value.const_value.dtype.name for value in node.inputs[1:]]
        kinds = PLUGINS[node.op_type].types[1:]
        assert all(name in may_be[kind] for name, kind in zip(stored, kinds, strict=True)), stored
