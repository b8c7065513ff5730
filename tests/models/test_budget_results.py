"""The page of budgets: what is told of cells, without measuring any."""

import math

import numpy as np
import pytest

from onnxq.budget.menu import Option, SiteMenu
from onnxq.budget.plan import Problem
from onnxq.models.budget_page import determination, page_of, picture_of
from onnxq.models.budget_results import RANDOM_FORMATS, random_mix, told


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    cells = {"float": 3.1}
    for number in range(20):
        rise = rng.uniform(0.05, 1.0)
        cells[f"random{number}"] = {"predicted": rise, "loss": 3.1 + 1.05 * rise, "bits": 3.0}
    cells["uniform-trellis3_hyb_l12"] = {"perplexity": 30.0, "bits": 3.03}
    cells["mix-3.25"] = {"perplexity": 27.0, "bits": 3.249}
    cells["written-uniform-trellis3_hyb_l12"] = {"perplexity": 29.0, "bits": 3.03}
    cells["written-mix-3.25"] = {"perplexity": 26.0, "bits": 3.25}
    return cells


def test_the_page_tells_what_was_measured(found, tmp_path):
    page = tmp_path / "budget.md"
    page.write_text("# Budgets\n<!-- measured -->\nold\n<!-- end -->\nrest\n")
    page_of(page, found, "some tokens", peers=True)
    text = page.read_text()
    saved = 1 - (27 - math.exp(3.1)) / (30 - math.exp(3.1))
    row = f"| 3.25 | 27 at 3.249 | `trellis3_hyb_l12` 30 at 3.030 | {saved:.0%} | "
    of_files = 1 - (26 - math.exp(3.1)) / (29 - math.exp(3.1))
    row += f"26 at 3.250 | 29 at 3.030 | {of_files:.0%} | Q3_K 40 at"
    assert row in text
    del found["written-mix-3.25"]
    page_of(page, found, "some tokens", peers=True)
    assert f"{saved:.0%} | – | 29 at 3.030 | – |" in page.read_text()
    assert "old" not in text and text.endswith("rest\n")
    assert (tmp_path / "budget.svg").read_text().count("<circle") == 20


def test_determination_is_of_the_prediction_as_it_is():
    assert determination([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1
    assert determination([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) < 0
    assert picture_of([]).startswith("<svg")


def test_random_mixes_differ_in_their_mean():
    options = tuple(Option(format=n, nbytes=1 + i, loss=0.1) for i, n in enumerate(RANDOM_FORMATS))
    menus = tuple(SiteMenu(site=f"s{i}", weights=8, options=options) for i in range(50))
    problem = Problem(menus=menus)
    mixes = [random_mix(problem, number) for number in range(20)]
    assert mixes == [random_mix(problem, number) for number in range(20)]
    bits = [told(problem, mix)["bits"] for mix in mixes]
    assert np.std(bits) > 0.5
    assert told(problem, mixes[0])["predicted"] == pytest.approx(5.0)
