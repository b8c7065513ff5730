"""Two forms of a model in one session: every subset of places is the model edited by hand."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.evaluate.differences import find_differences
from onnxq.evaluate.hybrid import Hybrid
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe
from onnxq.runtime import open_session
from tests.five_layers import SITES, five_layers, five_samples, with_noise


def outputs(model, sample):
    with open_session(model, optimize=False) as session:
        return session.run(sample)["y"]


def test_every_subset_is_the_model_with_these_weights():
    model = five_layers()
    sizes = dict(zip(SITES, (0.1, 0.2, 0.0, 0.3, 0.1), strict=True))
    changed = [name for name, size in sizes.items() if size]
    (sample,) = five_samples(1)
    with Hybrid(model, with_noise(model, sizes)) as hybrid:
        assert hybrid.places == dict.fromkeys(changed, True)
        whole = with_noise(model, sizes)
        for count in range(len(changed) + 1):
            for chosen in itertools.combinations(changed, count):
                edited = five_layers()
                for old, new in zip(edited.graph, whole.graph, strict=True):
                    if old.name in chosen:
                        old.inputs[1].const_value = new.inputs[1].const_value
                assert np.array_equal(hybrid.run(sample, chosen)["y"], outputs(edited, sample))


TRANSFORMED = {"quarot_w4a8", "smoothquant_w8a8"}


@pytest.mark.parametrize(
    "recipe", ["int8", "int4", "int8_dynamic", "int8_static", "quarot_w4a8", "smoothquant_w8a8"]
)
def test_all_places_are_the_quantized_model_whatever_its_form(recipe):
    """Blocks of codes, integer products, quantize-dequantize pairs: nothing is known of them."""
    model, samples = five_layers(), five_samples(4)
    chosen = load_recipe(recipe)
    quantized = run_recipe(model, chosen, samples=samples).model
    with Hybrid(model, quantized) as hybrid:
        assert set(hybrid.places) <= {*SITES} and not hybrid.fixed
        everything = hybrid.run(samples[0], list(hybrid.places))["y"]
        nothing = hybrid.run(samples[0], [])["y"]
    assert np.array_equal(everything, outputs(quantized, samples[0]))
    if recipe not in TRANSFORMED:
        assert np.array_equal(nothing, outputs(model, samples[0]))


def branches(scale):
    """A model whose products are in the two bodies of an If."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 4] x, bool c) => (float[n, 4] y) {"
        "h = Relu(x)"
        "y = If (c) <then_branch = a () => (float[n, 4] t) { t = MatMul(h, w) },"
        " else_branch = b () => (float[n, 4] e) { e = Neg(h) }> }"
    )
    for value in [v for node in model.graph.all_nodes() for v in node.inputs]:
        if value.name == "w":
            weight = scale * np.eye(4, dtype=np.float32)
            value.const_value = ir.tensor(weight, name="w")
            value.shape, value.dtype = ir.Shape((4, 4)), ir.DataType.FLOAT
            model.graph.register_initializer(value)
    for node in model.graph.all_nodes():
        node.name = node.op_type
    return model


def test_places_inside_bodies_are_switched_too():
    x = np.ones((2, 4), np.float32)
    with Hybrid(branches(1.0), branches(3.0)) as hybrid:
        (place,) = hybrid.places
        assert place == "If/then_branch/MatMul"
        sample = {"x": x, "c": np.array(True)}
        assert np.array_equal(hybrid.run(sample, [])["y"], x)
        assert np.array_equal(hybrid.run(sample, [place])["y"], 3 * x)
        assert np.array_equal(hybrid.run({**sample, "c": np.array(False)}, [place])["y"], -x)


def test_models_that_do_not_differ_are_refused():
    with pytest.raises(UnsupportedGraph, match="differ nowhere: the same operators"):
        Hybrid(five_layers(), five_layers())


def test_what_cannot_be_switched_says_why():
    header = '<ir_version: 10, opset_import: ["" : 21]> main (float[n] x) => (float[n] y)'
    first = ir.from_onnx_text(header + "{ y = Relu(x) }")
    second = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> main (float[n] x, float[n] z) => (float[n] y)'
        "{ y = Add(x, z) }"
    )
    (place,) = find_differences(first, second)
    assert "reads 'z' there, which the reference has not" in place.reason
    with pytest.raises(UnsupportedGraph, match="none of which can be switched"):
        Hybrid(first, second)
