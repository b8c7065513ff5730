"""The curvature predicts what a weight error costs: exactly where the model is linear."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.evaluate.losses import LossMeter
from onnxq.evaluate.output_loss import OutputLoss, find_output_loss
from onnxq.graph.sites import find_sites
from onnxq.graph.stage import clone_model
from onnxq.graph.weights import read_weight, replace_weight
from onnxq.learning.output_curvature import output_curvature
from onnxq.learning.single_site_loss import single_site_losses
from onnxq.learning.site_marginals import site_marginals
from tests.two_layers import two_layers

RNG = np.random.default_rng(0)
SAMPLES = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(8)]


@pytest.fixture(scope="module")
def model():
    return two_layers(np.random.default_rng(1))


@pytest.fixture(scope="module")
def curvature(model):
    loss = find_output_loss(model)
    assert loss == OutputLoss(outputs=("y",), kind="vectors")
    return output_curvature(model, SAMPLES, find_sites(model), loss, draws=8)


def test_noise_costs_what_the_curvature_says(model, curvature):
    meter = LossMeter(model, SAMPLES, find_output_loss(model))
    for site in find_sites(model):
        noisy = clone_model(model)
        (twin,) = [s for s in find_sites(noisy) if s.name == site.name]
        weight = read_weight(twin.weight)
        error = (0.02 * RNG.standard_normal(weight.shape)).astype(np.float32)
        new = weight + error
        replace_weight(
            twin.weight, shape=new.shape, dtype=ir.DataType.FLOAT, compute=lambda new=new: new
        )
        measured = meter.excess(noisy)
        found = curvature[site.name]
        rows = error.T.astype(np.float64)
        predicted = 0.5 * np.sum((rows @ found.matrix[0]) * rows, axis=1) @ found.rows
        assert measured == pytest.approx(predicted, rel=0.1)
        by_trace = 0.5 * found.trace * 0.02**2
        assert measured == pytest.approx(by_trace, rel=0.15)


def test_noise_in_one_site_measures_the_same(model, curvature):
    def noisy(rows):
        return rows + (0.02 * RNG.standard_normal(rows.shape)).astype(np.float32)

    sites = find_sites(model)
    found = single_site_losses(model, SAMPLES, sites, find_output_loss(model), noisy)
    for site in sites:
        by_trace = 0.5 * curvature[site.name].trace * 0.02**2
        assert found[site.name].loss == pytest.approx(by_trace, rel=0.15)
        assert found[site.name].error == pytest.approx(0.02**2, rel=0.2)


def test_errors_that_tokens_share_add_up():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 32] x, int64[1] axes) => (float[1, 24] y)"
        "{ h = MatMul(x, w) y = ReduceMean(h, axes) }"
    )
    weight = RNG.standard_normal((32, 24)).astype(np.float32)
    value = model.graph[0].inputs[1]
    value.const_value = ir.tensor(weight, name="w")
    value.shape, value.dtype = ir.Shape(weight.shape), ir.DataType.FLOAT
    model.graph.register_initializer(value)
    axes = np.zeros(1, np.int64)
    samples = [
        {"x": (RNG.standard_normal((1, 32)) + RNG.standard_normal((40, 32))).astype(np.float32)}
        for _ in range(12)
    ]
    samples = [{**sample, "axes": axes} for sample in samples]
    loss = find_output_loss(model)
    (site,) = find_sites(model)
    found = output_curvature(model, samples, [site], loss, draws=8)[site.name]
    noisy = clone_model(model)
    error = (0.02 * RNG.standard_normal(weight.shape)).astype(np.float32)
    (twin,) = find_sites(noisy)
    replace_weight(
        twin.weight,
        shape=error.shape,
        dtype=ir.DataType.FLOAT,
        compute=lambda: weight + error,
    )
    measured = LossMeter(model, samples, loss).excess(noisy)
    rows = error.T.astype(np.float64)
    predicted = 0.5 * np.sum((rows @ found.matrix[0]) * rows, axis=1) @ found.rows
    assert measured == pytest.approx(predicted, rel=0.15)


def test_probabilities_are_judged_as_the_scores_behind_them():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 16] x) => (float[n, 8] logits, float[n, 8] probabilities)"
        "{ logits = MatMul(x, w) probabilities = Softmax(logits) }"
    )
    value = model.graph[0].inputs[1]
    value.const_value = ir.tensor(RNG.standard_normal((16, 8)).astype(np.float32), name="w")
    value.shape, value.dtype = ir.Shape((16, 8)), ir.DataType.FLOAT
    model.graph.register_initializer(value)
    samples = [{"x": RNG.standard_normal((400, 16)).astype(np.float32)} for _ in range(4)]
    (site,) = find_sites(model)
    error = 0.1 * RNG.standard_normal((8, 16))
    rounded = {site.name: (read_weight(value).T + error).astype(np.float32)}
    traces, losses = [], []
    for output in ("logits", "probabilities"):
        loss = OutputLoss(outputs=(output,), kind="scores")
        found = output_curvature(model, samples, [site], loss, draws=8)
        traces.append(found[site.name].trace)
        losses.append(site_marginals(model, samples, [site], rounded, loss).losses)
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert find_output_loss(model).kind == "scores"
