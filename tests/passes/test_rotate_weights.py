# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Single weights rotated at both sides, undone around them."""

import numpy as np
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.graph import find_sites, read_weight
from onnxq.graph.stage import Stage, mark_stage
from onnxq.numerics.incoherence import incoherence
from onnxq.passes.base import Context
from onnxq.passes.rotate_weights import RotateWeights

RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("inputs, outputs", [(12, 20), (9, 16), (24, 7)])
def test_the_function_stays_and_the_weight_is_flat(build, judge, kinds, inputs, outputs):
    weight = normal(inputs, outputs)
    weight[0, 0] = 50
    text = f"main (float[2, 3, {inputs}] x) => (float[2, 3, 5] y) {{ a = MatMul (x, w)  c = Add (a, b)  r = Relu (c)  y = MatMul (r, v) }}"
    model = build(text, opset=17, w=weight, b=normal(outputs), v=normal(outputs, 5))
    report = judge(model, RotateWeights(sites=("MatMul_0",)), {"x": normal(2, 3, inputs)})
    done = [site for site in report.sites if site.reason is None]
    assert [site.site for site in done] == ["MatMul_0"]
    assert kinds(model).count("Hadamard") == 2
    (site,) = [s for s in find_sites(model) if s.name == "MatMul_0"]
    assert site.bias is None  # the bias comes behind what undoes the rotation
    assert incoherence(read_weight(site.weight)) < min(incoherence(weight), 5)


def test_shared_weights_and_other_layers_stay(build):
    text = "main (float[2, 4] x, int64[2] i) => (float[2, 4] y, float[2, 4] z, float[2, 4] g) { a = MatMul (x, w)  y = Relu (a)  b = MatMul (x, w)  z = Relu (b)  e = Gather (v, i)  g = Relu (e) }"
    model = build(text, opset=17, w=normal(4, 4), v=normal(3, 4))
    report = RotateWeights().call(model, Context())
    assert not report.modified
    reasons = [site.reason for site in report.left]
    assert reasons[0] == "its weight is shared with others: run untie_weights first"
    assert reasons[2] == "Gather is no product with one matrix on the right"


def test_after_calibration_it_is_refused(build):
    model = build(
        "main (float[2, 4] x) => (float[2, 4] y) { a = MatMul (x, w)  y = Relu (a) }",
        w=normal(4, 4),
    )
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match="a rotation changes the activations"):
        RotateWeights().requires(model)
