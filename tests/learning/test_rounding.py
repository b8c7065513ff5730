"""Learned rounding: starts at nearest, never ends above it, gives what is stored, is repeatable."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxq.errors import RecipeError
from onnxq.formats import IntFormat, parse_format
from onnxq.graph.sites import find_sites
from onnxq.learning.rounding import METHODS, learn_rounding
from onnxq.learning.rounding.methods import AdaRound
from onnxq.passes.learned_rounding import LEARNED, find_solver
from onnxq.solvers.nearest import nearest

FORMATS = ["int3_g16", "int4_channel_asym", "int2_g8_asym_f16", "int4_tensor", "int8_channel"]


def _start(site: object, rows: np.ndarray, fmt: IntFormat) -> dict[str, np.ndarray]:
    return nearest(rows, fmt, search="mse")


def _model(width: int = 32, out: int = 24) -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """Two layers on inputs that lie near a subspace, where rounding jointly pays."""
    random = np.random.default_rng(0)
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[n, k] x, float[k, m] a, float[m, k] b) => (float[n, m] y) {
          h = MatMul (x, a)
          r = Relu (h)
          y = Gemm <transB = 1> (r, b) }"""
    )
    for name, shape in (("a", (width, out)), ("b", (16, out))):
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(random.standard_normal(shape).astype(np.float32), name=name)
        value.shape = ir.Shape(shape)
        model.graph.register_initializer(value)
    basis = random.standard_normal((6, width))
    samples = [
        {"x": (random.standard_normal((16, 6)) @ basis).astype(np.float32)} for _ in range(6)
    ]
    return model, samples


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("text", FORMATS)
def test_untrained_weights_are_rounded_to_nearest(name: str, text: str) -> None:
    fmt = parse_format(text)
    rows = np.random.default_rng(1).standard_normal((6, 40)).astype(np.float32)
    start = nearest(rows, fmt, search="mse")
    weight = METHODS[name]().weight(torch.from_numpy(rows), fmt, start, seed=3)
    assert all(p.requires_grad for p in weight.parameters)
    for key, array in weight.hard().items():
        np.testing.assert_array_equal(array, start[key])


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("text", ["int3_g16", "int2_g8_asym_f16"])
def test_learning_lowers_the_loss_of_what_is_stored(name: str, text: str) -> None:
    model, samples = _model()
    formats = {site.name: parse_format(text) for site in find_sites(model)}
    method = METHODS[name](steps=60, rate=max(METHODS[name]().rate, 1e-2))
    found, _ = learn_rounding(model, samples, formats, _start, method)
    assert set(found) == set(formats)
    for site in find_sites(model):
        result, fmt = found[site.name], formats[site.name]
        assert result.block.after < 0.9 * result.block.before
        codes = result.arrays["codes"]
        assert codes.min() >= fmt.lowest and codes.max() <= fmt.highest
        assert set(result.arrays) == set(fmt.encode(np.ones((2, 16), np.float32)))
    again, _ = learn_rounding(model, samples, formats, _start, method)
    for name_, result in found.items():
        for key, array in result.arrays.items():
            np.testing.assert_array_equal(array, again[name_].arrays[key])


def test_the_loss_reported_is_that_of_the_stored_codes() -> None:
    model, samples = _model()
    sites = find_sites(model)
    formats = {site.name: parse_format("int3_g16") for site in sites}
    found, _ = learn_rounding(model, samples, formats, _start, AdaRound(steps=30))
    # Both layers are one block here: what the second gives is compared.
    exact = rounded = np.concatenate([sample["x"] for sample in samples]).astype(np.float64)
    for number, site in enumerate(sites):
        weight = site.weight.const_value.numpy()
        exact = exact @ (weight.T if number else weight)
        rounded = rounded @ formats[site.name].decode(found[site.name].arrays).T
        if number == 0:
            exact, rounded = np.maximum(exact, 0), np.maximum(rounded, 0)
    loss = (np.square(exact - rounded).sum(-1) / np.square(exact).sum(-1)).mean()
    first = found[sites[0].name]
    # A hundredth of the mean energy is added to that of a token, so the loss is a little less.
    assert 0.9 * loss < first.block.after <= loss * (1 + 1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_without_steps_the_codes_are_those_of_nearest(name: str) -> None:
    model, samples = _model()
    formats = {site.name: parse_format("int4_g16") for site in find_sites(model)}
    found, _ = learn_rounding(model, samples, formats, _start, METHODS[name](steps=0))
    for site in find_sites(model):
        rows = site.weight.const_value.numpy()
        rows = rows.T if site.kind == "MatMul" else rows
        want = nearest(np.ascontiguousarray(rows), formats[site.name], search="mse")
        np.testing.assert_array_equal(found[site.name].arrays["codes"], want["codes"])
        assert found[site.name].block.after == found[site.name].block.before


def test_names_and_options() -> None:
    assert set(LEARNED) == set(METHODS)
    assert find_solver("adaround").needs == {"block"}
    assert find_solver("lrq").check({"rank": 4}) == {"rank": 4}
    with pytest.raises(RecipeError, match="did you mean 'adaround'"):
        find_solver("adarund")
    with pytest.raises(RecipeError, match="no option 'rnk'; did you mean 'rank'"):
        find_solver("lrq").check({"rnk": 4})
    with pytest.raises(RecipeError, match="rate is 0"):
        AdaRound(rate=0.0)
