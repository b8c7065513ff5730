"""Recipes that round activations, end to end on a small trained model exported by torch."""

import pytest

from onnxq.graph import load, save
from onnxq.graph.walk import walk_nodes
from onnxq.models import registry
from onnxq.passes.recipe import load_recipe
from onnxq.passes.runner import run_recipe

FLOAT = 39.47
"""Perplexity of the float model, as test_real.py checks it."""


@pytest.fixture(scope="module")
def glass(tmp_path_factory, fetched):
    pytest.importorskip("torch")
    fetched("glassllm")
    task = registry.task("glassllm")
    models = task.build(tmp_path_factory.mktemp("glass"))
    return task, models["model"], task.calibration(models)["model"][:4]


def perplexity(glass, recipe, folder, overrides=()):
    """The rewritten model, the reports by pass, and its perplexity as written."""
    task, path, samples = glass
    result = run_recipe(load(path), load_recipe(recipe, overrides), samples=samples)
    written = save(result.model, folder / "model.onnx")
    reports = {step.step.key(): step.report for step in result.steps}
    return result.model, reports, task.evaluate({"model": written})["perplexity"]


def count(model, kind):
    return sum(node.op_type == kind for _, node in walk_nodes(model))


@pytest.mark.slow
def test_smoothed_int8_runs_as_integers_and_costs_a_hundredth(glass, tmp_path):
    model, reports, found = perplexity(glass, "smoothquant_w8a8", tmp_path)
    assert len(reports["smooth_activations"].changed) > 20
    assert count(model, "MatMulInteger") == len(reports["dynamic_int8"].changed) > 20
    assert found < 1.01 * FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quarot_w4a4", "resq_w4a4"])
def test_rotated_four_bits_cost_a_tenth_at_most(glass, tmp_path, recipe):
    model, reports, found = perplexity(glass, recipe, tmp_path)
    for key in ("fold_norm_scales", "rotate_residual", "rotate_heads", "insert_online_hadamard"):
        assert reports[key].changed, key
    assert count(model, "DynamicFakeQuantize") + count(model, "DynamicFakeQuantizeAsymmetric") > 10
    levels = {
        node.attributes.get_int("accuracy_level")
        for _, node in walk_nodes(model)
        if node.op_type == "MatMulNBits"
    }
    assert 0 in levels
    assert found < 1.1 * FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quarot_w4a8", "w4a8"])
def test_rotated_weights_of_four_bits_leave_activations_to_the_kernel(glass, recipe, tmp_path):
    model, _, found = perplexity(glass, recipe, tmp_path)
    assert count(model, "DynamicFakeQuantizeAsymmetric") == 0
    assert (count(model, "MatMulInt") > 10) == (recipe == "w4a8")
    assert found < 1.02 * FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["smoothquant_w8a8_static", "quarot_w8a8_static"])
def test_static_int8_keeps_one_scale_where_tokens_are_alike(glass, tmp_path, recipe):
    model, reports, found = perplexity(glass, recipe, tmp_path)
    static, token = (reports[key].changed for key in ("insert_qdq", "dynamic_int8"))
    assert len(static) + len(token) > 20
    assert len(static) > 4 * len(token)
    assert count(model, "MatMulInteger") == len(token)
    assert found < 1.01 * FLOAT
    strict = ("insert_qdq.min_token_db=100",)
    model, reports, found = perplexity(glass, recipe, tmp_path, strict)
    assert not reports["insert_qdq"].changed
    assert count(model, "MatMulInteger") == len(static) + len(token)
    assert found < 1.01 * FLOAT


@pytest.mark.slow
def test_static_int8_of_smollm2_costs_two_hundredths(tmp_path, fetched):
    """The goal is 29.5 where float has 28.95; on this text float has 27.69 (test_real.py)."""
    pytest.importorskip("torch")
    fetched("smollm2", "text")
    task = registry.task("smollm2")
    models = task.build(tmp_path / "smollm2")
    given = task, models["model"], task.calibration(models)["model"][:8]
    _, reports, found = perplexity(given, "quarot_w8a8_static", tmp_path)
    static, token = (reports[key].changed for key in ("insert_qdq", "dynamic_int8"))
    assert len(static) + len(token) == 151
    assert len(static) > 130
    assert found < 27.69 * 29.5 / 28.95
