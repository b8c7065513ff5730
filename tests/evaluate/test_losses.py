"""One choice of what a model is judged by, whether it is read from a graph or from a session."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.evaluate.losses import LossMeter, PairedLoss
from onnxq.evaluate.output_loss import find_output_loss
from onnxq.runtime import open_session
from tests.five_layers import SITES, five_layers, five_samples, with_noise

MODELS = {
    "vectors": "main (float[n, 4] x) => (float[n, 4] y, float[n, 4] present_0)"
    "{ y = Neg(x) present_0 = Abs(x) }",
    "scores": "main (float[n, 4] x) => (float[n, 4] a, float[n, 4] class_probs, float[n, 1] score)"
    "{ a = Neg(x) class_probs = Softmax(x) score = ReduceSum(x, axes) }",
    "next_token": "main (int64[b, n] input_ids) => (float[b, n, 4] logits, float[b, n, 4] past)"
    "{ h = Cast<to = 1>(input_ids) u = Unsqueeze(h, last) logits = Expand(u, four) "
    "past = Neg(logits) }",
}
OUTPUTS = {"vectors": ["y"], "scores": ["class_probs"], "next_token": ["logits"]}
CONSTANTS = {"axes": [1], "last": [2], "four": [1, 1, 4]}


def _model(kind):
    text = MODELS[kind]
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    model = ir.from_onnx_text(head + text)
    for node in model.graph:
        for value in node.inputs:
            if value.name in CONSTANTS:
                value.const_value = ir.tensor(np.array(CONSTANTS[value.name]), name=value.name)
                value.shape, value.dtype = value.const_value.shape, ir.DataType.INT64
                model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_the_graph_and_the_session_are_judged_alike(kind):
    model = _model(kind)
    found = find_output_loss(model)
    assert found.kind == kind and list(found.outputs) == OUTPUTS[kind]
    name = model.graph.inputs[0].name
    sample = {name: np.arange(4, dtype=np.int64 if name == "input_ids" else np.float32)[None]}
    with open_session(model) as session:
        paired = PairedLoss(session, [sample])
        assert list(paired.outputs) == OUTPUTS[kind]
        assert paired.name == ("noise" if kind == "vectors" else "kl")
        assert paired.of_session(session) == 0.0
    assert LossMeter(model, [sample], found).excess(model) == 0.0


def test_vectors_are_judged_sample_by_sample():
    model, samples = five_layers(), five_samples(3)
    samples[1] = {"x": 100 * samples[1]["x"]}
    changed = with_noise(model, {SITES[4]: 0.3})
    shares = []
    with open_session(model) as first, open_session(changed) as second:
        for sample in samples:
            (a,), (b,) = first.run(sample).values(), second.run(sample).values()
            shares.append(np.sum((b - a) ** 2) / np.sum(a**2))
        assert PairedLoss(first, samples).of_session(second) == pytest.approx(np.mean(shares))
    measured = LossMeter(model, samples, find_output_loss(model)).excess(changed)
    assert measured == pytest.approx(np.mean(shares))


def test_no_floating_output_is_refused():
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    model = ir.from_onnx_text(head + "main (float[n] x) => (int64[1] y) { y = Shape(x) }")
    with pytest.raises(UnsupportedGraph, match="No output of 'main' holds floating numbers"):
        find_output_loss(model)
