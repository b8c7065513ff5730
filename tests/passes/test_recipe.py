"""A recipe is what its file says; a wrong word in it is named with the nearest right one."""

import pytest

from onnxq.errors import RecipeError
from onnxq.passes.recipe import load_recipe, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_says_what_it_gives(name):
    recipe = load_recipe(name)
    assert recipe.summary and recipe.sources and recipe.steps


def test_a_row_sets_fields_and_an_override_changes_them():
    base = load_recipe("int4").steps[-1]
    changed = load_recipe("int4", ["quantize_weights.format=int4_g32"]).steps[-1]
    assert base.format == "int4_g128"
    assert changed.format == "int4_g32"
    assert changed.search == base.search


def test_override_values_are_read_as_toml():
    step = load_recipe(
        "int4", ["quantize_weights.accuracy_level=0", 'quantize_weights.exclude=["a*", "b"]']
    ).steps[-1]
    assert step.accuracy_level == 0
    assert step.exclude == ("a*", "b")


@pytest.mark.parametrize(
    ("source", "overrides", "sentence"),
    [
        ("int44", [], "There is no recipe 'int44'; did you mean 'int4'?"),
        ("int4", ["quantize_weights.fromat=int4_g32"], "no key 'fromat'; did you mean 'format'?"),
        ("int4", ["quantize_weight.format=x"], "no pass 'quantize_weight'; did you mean"),
        ("int4", ["format=x"], "is not of the form pass.key=value"),
        ("int4", ["quantize_weights.accuracy_level=9"], "accuracy_level = 9 is not valid"),
        ("missing.toml", [], "missing.toml cannot be read"),
        ("int4", ["quantize_weights.format.bits=4"], "'int4_g128', which has no entry 'bits'"),
        ("int4_gptq", ["quantize_weights.solver_options.dampng=1"], "did you mean 'damping'"),
    ],
)
def test_a_wrong_word_is_refused_with_a_sentence(source, overrides, sentence):
    with pytest.raises(RecipeError, match=sentence.replace("?", r"\?").replace("*", r"\*")):
        load_recipe(source, overrides)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pass = 3 +", "is not valid TOML"),
        ("[[passes]]\nuse='clean'", "unknown key 'passes'; did you mean 'pass'?"),
        ("summary = 'x'", r"has no \[\[pass\]\] rows"),
        ("[[pass]]\nuse='cleen'", "unknown pass 'cleen'; did you mean 'clean'?"),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=sentence.replace("?", r"\?")):
        load_recipe(path)


def test_a_recipe_written_out_reads_back_the_same(tmp_path):
    recipe = load_recipe("int4", ["quantize_weights.format=int4_g64_asym"])
    values = recipe.to_dict()
    assert values["pass"][-1]["format"] == "int4_g64_asym"
    assert [row["use"] for row in values["pass"]] == [step.key() for step in recipe.steps]


def test_an_entry_of_a_table_can_be_overridden():
    recipe = load_recipe("int4_gptq", ["quantize_weights.solver_options.damping=0.05"])
    assert recipe.steps[-1].solver_options == {"damping": 0.05}
    recipe = load_recipe("int4_gptq", ["quantize_weights.overrides.*down_proj*=int8_channel"])
    assert recipe.steps[-1].overrides == {
        "@head": "int8_g64",
        "*down_proj*": "int8_channel",
    }
