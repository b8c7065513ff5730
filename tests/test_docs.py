"""docs/solvers.md says what the code does: every solver, every option, every default."""

import dataclasses
import re
from pathlib import Path

import pytest

from onnxq.calibration.token_weights import parse_token_weights
from onnxq.passes.learned_rounding import all_solvers
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import load_recipe, preset_names

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "solvers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
NOT_ABOUT_SOLVERS = {
    "format",
    "write",
    "embedding_format",
    "overrides",
    "exclude",
    "accuracy_level",
}


def options_in(section):
    """Name and default of every row of the table of options."""
    table = re.search(r"\| option \| default \|.*?\n\|[-|]+\|\n((?:\|.*\n?)+)", SECTIONS[section])
    assert table is not None, section
    return dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", table[1], re.M))


@pytest.mark.parametrize("name", list(all_solvers()))
def test_every_solver_has_a_section_with_its_options_and_defaults(name):
    documented = options_in(f"`{name}`")
    assert documented == {key: str(value) for key, value in all_solvers()[name].options.items()}


def test_every_solver_section_is_of_a_solver():
    assert {name.strip("`") for name in SECTIONS if name.startswith("`")} == set(all_solvers())


def test_options_of_the_pass_have_their_defaults():
    given = QuantizeWeights()
    fields = {field.name for field in dataclasses.fields(given)} - NOT_ABOUT_SOLVERS
    documented = options_in("In a recipe")
    assert documented == {name: str(getattr(given, name)) for name in fields}


def test_token_weights_of_the_page_are_those_that_exist():
    table = SECTIONS["In a recipe"].partition("| `token_weights` | w_t |")[2]
    names = re.findall(r"^\| `([\w:]+)` \|", table, re.M)
    assert len(names) == 6
    for name in names:
        parse_token_weights(name.replace("N", "4"))


def test_recipes_of_the_page_use_the_solver_and_format_it_says():
    rows = re.findall(r"^\| `(int\w+)` \| `(\w+)`.* \| `(int\w+)` \|", PAGE, re.M)
    solving = {}
    # The others combine a solver with transforms and activations; docs/passes is about those.
    for name in (name for name in preset_names() if name.startswith("int")):
        last = load_recipe(name).steps[-1]
        if isinstance(last, QuantizeWeights) and last.solver != "nearest":
            solving[name] = (last.solver, last.format)
    assert {name: (solver, fmt) for name, solver, fmt in rows} == solving
