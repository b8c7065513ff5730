"""docs/transforms.md and docs/passes say what the registry holds: a page and a picture for each."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from onnxq.models.transform_pictures import PICTURES
from onnxq.passes.base import Promise
from onnxq.passes.recipe import load_recipe, preset_names
from onnxq.passes.registry import all_passes

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "transforms.md").read_text(encoding="utf-8")
ORDER = list(all_passes())
# The registry is in the order of a recipe: transforms are what stands between these two.
TRANSFORMS = ORDER[ORDER.index("clean") + 1 : ORDER.index("calibrate")]


def test_transforms_promise_the_same_function():
    assert {all_passes()[key].promise for key in TRANSFORMS} == {Promise.SAME_FUNCTION}


@pytest.mark.parametrize("key", TRANSFORMS)
def test_every_transform_has_a_page_that_says_what_it_takes_and_what_it_leaves(key):
    page = (DOCS / "passes" / f"{key}.md").read_text(encoding="utf-8")
    headings = [line.lower() for line in page.splitlines() if line.startswith("#")]
    assert key in headings[0]
    assert any("match" in line for line in headings)
    assert any("refuse" in line for line in headings)
    assert f"]({key}.svg)" in page
    assert len(page.splitlines()) <= 90


@pytest.mark.parametrize("key", TRANSFORMS)
def test_every_transform_has_a_picture_from_a_real_layer(key):
    path = DOCS / "passes" / f"{key}.svg"
    text = path.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert f">{key} on " in text
    assert len(text.encode()) < 60_000


def test_the_page_links_every_transform_and_the_command_draws_them():
    assert set(re.findall(r"\]\(passes/(\w+)\.md\)", PAGE)) == set(TRANSFORMS)
    assert set(TRANSFORMS) <= set(PICTURES)


def test_the_page_names_every_recipe_with_a_transform():
    table = PAGE.partition("| paper | recipe |")[2].partition("\n\n")[0]
    cells = [row.split("|")[2] for row in table.splitlines()[2:]]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    transforming = {
        name
        for name in preset_names()
        if any(step.key() in TRANSFORMS for step in load_recipe(name).steps)
    }
    assert named == transforming
