"""compare: figures that can be worked out by hand, and a sentence for models that do not match."""

import json
import math

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import CalibrationError, UnsupportedGraph
from onnxq.evaluate import compare_models
from onnxq.evaluate.compare import _LAYER_BYTES, _next_chunk
from onnxq.evaluate.deviation import DeviationSums

HEADER = '<ir_version: 10, opset_import: ["": 21]>'


def deviation(a, b, *, scores=False, pieces=1):
    sums = DeviationSums(scores=scores)
    for first, second in zip(np.array_split(a, pieces), np.array_split(b, pieces), strict=True):
        sums.add(first, second)
    return sums.result()


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_sqnr_of_a_known_error():
    """An error of one tenth of every entry is 20 dB."""
    a = random((4, 7))
    found = deviation(a, 1.1 * a)
    assert found.sqnr_db == pytest.approx(20.0, abs=1e-9)
    assert found.relative_error == pytest.approx(0.1)
    assert found.max_error == pytest.approx(0.1 * np.abs(a).max())
    assert found.equal == 0.0 and found.elements == 28


def test_identical_is_infinite_and_zero():
    a = random((3, 3))
    found = deviation(a, a.copy())
    assert (found.sqnr_db, found.max_error, found.relative_error) == (math.inf, 0.0, 0.0)
    assert found.equal == 1.0


def test_sums_do_not_depend_on_how_samples_are_cut():
    a, b = random((12, 5)), random((12, 5), seed=1)
    whole, parts = deviation(a, b, scores=True), deviation(a, b, scores=True, pieces=5)
    assert whole.sqnr_db == pytest.approx(parts.sqnr_db)
    assert whole.kl == pytest.approx(parts.kl)
    assert (whole.top1, whole.max_error) == (parts.top1, parts.max_error)


def test_kl_and_top1_of_logits_are_those_of_the_definition():
    a, b = random((6, 9)), random((6, 9), seed=1)
    p = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    q = np.exp(b) / np.exp(b).sum(1, keepdims=True)
    found = deviation(a, b, scores=True)
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum(1).mean()))
    assert found.top1 == np.mean(a.argmax(1) == b.argmax(1))
    of_probabilities = deviation(p, q, scores=True)
    assert of_probabilities.kl == pytest.approx(found.kl)


def test_logits_moved_by_a_constant_are_the_same_scores():
    a = random((6, 9))
    found = deviation(a, a + 100.0, scores=True)
    assert found.kl == pytest.approx(0.0, abs=1e-12) and found.top1 == 1.0


def test_integers_and_booleans_have_only_a_fraction_equal():
    found = deviation(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]))
    assert found.equal == 0.75 and found.sqnr_db is None and found.max_error is None
    assert deviation(np.array([True, False]), np.array([True, True])).equal == 0.5


def test_infinities_in_the_same_places_are_no_error_and_elsewhere_are():
    a = np.array([1.0, -np.inf, np.nan])
    assert deviation(a, np.array([1.5, -np.inf, np.nan])).max_error == 0.5
    broken = deviation(a, np.array([np.nan, -np.inf, np.nan]))
    assert (broken.sqnr_db, broken.max_error) == (-math.inf, math.inf)
    assert deviation(a, np.array([1.0, np.inf, np.nan])).max_error == math.inf


def test_a_zero_reference_has_no_signal():
    found = deviation(np.zeros(4), np.ones(4))
    assert (found.sqnr_db, found.relative_error) == (-math.inf, math.inf)


def network(scale=1.0, *, output="y", second="w2"):
    """Two layers; ``scale`` is applied to the second weight."""
    text = f"""{HEADER}
    g (float[N,4] x) => (float[N,6] {output}, bool[N,6] sign) {{
        h = MatMul(x, w1)
        r = Relu(h)
        {output} = MatMul(r, {second})
        zero = Constant<value = float {{0.0}}>()
        sign = Greater({output}, zero)
    }}"""
    head, body = text.split("(float[N,4] x)")
    model = ir.from_onnx_text(f"{head}(float[N,4] x, float[4,5] w1, float[5,6] {second}){body}")
    for value, factor in zip(list(model.graph.inputs)[1:], (1.0, scale), strict=True):
        model.graph.inputs.remove(value)
        shape = tuple(value.shape.numpy())
        array = (random(shape, seed=shape[0]) * factor).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model


SAMPLES = [{"x": random((3, 4), seed=i).astype(np.float32)} for i in range(3)]


