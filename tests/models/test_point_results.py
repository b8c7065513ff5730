"""The table of formats of points: measured once, refusals are sentences, the page says bits."""

import pytest

from onnxq.models import point_results
from onnxq.models.point_results import finished_points, measure_points, point_part

ROWS = {
    "int3_channel, nearest": {"format": "int3_channel", "solver": "nearest"},
    "int5_channel, GPTQ": {"format": "int5_channel"},
    "none": {"format": "int9_channel"},
}


@pytest.fixture
def rows(monkeypatch, mixed_task):
    monkeypatch.setattr(point_results, "POINTS", ROWS)
    monkeypatch.setattr(point_results, "ROTATED", (("clean", {}), ("fold_norm_scales", {})))
    monkeypatch.setattr(point_results, "transformed", _only_prepared)
    monkeypatch.setattr(point_results, "point_tasks", lambda: {mixed_task.name: mixed_task})


def _only_prepared(name, rows, given):
    from onnxq.graph import load

    return {role: load(path) for role, path in given[0].items()}, 0.0, []


def test_cells_are_measured_once(rows, tmp_path, mixed_task):
    found = measure_points(mixed_task, tmp_path)
    coarse, fine = (found[name]["cell"] for name in list(ROWS)[:2])
    assert fine["metric"] < coarse["metric"]
    assert 3 < coarse["bits"] < 5 < fine["bits"]
    assert found["none"]["cell"]["refused"].startswith(
        "FormatError: 'int9_channel' is not a format"
    )
    before = mixed_task.runs
    assert measure_points(mixed_task, tmp_path) == found == finished_points(mixed_task, tmp_path)
    assert mixed_task.runs == before


def test_other_settings_are_measured_anew(rows, monkeypatch, tmp_path, mixed_task):
    name = "int3_channel, nearest"
    old = measure_points(mixed_task, tmp_path, names=[name])[name]["cell"]
    monkeypatch.setattr(point_results, "POINTS", {name: {"format": "int6_channel"}})
    assert finished_points(mixed_task, tmp_path).keys() == {"source"}
    assert measure_points(mixed_task, tmp_path)[name]["cell"]["metric"] < old["metric"]


def test_the_page_shows_bits_and_refusals(rows, tmp_path, mixed_task):
    assert point_part({}) == []
    found = measure_points(mixed_task, tmp_path)
    lines = point_part({mixed_task.name: found})
    assert any(line.startswith("| int3_channel, nearest | ") for line in lines)
    assert any(line.startswith("- none: FormatError: ") for line in lines)
