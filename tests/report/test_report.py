"""The page: what is on it is what the artifact and the measurements say."""

import html
import json
import re
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq.api import report
from onnxq.cli import app
from onnxq.errors import UsageError
from onnxq.evaluate.losses import PairedLoss
from onnxq.graph import save
from onnxq.model_pair import open_pair
from onnxq.passes.base import no_progress
from onnxq.report.charts import _Scale, bits_class
from onnxq.report.measures import _effects, _loss
from onnxq.runtime import open_session
from tests.five_layers import SITES, five_layers, five_samples, with_noise


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data, a model, and three artifacts of it."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "data").mkdir()
    for number, sample in enumerate(five_samples(8)):
        np.savez(folder / "data" / f"{number}.npz", **sample)
    save(five_layers(), folder / "model.onnx")
    for recipe in ("int4", "int8_static", "smoothquant_w8a8"):
        some = ["quantize_weights.format=int4_g64"] if recipe == "int4" else []
        out = folder / recipe
        onnxq.quantize(folder / "model.onnx", recipe, data=folder / "data", out=out, set=some)
    return folder


@pytest.fixture(scope="module")
def page(made):
    report([made / "int4"], made / "int4.html")
    return (made / "int4.html").read_text(encoding="utf-8")


def text_of(page):
    plain = re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page, flags=re.S)
    return " ".join(html.unescape(plain).split())


def test_nothing_comes_from_elsewhere_and_the_page_is_light(page):
    assert not re.search(r"(src|href)=|@import|url\(|https?://", page)
    assert len(page) < 200_000
    for title in (
        "Where the loss comes from",
        "Error and bits, site by site",
        "Size against loss",
        "Outputs side by side",
        "Speed and memory",
        "What was asked, and how it went",
        "Provenance",
    ):
        assert title in page


def test_the_figures_are_those_of_the_artifact_and_of_a_measurement(made, page):
    told = json.loads((made / "int4" / "onnxq.json").read_text())
    shown = text_of(page)
    assert told["source"]["sha256"]["model.onnx"] in shown
    size = told["files"]["model.onnx"]["bytes"]
    assert f"{size / 1e3:.3g} kB" in shown
    samples = five_samples(8)[-4:-2]
    with open_session(made / "model.onnx") as session:
        loss = PairedLoss(session, samples)
    with open_session(made / "int4" / "model.onnx") as session:
        decibels = -10 * np.log10(loss.of_session(session))
    assert f"{decibels:.3g} dB" in shown


def test_the_page_says_how_the_sites_that_were_tried_were_found(made):
    report([made / "int4"], made / "two.html", sites=2)
    shown = text_of((made / "two.html").read_text(encoding="utf-8"))
    assert "2 of 5 places were tried, first those with the largest relative error of the" in shown
    assert "which is a weak guess at what a site costs" in shown


def test_the_worst_site_is_the_one_that_is_broken(made):
    sizes = {**dict.fromkeys(SITES, 0.01), "layer_2": 1.0}
    changed = save(with_noise(five_layers(), sizes), made / "changed.onnx")
    pair = open_pair(made / "model.onnx", changed, data=five_samples())
    effects = _effects(pair, [], 48, no_progress)["effects"]
    assert next(iter(effects)) == "layer_2"
    assert effects["layer_2"] > 0.9 * _loss(pair)["whole"]


def test_copied_rows_are_recipes_that_quantize_that_site_better(made, page):
    rows = [html.unescape(text) for text in re.findall(r'data-copy="(\[\[pass.*?)"', page, re.S)]
    assert len(rows) == len(SITES)
    site = re.search(r"<tr><td><code>(layer_\d)</code>", page)[1]
    (row,) = tomllib.loads(rows[0])["pass"]
    assert row["use"] == "quantize_weights" and next(iter(row["overrides"])) == site
    setting = html.unescape(re.search(r'data-copy="--set (.*?)"', page)[1])
    some = ["quantize_weights.format=int4_g64", setting.strip("'")]
    done = onnxq.quantize(made / "model.onnx", "int4", set=some)
    formats = {one.site: one.format for one in done.quantized_sites}
    assert formats.pop(site) == "int8_g64" and set(formats.values()) == {"int4_g64"}


def test_without_a_run_the_page_tells_what_is_written(made, tmp_path):
    done = CliRunner().invoke(
        app, ["report", str(made / "smoothquant_w8a8"), "-o", str(tmp_path / "p.html"), "--no-run"]
    )
    assert done.exit_code == 0, done.output
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "Nothing was run for this page" in page and "Speed and memory" not in page
    assert "Activations before and after the transforms" in page


def test_a_comparison_marks_what_differs(made, tmp_path):
    names = ("int4", "int8_static")
    found = report([made / name for name in names], tmp_path / "both.html", run=False)
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert found.artifacts == names and not found.notes
    marked = re.findall(r'<tr class="differs"><th>([^<]+)', page)
    assert {"size", "formats", "recipe"} <= set(marked) and "made from" not in marked
    assert "The smallest is int4" in page and "Recipes" in page


def test_a_budget_gives_the_front_and_the_options(made, tmp_path):
    account = {
        "version": 1,
        "asked": {"bits": 4.5},
        "reached": {"bits": 4.4, "bytes": 13000, "predicted_loss": 0.01, "measured_loss": 0.012},
        "loss": "squared error",
        "measure": "h",
        "sites": [
            {
                "site": name,
                "format": "int4_g128",
                "bytes": 2300,
                "loss": number + 1.0,
                "options": [
                    {"format": "int4_g128", "bytes": 2300, "loss": number + 1.0},
                    {"format": "int8_channel", "bytes": 4400, "loss": 0.001},
                ],
            }
            for number, name in enumerate(SITES)
        ],
        "uniform": [{"format": "int4_g128", "bytes": 11000, "loss": 0.02}],
        "front": [{"bytes": 11000, "loss": 0.02}, {"bytes": 15000, "loss": 0.004}],
        "groups": [],
    }
    place = made / "int4" / "onnxq-budget.json"
    place.write_text(json.dumps(account))
    try:
        report([made / "int4"], tmp_path / "p.html", run=False)
    finally:
        place.unlink()
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "the best mix of formats for every size" in page and "bits 4.5" in text_of(page)
    assert re.search(r"<tr><td><code>(layer_\d)</code>", page)[1] == "layer_4"
    assert "store it as int8_channel" in page


def test_text_of_a_model_is_escaped(made, tmp_path):
    model = five_layers()
    model.graph[0].name = "<script>alert(1)</script>"
    out = tmp_path / "made"
    onnxq.quantize(save(model, tmp_path / "odd.onnx"), "int4", out=out)
    report([out], tmp_path / "p.html", run=False)
    assert "<script>alert" not in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_what_cannot_be_done_is_a_sentence(made, tmp_path):
    with pytest.raises(UsageError, match="given twice"):
        report([made / "int4", made / "int4"], tmp_path / "p.html")
    alone = save(five_layers(), tmp_path / "alone.onnx")
    with pytest.raises(UsageError, match="give its path"):
        report([alone], tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()
    report([alone], tmp_path / "p.html", run=False)
    assert "how it was made is not known" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_scales_and_colours():
    assert [value for value, _ in _Scale(0.0, 1.0).levels()] == pytest.approx(
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    )
    assert next(value for value, _ in _Scale(0.1, 10.0, is_log=True).levels()) == 0.1
    assert [bits_class(bits) for bits in (2.1, 3.2, 4.25, 8.1, 32, None)] == [
        "b2",
        "b3",
        "b4",
        "b8",
        "b16",
        "b16",
    ]