def test_two_models_layer_by_layer():
    found = compare_models(network(), network(1.01), SAMPLES, layers=True)
    y, sign = found.outputs
    assert found.samples == 3 and (y.name, sign.name) == ("y", "sign")
    assert y.deviation.sqnr_db == pytest.approx(40.0, abs=1e-3)
    assert y.deviation.top1 == 1.0 and y.deviation.kl > 0.0
    assert sign.deviation.equal == 1.0 and sign.deviation.kl is None
    first, last = found.layers
    assert (first.name, last.name) == ("n0", "n2")
    assert first.deviation.sqnr_db == math.inf
    assert last.deviation.sqnr_db == pytest.approx(40.0, abs=1e-3)
    assert found.worst_layer is last and not found.skipped


def test_files_folders_and_bytes_are_taken(tmp_path):
    from onnxq.graph import save

    path = save(network(), tmp_path / "model.onnx")
    for source in (path, str(tmp_path), path.read_bytes()):
        found = compare_models(source, network(1.01), SAMPLES, layers=True)
        assert len(found.layers) == 2 and found.outputs[0].deviation.sqnr_db < 41


def test_samples_that_can_be_read_only_once_are_enough():
    found = compare_models(network(), network(1.01), iter(SAMPLES), layers=True)
    assert found.samples == 3 and found.layers[1].deviation.elements == 3 * 18


def test_layers_are_matched_by_site_when_the_value_is_renamed():
    other = network(1.01)
    other.graph[0].outputs[0].name = "renamed"
    found = compare_models(network(), other, SAMPLES, layers=True)
    assert [row.name for row in found.layers] == ["n0", "n2"]


def test_a_layer_without_partner_is_skipped_with_the_reason():
    other = network(1.01)
    other.graph[0].outputs[0].name = "renamed"
    other.graph[0].name = "renamed"
    found = compare_models(network(), other, SAMPLES, layers=True)
    assert found.skipped == {"n0": "the candidate has no value 'h' and no site of this name"}


def test_the_dictionary_is_strict_json_with_infinity_as_text():
    found = compare_models(network(), network(), SAMPLES, layers=True).to_dict()
    read = json.loads(json.dumps(found, allow_nan=False))
    assert read["outputs"][0]["sqnr_db"] == "inf" and read["outputs"][0]["max_error"] == 0.0
    assert read["samples"] == 3 and len(read["layers"]) == 2


def test_scores_can_be_named():
    found = compare_models(network(), network(1.1), SAMPLES, scores=[])
    assert found.outputs[0].deviation.kl is None
    with pytest.raises(UnsupportedGraph, match=r"no output 'z' to take scores from; .* are 'y'"):
        compare_models(network(), network(), SAMPLES, scores=["z"])


def test_other_outputs_are_refused():
    with pytest.raises(
        UnsupportedGraph, match="'y' is only in the reference; 'z' is only in the candidate"
    ):
        compare_models(network(), network(output="z"), SAMPLES)


def test_other_shapes_are_refused():
    other = network()
    weight = other.graph.initializers["w2"]
    weight.const_value = ir.tensor(random((5, 7)).astype(np.float32), name="w2")
    for value in other.graph.outputs:
        value.shape = ir.Shape(["N", 7])
    weight.shape = ir.Shape([5, 7])
    with pytest.raises(UnsupportedGraph, match=r"'y' is float32\[3, 6\] .* float32\[3, 7\] .* 0"):
        compare_models(network(), other, SAMPLES)


def test_missing_inputs_and_no_samples_are_refused():
    with pytest.raises(CalibrationError, match=r"Sample 1 has no input 'x', .* it has 'z'"):
        compare_models(network(), network(), [SAMPLES[0], {"z": SAMPLES[0]["x"]}])
    with pytest.raises(CalibrationError, match="no samples"):
        compare_models(network(), network(), [])


def test_as_many_layers_are_fetched_as_fit_the_bytes():
    found = compare_models(network(), network(), SAMPLES, layers=True)
    assert _next_chunk(found.layers, 3) == 64
    big = DeviationSums()
    big._elements = 10 * _LAYER_BYTES
    row = type(found.layers[0])(name="big", deviation=big.result())
    assert _next_chunk([row], 1) == 1
    assert _next_chunk([row], 10 * 16 * 4) == 4


def test_a_site_whose_first_result_is_left_out_is_told_and_not_fetched():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> main (float[3, 1, 4] x) => (float[1, 1, 2] h)'
        "{ , h = LSTM<hidden_size = 2>(x, w, r) }"
    )
    rng = np.random.default_rng(0)
    for value, width in zip(model.graph[0].inputs[1:], (4, 2), strict=True):
        array = rng.standard_normal((1, 8, width)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        model.graph.register_initializer(value)
    sample = {"x": rng.standard_normal((3, 1, 4)).astype(np.float32)}
    found = compare_models(model, model.clone(), [sample], layers=True)
    assert found.layers == ()
    assert "the model leaves its first result out" in found.skipped.values()
