"""Engines: built for TensorRT-RTX without a GPU, in every precision; refusals name the rule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import MissingDependency, UnsupportedGraph, UsageError
from onnxq.export.target import Execution
from onnxq.export.tensorrt_profiles import DEFAULTS, input_shapes, role_of
from onnxq.export.to_float16 import to_float16
from onnxq.export.to_nvfp4 import BLOCK, encode_nvfp4, to_nvfp4
from onnxq.export.to_tensorrt import TensorRt, TensorRtRtx
from onnxq.graph import load, save
from onnxq.passes.base import Context
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import open_session
from tests.export.tensorrt_graphs import blocked, conv, dense, graph, normal, nvfp4


def mlp(opset=21):
    """Two layers over tokens, with a softmax: batch and sequence are dynamic."""
    return graph(
        "(float[batch, sequence, 128] x) => (float[batch, sequence, 64] y) {"
        " a = MatMul(x, w) b = Add(a, c) h = Gelu(b) g = MatMul(h, v) y = Softmax(g) }",
        opset,
        w=normal(128, 256),
        c=normal(256),
        v=normal(256, 64),
    )


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("capability", [80, 89, 120])
def test_float16_int8_and_int4_are_built_for_every_generation(rtx, capability, tmp_path):
    built = {}
    for name, model, options in (
        ("float16", mlp(), {"float16": True}),
        ("int8", dense(), {}),
        ("int4", blocked(), {}),
    ):
        target = TensorRtRtx(capabilities=(capability,), **options)
        path = save(model, tmp_path / f"{name}.onnx")
        built[name] = target.build(path, tmp_path)[f"{name}.engine"]
        assert (tmp_path / f"{name}.engine").stat().st_size == built[name]["bytes"]
        assert built[name]["unlike"] == {}
    assert built["float16"]["shapes"] == {"x": [(1, 1, 128), (1, 128, 128), (4, 512, 128)]}
    assert built["float16"]["products"] == {"float": 2}
    assert built["int8"]["products"] == {"integer kernel": 1}
    assert built["int4"]["products"] == {"low-bit kernel": 1}


def test_fp4_is_built_for_blackwell_and_refused_before(rtx, tmp_path):
    path = save(nvfp4(), tmp_path / "fp4.onnx")
    (built,) = TensorRtRtx(capabilities=(120,)).build(path, tmp_path).values()
    assert built["products"] == {"low-bit kernel": 1} and built["unlike"] == {}
    with pytest.raises(UnsupportedGraph, match=r"FLOAT4E2M1 runs from compute capability 12\.0"):
        TensorRtRtx(capabilities=(89, 120)).build(path, tmp_path)


def test_one_engine_is_built_for_several_generations(rtx, tmp_path):
    path = save(conv(), tmp_path / "model.onnx")
    (built,) = TensorRtRtx().build(path, tmp_path).values()
    assert built["engine"] == "built" and "products" not in built
    with pytest.raises(UsageError, match=r"cannot build for compute capability 9\.0: it knows"):
        TensorRtRtx(capabilities=(90,)).build(path, tmp_path)


def test_weights_may_stream_and_files_of_a_folder_are_all_built(rtx, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for name in ("encoder", "decoder"):
        save(mlp(), source / f"{name}.onnx")
    (source / "tokenizer.json").write_text("{}")
    target = TensorRtRtx(capabilities=(89,), weight_streaming=True, shapes={"sequence": (1, 8, 16)})
    built = target.build(source, out)
    assert sorted(built) == ["decoder.engine", "encoder.engine"]
    assert built["decoder.engine"]["shapes"]["x"][2] == (4, 16, 128)
    assert {path.name for path in out.iterdir()} == {*built, "tokenizer.json"}
    with pytest.raises(UsageError, match="holds no ONNX file"):
        target.build(out, out)


def test_the_parser_is_quoted_with_the_node_and_the_rule(rtx, tmp_path):
    path = save(dense(z=np.int8(3)), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedGraph) as refusal:
        TensorRtRtx().build(path, tmp_path)
    text = str(refusal.value)
    assert "TensorRT's parser refuses QuantizeLinear 'QuantizeLinear_0'" in text
    assert "Non-zero zero point is not supported" in text and "[symmetric]" in text
    assert not list(tmp_path.glob("*.engine"))


def quantized(fmt):
    model = mlp(23)
    assert QuantizeWeights(format=fmt, write="operator").call(model, Context()).modified
    return model


def test_an_operator_runs_as_its_function_where_the_parser_has_what_it_uses(rtx, tmp_path):
    model = quantized("ternary")
    target = TensorRtRtx(capabilities=(89,))
    bodies = [v for v in target.check(model).sites if v.rule == "function-body"]
    assert len(bodies) == 2 and {v.execution for v in bodies} == {Execution.FUNCTION}
    (built,) = target.build(save(model, tmp_path / "m.onnx"), tmp_path).values()
    assert built["engine"] == "built"


@pytest.mark.parametrize(
    ("fmt", "rule", "says"),
    [
        ("lut4", "parser", "its function uses BitShift, BitwiseAnd, BitwiseOr"),
        ("vq_d4n256", "bare-codes", "it reads the INT8 constant"),
    ],
)
def test_where_it_has_not_the_engine_is_refused(rtx, fmt, rule, says, tmp_path):
    model = quantized(fmt)
    found = [v for v in TensorRtRtx().check(model).sites if v.rule == rule]
    assert len(found) == 2 and says in found[0].reason
    with pytest.raises(UnsupportedGraph, match=says):
        TensorRtRtx().build(save(model, tmp_path / "m.onnx"), tmp_path)


def test_what_a_plugin_computes_loses_its_function(tmp_path):
    model = quantized("lut4")
    plugged = TensorRt(plugins=("MatMulLut",))
    verdicts = plugged.check(model)
    assert [v.rule for v in verdicts.sites].count("plugin") == 2 and verdicts.is_clean
    with plugged._prepared(model, tmp_path / "m.onnx") as path:
        assert "MatMulLut" not in {key[1] for key in load(path).functions}
    assert "MatMulLut" in {key[1] for key in model.functions}


def test_without_the_package_the_error_names_the_extra(monkeypatch, tmp_path):
    for name, target in (("tensorrt", TensorRt()), ("tensorrt_rtx", TensorRtRtx())):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingDependency, match=rf"pip install 'onnxq\[{target.name}\]'"):
            target.build(save(mlp(), tmp_path / "m.onnx"), tmp_path)


def test_removing_or_skewing_one_pair_is_told_by_the_name_of_the_rule():
    clean = TensorRt().check(conv("m = Add(a, xd) y = Relu(m)"))
    assert clean.is_clean and [v.execution for v in clean.sites] == [Execution.INTEGER]
    skewed = TensorRt().check(conv(z=np.int8(1)))
    assert [(v.rule, v.execution) for v in skewed.sites] == [("symmetric", Execution.UNSUPPORTED)]
    plain = TensorRt().check(conv(before="xd = Identity(x)", s=None, z=None))
    assert [(v.rule, v.execution) for v in plain.sites] == [("both-inputs", Execution.DEQUANTIZED)]
    skip = TensorRt().check(conv("m = Add(a, x) y = Relu(m)"))
    assert [v.rule for v in skip.wasted] == ["residual"] and not skip.is_clean
    assert json.dumps(skip.to_dict())


@pytest.mark.parametrize(
    ("name", "axis", "rank", "role"),
    [
        ("batch_size", 0, 2, "batch"),
        ("N", 0, 4, "batch"),
        ("sequence_length", 1, 2, "sequence"),
        ("past_sequence_length", 2, 4, "cache"),
        ("total_sequence_length", 1, 2, "total"),
        ("past_sequence_length + sequence_length", 1, 2, "total"),
        ("height", 2, 4, "size"),
        (None, 0, 3, "batch"),
        ("unk__12", 2, 4, "size"),
        ("?", 1, 2, "sequence"),
    ],
)
def test_roles_of_dimensions(name, axis, rank, role):
    assert role_of(name, axis, rank) == role


def test_spans_by_name_by_role_and_by_place():
    model = graph(
        "(float[batch, s, 8] x, float[batch, past, 8] p, float[batch, total, 8] t) =>"
        " (float[a, b, c] y) { m = Concat<axis = 1>(p, x) y = Concat<axis = 1>(m, t) }"
    )
    x, p, t = input_shapes(model, {"s": (2, 3, 4), "cache": (0, 5, 9), "batch": (1, 2, 2)})
    assert (x.least, x.best, x.most) == ((1, 2, 8), (2, 3, 8), (2, 4, 8))
    assert (p.least, p.best, p.most) == ((1, 0, 8), (2, 5, 8), (2, 9, 8))
    low, best, most = (a + b for a, b in zip(DEFAULTS["sequence"], (0, 5, 9), strict=True))
    assert (t.least[1], t.best[1], t.most[1]) == (low, best, most)
    nameless = graph("(float[1, 3, 4, 4] x) => (float[a, b, c, d] y) { y = Relu(x) }")
    nameless.graph.inputs[0].shape = ir.Shape([-1, 3, None, "p2o.DynamicDimension.1"])
    (shape,) = input_shapes(nameless, {"x.3": (8, 9, 10)})
    assert shape.best == (1, 3, 320, 9) and shape.most == (4, 3, 1280, 10)
    with pytest.raises(UsageError, match="no dimension 'sequense'"):
        input_shapes(model, {"sequense": (1, 2, 3)})
    with pytest.raises(UsageError, match="least, the best and the most"):
        input_shapes(model, {"s": (3, 2, 1)})


def test_float16_computes_the_same_to_its_precision():
    """Weights, constants and types are halves; what is outside of the model stays float32."""
    model = graph(
        "(float[1, 3, 8, 8] x) => (float[n, c, h, w] y) { a = Conv(x, k)"
        ' r = Resize<mode = "nearest">(a, , f) q = QuantizeLinear(r, s, z)'
        " d = DequantizeLinear(q, s, z) two = Constant<value_float = 2.0>() y = Mul(d, two) }",
        opset=17,
        k=normal(4, 3, 1, 1),
        f=np.array([1, 1, 2, 2], np.float32),
        s=np.float32(0.05),
        z=np.int8(0),
    )
    feeds = {"x": normal(1, 3, 8, 8)}
    with open_session(model) as session:
        expected = session.run(feeds)["y"]
    to_float16(model)
    assert model.graph.initializers["k"].dtype is ir.DataType.FLOAT16
    with open_session(model) as session:
        found = session.run(feeds)["y"]
    assert found.dtype == np.float32
    # A step of the rounding to int8, doubled, where a half falls to its other side; and three
    # roundings to half precision: of the scale, of its product with the code, of the result.
    assert np.all(np.abs(found - expected) <= 2 * 0.05 + 3 * 2.0**-11 * np.abs(expected) + 1e-4)


def test_dimensions_called_question_mark_need_not_be_equal(rtx, tmp_path):
    model = graph(
        "(float[1, 3, 4, 4] x) => (float[a, b, c, d] y) { y = Conv(x, k) }", k=normal(4, 3, 1, 1)
    )
    model.graph.inputs[0].shape = ir.Shape([1, 3, "?", "?"])
    target = TensorRtRtx(capabilities=(89,), shapes={"x.2": (8, 8, 8), "x.3": (16, 16, 16)})
    (built,) = target.build(save(model, tmp_path / "m.onnx"), tmp_path).values()
    assert built["shapes"] == {} and built["products"] == {"float": 1}


@pytest.mark.slow
def test_polygraphy_builds_the_same_network(rtx, tmp_path):
    """`build` for tensorrt goes through Polygraphy, which can be told to use TensorRT-RTX."""
    pytest.importorskip("polygraphy")
    save(mlp(), tmp_path / "m.onnx")
    code = (
        "import sys, tensorrt_rtx; from pathlib import Path\n"
        "from onnxq.export.tensorrt_polygraphy import build_with_polygraphy, has_gpu\n"
        "from onnxq.export.tensorrt_profiles import input_shapes\n"
        "from onnxq.graph import load\n"
        f"path = Path({str(tmp_path / 'm.onnx')!r})\n"
        "engine = build_with_polygraphy(tensorrt_rtx, path, input_shapes(load(path), {}))\n"
        "print(len(engine.plan), engine.layers, has_gpu())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    size, layers, _ = done.stdout.split()[-3:]
    assert int(size) > 1000 and int(layers) > 3


@pytest.mark.parametrize("axis", [0, 1])
def test_nvfp4_is_within_half_a_step(axis):
    weight = normal(64, 96) * np.exp(normal(64, 1))
    weight[:, :16] = 0
    codes, scales, outer = encode_nvfp4(weight, axis)
    assert scales.shape == ((4, 96) if axis == 0 else (64, 6)) and outer.dtype == np.float32
    steps = np.repeat(scales.astype(np.float32), BLOCK, axis=axis) * outer
    decoded = codes.astype(np.float32) * steps
    # The gaps of E2M1 are 0.5 up to 2, 1 up to 4, 2 up to 6; a scale is rounded by 1/16, or, below
    # E4M3's smallest normal number, by half of 2**-9, and the largest of a block may then be cut.
    gap = np.where(np.abs(weight) <= 2 * steps, 0.5, np.where(np.abs(weight) <= 4 * steps, 1, 2))
    cut = np.maximum(np.abs(weight) - 6 * steps, 0)
    assert np.all(np.abs(decoded - weight) <= np.maximum(gap / 2 * steps, cut) * (1 + 1e-6))
    assert np.all(cut <= np.maximum(6 * steps / 16, 6 * outer * 2.0**-10) * (1 + 1e-6))
    assert np.all(decoded[:, :16] == 0) and np.all(scales.astype(np.float32) > 0)


@pytest.mark.parametrize("float16", [False, True])
def test_products_become_fp4(rtx, float16, tmp_path):
    target = TensorRtRtx(capabilities=(120,), fp4=True, float16=float16)
    model = mlp()
    assert {v.kernel for v in target.check(model).sites} == {"FP4 GEMM"}
    (built,) = target.build(save(model, tmp_path / "m.onnx"), tmp_path).values()
    assert built["products"] == {"low-bit kernel": 2} and built["unlike"] == {}


def test_a_cast_keeps_integer_products_and_breaks_weights_that_stand_alone(rtx, tmp_path):
    """The check knows what the engine shows: of int8 × int8 a cast is fused, of int4 it is not."""
    target = TensorRtRtx(capabilities=(89,))
    for model, indices, execution in (
        (blocked(), (1,), "float"),
        (dense(), (0, 1), "integer kernel"),
    ):
        (product,) = (node for node in model.graph if node.op_type == "MatMul")
        for index in indices:
            cast = ir.node("Cast", [product.inputs[index]], {"to": 10}, name=f"cast_{index}")
            cast.outputs[0].name = f"half_{index}"
            model.graph.insert_before(product, cast)
            product.replace_input_with(index, cast.outputs[0])
        if 0 not in indices:
            model.graph.inputs[0].dtype = ir.DataType.FLOAT16
        model.graph.outputs[0].dtype = ir.DataType.FLOAT16
        (built,) = target.build(save(model, tmp_path / "m.onnx"), tmp_path).values()
        assert built["products"] == {execution: 1} and built["unlike"] == {}


def test_what_is_no_fp4_product_stays_with_its_reason():
    model = graph(
        "(float[8, 24] x) => (float[8, 8] y) { a = MatMul(x, w) b = MatMul(a, v)"
        " y = Gemm<transA = 1>(b, u) }",
        w=normal(24, 8),
        v=normal(8, 8),
        u=normal(8, 8),
    )
    left = to_nvfp4(model)
    assert list(left.values()) == [
        "its 24 inputs are not a whole number of blocks of 16",
        "its 8 inputs are not a whole number of blocks of 16",
        "it transposes its activations",
    ]
    assert not any(node.domain == "trt" for node in model.graph)


def test_the_example_of_the_page_runs(rtx, monkeypatch, tmp_path, capsys):
    page = Path(__file__).resolve().parents[2] / "docs" / "targets" / "tensorrt.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for folder in ("artifact", "engines"):
        (tmp_path / folder).mkdir()
    save(mlp(), tmp_path / "artifact" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    assert (tmp_path / "engines" / "model.engine").exists()
    assert capsys.readouterr().out.startswith("True [")
