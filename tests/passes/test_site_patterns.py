"""A role in a recipe stands for the names of the sites that have it."""

import numpy as np
import pytest

from onnxq.errors import RecipeError
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.recipe import load_recipe, preset_names
from onnxq.passes.runner import run_recipe
from onnxq.passes.site_patterns import HEAD, name_roles

DECODER = """
main (int64[n, s] ids) => (float[n, s, 96] y) {
    e = Gather(table, ids)
    h = MatMul(e, up)
    r = Relu(h)
    d = MatMul(r, down)
    o = Add(d, e)
    y = MatMul(o, out)
}"""


@pytest.fixture
def decoder(build):
    rng = np.random.default_rng(0)
    shapes = {"table": (96, 32), "up": (32, 64), "down": (64, 32), "out": (32, 96)}
    arrays = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    model = build(DECODER, **arrays)
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}[0]"  # brackets would be a pattern
    return model


def test_the_head_is_named_wherever_patterns_stand(decoder):
    step = QuantizeActivations(exclude=("a*", HEAD, "b*"), overrides={HEAD: 4, "c*": 6})
    named = name_roles(step, decoder)
    assert named.exclude == ("a*", "node_y[[]0]", "b*")
    assert list(named.overrides.items()) == [("node_y[[]0]", 4), ("c*", 6)]
    plain = QuantizeActivations(exclude=("a*",))
    assert name_roles(plain, decoder) is plain


def test_a_model_without_a_head_leaves_the_others_named(build):
    model = build("main (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }")
    step = QuantizeActivations(exclude=("a*", HEAD), overrides={HEAD: 4})
    named = name_roles(step, model)
    assert named.exclude == ("a*",)
    assert named.overrides == {}


def test_an_unknown_role_is_refused(decoder):
    step = QuantizeActivations(exclude=("@heads",))
    with pytest.raises(RecipeError, match=r"quantize_activations.exclude names the role '@heads'"):
        name_roles(step, decoder)


def test_a_recipe_gives_the_head_its_own_format_whatever_its_name(decoder):
    result = run_recipe(decoder, load_recipe("int4", ["quantize_weights.format=int4_g32"]))
    formats = {row.site: row.format for row in result.steps[-1].report.changed}
    assert formats["node_y[0]"] == "int8_g64"
    assert formats["node_h[0]"] == "int4_g32"
    assert result.steps[-1].step.overrides == {HEAD: "int8_g64"}  # as configured


@pytest.mark.parametrize("preset", preset_names())
def test_presets_name_the_head_by_its_role(preset):
    assert "lm_head" not in repr(load_recipe(preset).steps)
