"""Solvers by formats: what is finished stays, refusals are sentences, the page shows both."""

import functools
import json

import pytest

from onnxq.models import result_cells, results, solver_results
from onnxq.models.solver_results import (
    GRID,
    SOLVERS,
    finished_cells,
    measure_solvers,
    solver_part,
    solver_section,
    solver_tasks,
)


def made_up(kl=True):
    row = {"metric": 30.25, "seconds": 12.0, "bits": 4.25, "sqnr_db": 20.0}
    if kl:
        row["kl"] = 0.125
    return {
        "source": {"metrics": {"perplexity": 28.95}, "samples": {"model": 64}},
        "int4_g128": dict.fromkeys(SOLVERS, row),
        "int3_g128": {**dict.fromkeys(SOLVERS, row), "GPTQ": {"refused": "FormatError: why"}},
    }


def table_of(lines):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]


def test_a_row_for_each_solver_and_three_figures_for_each_format():
    rows = table_of(solver_section(solver_tasks()["smollm2"], made_up()))
    assert [row[0] for row in rows[2:]] == list(SOLVERS)
    assert {len(row) for row in rows} == {1 + 3 * 2}
    assert rows[0][1:4] == ["`int4_g128`", "KL", "s"]
    assert rows[2][1:4] == ["30.25", "0.125", "12"]


def test_without_scores_the_distance_is_the_signal_to_noise_ratio():
    rows = table_of(solver_section(solver_tasks()["smollm2"], made_up(kl=False)))
    assert rows[0][2] == "SQNR dB"
    assert rows[2][2] == "20"


def test_a_refusal_is_listed_and_leaves_dashes():
    lines = solver_section(solver_tasks()["smollm2"], made_up())
    assert "- `int3_g128`, GPTQ: refused: FormatError: why" in lines
    row = next(row for row in table_of(lines) if row[0] == "GPTQ")
    assert row[1:] == ["30.25", "0.125", "12", "–", "–", "–"]


def test_the_page_says_how_much_calibration_the_cells_had():
    text = "\n".join(solver_part({"smollm2": made_up()}))
    assert "## Solvers" in text
    assert "28.95 in float32. Calibration samples: 64 (model)." in text
    assert solver_tasks()["smollm2"].calibration_windows == 32
    assert set(solver_tasks()) == set(GRID)


def test_the_part_is_on_the_page_and_absent_without_cells():
    page = functools.partial(results.page, {}, points={}, transforms={})
    assert page(solvers={"smollm2": made_up()}).count("## Solvers") == 1
    assert "## Solvers" not in page(solvers={"smollm2": {}})


@pytest.fixture
def grid(monkeypatch):
    chosen = {name: SOLVERS[name] for name in ("nearest", "GPTQ")}
    monkeypatch.setattr(solver_results, "SOLVERS", chosen)
    monkeypatch.setattr(solver_results, "GRID", {"tiny": ("int3_g32", "int4_g32")})


def test_cells_are_measured_once_and_the_data_lower_the_error(grid, tmp_path, mixed_task):
    found = measure_solvers(mixed_task, tmp_path)
    assert set(found) == {"source", "int3_g32", "int4_g32"}
    for fmt in ("int3_g32", "int4_g32"):
        assert found[fmt]["GPTQ"]["metric"] < found[fmt]["nearest"]["metric"]
        assert found[fmt]["GPTQ"]["sqnr_db"] > found[fmt]["nearest"]["sqnr_db"]
    before = mixed_task.runs
    assert measure_solvers(mixed_task, tmp_path) == found
    assert mixed_task.runs == before


def test_vectors_have_no_divergence(grid, monkeypatch, tmp_path, mixed_task):
    assert "kl" in measure_solvers(mixed_task, tmp_path / "scores")["int4_g32"]["GPTQ"]
    monkeypatch.setattr(result_cells, "_EMBEDDERS", {"tiny"})
    assert "kl" not in measure_solvers(mixed_task, tmp_path / "vectors")["int4_g32"]["GPTQ"]


def test_a_lost_cell_is_measured_alone_and_a_half_done_grid_is_shown(grid, tmp_path, mixed_task):
    assert finished_cells(mixed_task, tmp_path) == {}
    measure_solvers(mixed_task, tmp_path)
    lost = tmp_path / "solvers" / "int4_g32-gptq.json"
    kept = tmp_path / "solvers" / "int4_g32-nearest.json"
    lost.unlink()
    kept.write_text(json.dumps({"metric": 1.0}))
    found = finished_cells(mixed_task, tmp_path)
    assert list(found["int4_g32"]) == ["nearest"]
    assert table_of(solver_section(mixed_task, found))[3][4:] == ["–", "–", "–"]
    again = measure_solvers(mixed_task, tmp_path)
    assert again["int4_g32"]["nearest"] == {"metric": 1.0}
    assert again["int4_g32"]["GPTQ"]["metric"] > 0
