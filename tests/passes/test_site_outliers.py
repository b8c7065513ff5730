"""Outliers before and after a pass: measured by the runner, never in its way."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest

from onnxq.calibration import values as calibration_values
from onnxq.errors import UnsupportedGraph
from onnxq.graph import find_sites, read_weight, replace_weight
from onnxq.graph.stage import Stage
from onnxq.passes import runner
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport
from onnxq.passes.recipe import Recipe
from onnxq.passes.runner import run_recipe
from onnxq.passes.site_outliers import OutlierWatch, measure_outliers
from onnxq.tables import Console, artifact

TEXT = """main (float[n, 16] x) => (float[n, 8] y) {
  s = Mul(x, g)
  h = MatMul(s, w1)
  r = Relu(h)
  y = MatMul(r, w2)
}"""
LOUD = np.ones(16, np.float32)
LOUD[3] = 40.0


@pytest.fixture
def model(build):
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((16, 24)).astype(np.float32)
    w2 = rng.standard_normal((24, 8)).astype(np.float32)
    model = build(TEXT, g=LOUD, w1=w1 / LOUD[:, None], w2=w2)
    for node, name in zip(model.graph, ("scale", "first", "act", "second"), strict=True):
        node.name = name
    return model


@pytest.fixture
def samples():
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((20, 16)).astype(np.float32)} for _ in range(6)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level(Pass):
    """Move the scale of `LOUD` from the activation into the weight behind it."""

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION
    moves_outliers: ClassVar[bool] = True

    def call(self, model, context: Context) -> PassReport:
        graph = model.graph
        scale, weight = graph.initializers["g"], graph.initializers["w1"]
        old, rows = read_weight(scale), read_weight(weight)
        if (old == 1).all():
            return PassReport(modified=False)
        for value, array in ((scale, old / old), (weight, rows * old[:, None])):
            replace_weight(
                value, shape=array.shape, dtype=value.dtype, compute=lambda array=array: array
            )
        return PassReport(modified=True, sites=(SiteReport(site="first"),))


class Refused(Level):
    """Leaves a model that the samples no longer fit."""

    promise: ClassVar[Promise] = Promise.CLOSE

    def call(self, model, context):
        return PassReport(modified=True)


def recipe(*steps):
    return Recipe(name="try", steps=steps)


def test_a_moved_scale_is_seen_before_and_after(model, samples):
    result = run_recipe(model, recipe(Level()), samples=samples)
    shift = result.steps[0].outliers
    (old, new), other = (
        next(p for p in shift.pairs if p[0].site == s) for s in ("first", "second")
    )
    # One of 16 channels holds nearly all: √16; then 16 Gaussians.
    assert old.activation.row_max_to_rms == pytest.approx(4.0, rel=0.1)
    assert 1.5 < new.activation.row_max_to_rms < 2.3
    assert old.activation.qsur < -4.0 < new.activation.qsur
    assert new.weight.max_to_rms < old.weight.max_to_rms * 1.2
    np.testing.assert_allclose(*(one.activation.max_to_rms for one in other), rtol=1e-4)


def test_the_report_keeps_every_site_and_a_summary(model, samples):
    step = run_recipe(model, recipe(Level()), samples=samples).steps[0].to_dict()
    found = json.loads(json.dumps(step, allow_nan=False))["outliers"]
    assert [row["site"] for row in found["sites"]] == ["first", "second"]
    first = found["sites"][0]["activation"]
    worst = found["summary"]["activation"]["row_max_to_rms"]
    assert worst["worst_before"] == max(
        row["activation"]["before"]["row_max_to_rms"] for row in found["sites"]
    )
    assert first["before"]["qsur"] < first["after"]["qsur"] <= 0
    assert first["before"]["rows"] == 2 * 20


def test_other_passes_and_unchecked_runs_measure_nothing(model, samples):
    quiet = dataclasses.make_dataclass("Quiet", [], bases=(Level,), frozen=True)
    quiet.moves_outliers = False
    assert run_recipe(model, recipe(quiet()), samples=samples).steps[0].outliers is None
    quiet.gives_stage = Stage.TRANSFORMED  # transforms are always measured
    assert run_recipe(model, recipe(quiet()), samples=samples).steps[0].outliers is not None
    unchecked = run_recipe(model, recipe(Level()), samples=samples, check="off")
    assert unchecked.steps[0].outliers is None


def test_without_data_the_weights_are_measured(model):
    (pair, _) = run_recipe(model, recipe(Level())).steps[0].outliers.pairs
    assert pair[0].activation is None
    assert pair[0].reason == "there are no data"
    assert pair[0].weight.rows == 24


def test_what_one_pass_left_is_not_measured_again(model, samples, monkeypatch):
    counted = []

    class Counting(OutlierWatch):
        def _measured(self, model):
            counted.append(model)
            return super()._measured(model)

    monkeypatch.setattr(runner, "OutlierWatch", Counting)
    run_recipe(model, recipe(Level(), Level(), Level()), samples=samples)
    assert len(counted) == 2


def test_a_refusal_of_the_measurement_is_a_note(model, samples, monkeypatch):
    def refuse(*args, **options):
        raise UnsupportedGraph("the runtime will not")

    monkeypatch.setattr("onnxq.passes.site_outliers.visit_values", refuse)
    step = run_recipe(model, recipe(Level()), samples=samples).steps[0].to_dict()
    assert step["outliers"] is None
    assert step["notes"] == ["outliers were not measured: the runtime will not"]


def test_a_renamed_site_is_found_by_its_weight(model, samples):
    watch = OutlierWatch(samples)
    watch.before(model)
    model.graph[1].name = "another"
    pairs = {new.site: old.site for old, new in watch.after(model).pairs}
    assert pairs == {"another": "first", "second": "second"}


def test_convolutions_are_measured_by_channel(build):
    model = build(
        "main (float[n,3,8,8] x) => (float[n,4,8,8] y) { y = Conv<pads = [1,1,1,1]>(x, w) }",
        w=np.ones((4, 3, 3, 3), np.float32),
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    x[:, 1] *= 100
    (found,) = measure_outliers(model, [{"x": x}]).values()
    assert found.activation.columns == 3
    assert found.activation.rows == 2 * 8 * 8
    assert found.activation.row_max_to_rms == pytest.approx(3**0.5, rel=0.05)
    assert found.weight.columns == 27


def test_small_budgets_give_the_same_figures(model, samples, monkeypatch):
    whole = measure_outliers(model, samples)
    opened = []
    real = calibration_values.open_session
    monkeypatch.setattr(
        calibration_values,
        "open_session",
        lambda *args, **options: opened.append(1) or real(*args, **options),
    )
    monkeypatch.setattr(
        calibration_values.visit_values, "__kwdefaults__", {"budget": 1, "threads": None}
    )
    assert measure_outliers(model, samples) == whole
    assert len(opened) == 3  # the shapes, then each of two values alone


def test_sites_without_a_constant_weight_are_passed_over(build):
    model = build(
        "main (float[4, 4] x) => (float[4, 4] y) { h = MatMul(x, x) y = MatMul(h, w) }",
        w=np.eye(4, dtype=np.float32),
    )
    names = [site.name for site in find_sites(model)]
    found = measure_outliers(model, [{"x": np.ones((4, 4), np.float32)}])
    assert len(names) == 2
    assert list(found) == names[1:]


def test_the_table_shows_a_row_for_the_pass(model, samples):
    step = run_recipe(model, recipe(Level()), samples=samples).steps[0].to_dict()
    console = Console(record=True, width=200, quiet=False)
    with console.capture() as shown:
        artifact(
            console,
            {
                "recipe": {"name": "try"},
                "steps": [step],
                "files": {},
                "verification": {"outputs": "off"},
            },
        )
    text = shown.get()
    assert "outliers before → after" in text
    assert "max/rms of a token" in text
    assert text.count(" → ") >= 6
