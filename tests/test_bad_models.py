"""Valid but awkward models go through every recipe; bad ones get a sentence and cost nothing."""

import numpy as np
import onnx_ir as ir
import pytest

import onnxq
from onnxq.errors import FormatError, OnnxqError, UnsupportedGraph
from onnxq.runtime import open_session

RNG = np.random.default_rng(3)
RECIPES = ["int8", "int4", "int8_dynamic", "int8_static"]


def model(text, **weights):
    built = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    values = {v.name: v for node in built.graph for v in node.inputs if v is not None}
    for name, array in weights.items():
        values[name].const_value = ir.tensor(array, name=name)
        values[name].shape = ir.Shape(array.shape)
        values[name].dtype = values[name].const_value.dtype
        built.graph.register_initializer(values[name])
    return onnxq.load(built)


def weight(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


AWKWARD = {
    "computed weight": lambda: model(
        "main (float[4, 32] x, float[32, 32] v) => (float[4, 32] y)"
        "{ s = Softmax(v) h = MatMul(x, s) y = MatMul(h, w) }",
        w=weight(32, 32),
    ),
    "one weight, both orientations": lambda: model(
        "main (float[4, 32] x) => (float[4, 32] y)"
        "{ t = Transpose<perm=[1, 0]>(w) h = MatMul(x, w) y = MatMul(h, t) }",
        w=weight(32, 32),
    ),
    "inner value that is also an output": lambda: model(
        "main (float[4, 32] x) => (float[4, 32] h, float[4, 32] y)"
        "{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }",
        w=weight(32, 32),
        v=weight(32, 32),
    ),
    "weight that is also an output": lambda: model(
        "main (float[4, 32] x) => (float[4, 32] y, float[32, 32] w2)"
        "{ y = MatMul(x, w) w2 = Identity(w) }",
        w=weight(32, 32),
    ),
    "empty tensor beside": lambda: model(
        "main (float[4, 32] x) => (float[4, 32] y) { h = MatMul(x, w) y = Concat<axis=0>(h, e) }",
        w=weight(32, 32),
        e=np.zeros((0, 32), np.float32),
    ),
}


def data(source):
    samples = []
    with open_session(source) as session:
        for _ in range(40):
            samples.append(
                {s.name: RNG.standard_normal(s.shape).astype(np.float32) for s in session.inputs}
            )
    return samples


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", AWKWARD)
def test_an_awkward_model_goes_through(case, recipe, tmp_path):
    source = AWKWARD[case]()
    artifact = onnxq.quantize(source, recipe, data=data(source), out=tmp_path / "out").artifact
    for row in artifact.report["verification"]["outputs"]["outputs"]:
        assert row["sqnr_db"] == "inf" or row["sqnr_db"] > (10 if recipe == "int4" else 20), row


@pytest.mark.parametrize("recipe", RECIPES)
def test_if_bodies_go_through(recipe, tmp_path):
    source = onnxq.load(
        ir.from_onnx_text(
            """<ir_version: 10, opset_import: ["" : 21]>
            main (bool b, float[1, 2] x) => (float[1, 2] y)
            <float[2, 2] w = {1.0, 2.0, 3.0, -4.0}> {
              y = If (b) <
                then_branch = yes () => (float[1, 2] t) { t = MatMul(x, w) },
                else_branch = no () => (float[1, 2] e) { e = Identity(x) }>
            }"""
        )
    )
    samples = [{"b": np.array(True), "x": weight(1, 2)} for _ in range(6)]
    assert onnxq.quantize(source, recipe, data=samples, out=tmp_path / "out").artifact


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_in_a_weight_name_the_weight(bad, recipe, tmp_path):
    array = weight(32, 32)
    array[3, 5] = bad
    source = model(
        "main (float[4, 32] x) => (float[4, 32] y) { y = MatMul(x, enc_w) }", enc_w=array
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "onnxq.json").write_text("before")
    (out / "model.onnx").write_text("before")
    samples = [{"x": weight(4, 32)} for _ in range(6)]
    with pytest.raises(OnnxqError, match="enc_w"):
        onnxq.quantize(source, recipe, data=samples, out=out)
    assert (out / "onnxq.json").read_text() == "before"
    assert (out / "model.onnx").read_text() == "before"


def test_a_weight_of_nothing_is_refused_or_left(tmp_path):
    source = model(
        "main (float[4, 0] x) => (float[4, 8] y) { y = MatMul(x, w) }",
        w=np.zeros((0, 8), np.float32),
    )
    try:
        done = onnxq.quantize(source, "int8", out=tmp_path / "out")
    except (FormatError, UnsupportedGraph) as error:
        assert "w" in str(error)
    else:
        assert done.left_sites[0].reason


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("first", ["int8", "int4"])
def test_a_quantized_model_is_refused(first, recipe, tmp_path):
    source = model(
        "main (float[4, 32] x) => (float[4, 32] y) { y = MatMul(x, w) }", w=weight(32, 32)
    )
    done = onnxq.quantize(source, first, out=tmp_path / "first").artifact
    samples = [{"x": weight(4, 32)} for _ in range(6)]
    with pytest.raises(UnsupportedGraph, match="already quantized"):
        onnxq.quantize(done.folder, recipe, data=samples, out=tmp_path / "second")
    assert not (tmp_path / "second").exists()
