"""Parts of pages that are written from the code are as the code says: `make docs` writes them."""

import re
from pathlib import Path

import pytest

from onnxq.catalog import format_choice
from onnxq.custom_ops.catalog import SPECS
from onnxq.errors import UsageError
from onnxq.pages import filled, parts_of

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "<!-- part " in page.read_text("utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_as_the_code_says(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run `make docs`"


def test_every_operator_has_a_section_with_its_body():
    part = parts_of((DOCS / "custom_ops.md").read_text(encoding="utf-8"))["operators"]
    assert re.findall(r"^### (\w+)", part, re.M) == [spec.name for spec in SPECS]
    for spec in SPECS:
        assert " ".join(spec.body.split()) in " ".join(part.split())


def test_measured_formats_exist():
    part = parts_of((DOCS / "formats.md").read_text(encoding="utf-8"))["distortion"]
    names = re.findall(r"^\| `(\w+)` \|", part, re.M)
    assert format_choice(names or ["int4"])


def test_what_stands_around_a_part_stays_and_an_unknown_part_is_an_error():
    page = "before\n<!-- part formats -->\nold\n<!-- end -->\nafter\n"
    now = filled(page)
    assert now.startswith("before\n<!-- part formats -->\n| format |")
    assert now.endswith("<!-- end -->\nafter\n")
    assert filled(now) == now
    with pytest.raises(UsageError, match="No part of a page is called 'prices'; known: formats"):
        filled(page.replace("formats", "prices"))
    measured = page.replace("formats", "distortion")
    assert filled(measured) == measured
