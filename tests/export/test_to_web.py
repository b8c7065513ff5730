"""What onnxruntime-web does with each site, by rule; and weights that the page decodes."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq import quantize
from onnxq.errors import MissingProgram
from onnxq.export import web_packages
from onnxq.export.to_web import Web
from onnxq.export.web_weights import split_weights
from onnxq.graph import load, save
from onnxq.runtime import open_session

from .qdq_patterns import Pattern, build

TEXT = (
    '<ir_version: 10, opset_import: ["" : 21]>main (float[n, 128] x) => (float[n, 64] y) '
    "{ h = MatMul(x, up) a = Relu(h) y = MatMul(a, down) }"
)
SHAPES = {"up": (128, 192), "down": (192, 64)}


@pytest.fixture
def layers():
    """Two layers of 128 to 192 to 64."""
    model = ir.from_onnx_text(TEXT)
    draw = np.random.default_rng(0)
    for node in model.graph:
        for value in node.inputs:
            if value.name in SHAPES:
                array = draw.standard_normal(SHAPES[value.name]).astype(np.float32)
                value.const_value = ir.tensor(array, name=value.name)
                value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
                model.graph.register_initializer(value)
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    return model


def quantized(model, fmt, recipe="int4"):
    return quantize(model, recipe, set=[f"quantize_weights.format={fmt}"]).model


def rules(model, **options):
    return {site.site: site.rule for site in Web(**options).check(model).sites}


def test_each_form_has_its_rule(layers):
    both = ["MatMul_h", "MatMul_y"]
    assert rules(layers) == dict.fromkeys(both, "web-float")
    for fmt in ("int4_g32", "int8_channel", "lut2", "vq_d4n256"):
        verdicts = Web().check(quantized(layers, fmt))
        assert verdicts.is_clean
        assert {site.rule for site in verdicts.sites} == {"web-decoded"}
        assert verdicts.notes == ["147456 bytes of weights in float32, decoded once"]
        tight = Web(most_memory=147455).check(quantized(layers, fmt))
        assert not tight.is_clean
        assert {site.rule for site in tight.sites} == {"web-every-run"}
    dynamic = quantize(layers, "int8_dynamic").model
    assert set(rules(dynamic).values()) == {"web-integer"}
    draw = np.random.default_rng(2)
    data = [{"x": draw.standard_normal((8, 128)).astype(np.float32)} for _ in range(4)]
    pairs = quantize(layers, "int8_static", data=data).model
    assert set(rules(pairs).values()) == {"web-qdq"}


def test_a_pair_that_is_not_fused_is_decoded_in_every_run():
    assert rules(load(build(Pattern(y="u8"))))["site"] == "web-qdq"
    (broken,) = Web().check(load(build(Pattern(after="Relu", y="u8")))).unclean
    assert (broken.site, broken.rule) == ("site", "web-every-run")
    assert "No Relu or Clip is the only reader of the result" in broken.reason


def test_what_the_runtime_lacks_is_refused(layers):
    node = next(iter(layers.graph))
    node.domain = "somewhere"
    verdict = Web().check(layers).sites[0]
    assert verdict.rule == "web-domain"
    assert verdict.reason.startswith("Node 'MatMul_h' is somewhere.MatMul: onnxruntime-web")


@pytest.mark.parametrize("fmt", ["int4_g32_asym", "int8_channel", "lut3", "aq_m2d8n256"])
def test_decoded_weights_are_those_of_the_artifact(fmt, layers, tmp_path):
    model = quantized(layers, fmt)
    decode = split_weights(model, tmp_path / "model.onnx")
    assert len(decode["weights"]) == 2
    stored = (tmp_path / decode["arrays"]).read_bytes()
    rest = ir.load(tmp_path / "model.onnx")
    for weight in decode["weights"]:
        inputs = {
            f"array_{number}": np.frombuffer(
                stored[one["offset"] : one["offset"] + one["bytes"]], one["type"]
            ).reshape(one["dims"])
            for number, one in enumerate(weight["inputs"])
        }
        with open_session(tmp_path / weight["decoder"]) as session:
            (array,) = session.run(inputs).values()
        value = rest.graph.initializers[weight["path"]]
        assert value.const_value.location == weight["path"]
        value.const_value = ir.tensor(array, name=value.name)
    x = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)
    with open_session(save(rest, tmp_path / "whole.onnx")) as session:
        found = session.run({"x": x})["y"]
    with open_session(model, custom_ops=False, optimize=False) as session:
        wanted = session.run({"x": x})["y"]
    # Tokens that are rounded to int8 may fall the other way; MatMulNBits rounds them, and is
    # spelled out without: then the products differ by a step of 1/127 of the largest input.
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


def test_what_has_nothing_to_decode_is_one_file(layers, tmp_path):
    assert split_weights(layers, tmp_path / "model.onnx") is None
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert load(tmp_path / "model.onnx").graph.num_nodes() == 3


def test_without_npm_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgram, match=r"needs the program 'npm'.*apt-get install npm"):
        web_packages.place_page(tmp_path)
