"""Measurements outlive the work folder: beside the page, with the machine and the day."""

from onnxq.models.result_cells import keep, kept
from onnxq.models.result_store import gather_cells, measured_on, restore_cells


def test_cells_come_back_where_the_work_folder_is_lost(tmp_path):
    work, store = tmp_path / "work", tmp_path / "results.json"
    keep(work / "smollm2" / "transforms" / "none-w4.json", {"metric": 30.5})
    keep(work / "smollm2" / "int8.json", {"metrics": {"perplexity": 27.9}})
    keep(work / "smollm2" / "int8" / "onnxq.json", {"an artifact": "is no measurement"})
    gather_cells(work, store, ["transforms", "points"], ["source", "int8"])
    restore_cells(store, tmp_path / "other")
    found = sorted(path for path in (tmp_path / "other").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "other")) for path in found] == [
        "smollm2/int8.json",
        "smollm2/transforms/none-w4.json",
    ]
    assert kept(found[1]) == kept(work / "smollm2" / "transforms" / "none-w4.json")


def test_what_was_measured_later_stays(tmp_path):
    work, store = tmp_path / "work", tmp_path / "results.json"
    keep(work / "minilm" / "int8.json", {"metric": 1})
    gather_cells(work, store, [], ["int8"])
    keep(work / "minilm" / "int8.json", {"metric": 2})
    restore_cells(store, work)
    assert (kept(work / "minilm" / "int8.json") or {})["metric"] == 2
    restore_cells(tmp_path / "nothing.json", work)


def test_machines_are_told_once_with_their_days():
    cells = [
        {"machine": "B", "date": "2026-01-02"},
        {"machine": "A", "date": "2026-01-03"},
        {"machine": "B", "date": "2026-01-01"},
        {"metric": 1.0},
    ]
    assert measured_on(cells) == "Measured on A (2026-01-03); B (2026-01-01, 2026-01-02)."
    assert measured_on([{"metric": 1.0}]) == ""
