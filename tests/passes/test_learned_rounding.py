"""`quantize_weights` with solvers that learn."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import CalibrationError, RecipeError
from onnxq.passes.base import Context
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.runtime import open_session

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 32] x, float[32, 32] a, float[32, 32] b, float[32, 32] t)
  => (float[n, 32] y, float[n, 32] z) {
  h = MatMul (x, a)
  r = Relu (h)
  s = Gemm <transB = 1> (r, b)
  y = MatMul (s, t)
  z = MatMul (x, t) }"""


def _model() -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    random = np.random.default_rng(0)
    model = ir.from_onnx_text(TEXT)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        array = random.standard_normal((32, 32)).astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        model.graph.register_initializer(value)
    basis = random.standard_normal((4, 32))
    draw = [(random.standard_normal((16, 4)) @ basis).astype(np.float32) for _ in range(4)]
    return model, [{"x": x} for x in draw]


def _error(solver: str, **options: object) -> tuple[float, list]:
    model, samples = _model()
    exact = _run(model, samples)
    step = QuantizeWeights(format="int3_g16", solver=solver, solver_options=options)
    report = step.call(model, Context(samples=samples))
    found = _run(model, samples)
    return float(np.square(found - exact).sum() / np.square(exact).sum()), list(report.sites)


def _run(model: ir.Model, samples: list[dict[str, np.ndarray]]) -> np.ndarray:
    with open_session(model) as session:
        return np.concatenate([session.run(sample)["y"] for sample in samples])


def test_the_written_model_is_better_than_nearest_and_says_what_was_learned() -> None:
    plain, _ = _error("nearest")
    learned, sites = _error("adaround", steps=60, rate=0.1)
    assert learned < 0.8 * plain
    notes = [site.note or "" for site in sites]
    assert any("learned with block" in note and "->" in note for note in notes)
    # The weight that two sites read is in nobody's block.
    assert sum("its weight is read elsewhere too" in note for note in notes) == 2
    assert {site.solver for site in sites} == {"adaround", "nearest"}


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(RecipeError, match="refit_scales goes with solvers that look at one site"):
        QuantizeWeights(solver="lrq", refit_scales=True)
    with pytest.raises(RecipeError, match="no option 'rank'"):
        QuantizeWeights(solver="adaround", solver_options={"rank": 3})
    model, _ = _model()
    with pytest.raises(CalibrationError, match="'flexround' needs calibration data"):
        QuantizeWeights(solver="flexround").call(model, Context())
