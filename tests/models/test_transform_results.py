"""Transforms by formats: one transform for a row, refusals as sentences, cells that stay."""

import functools
import json

import pytest

from onnxq.models import result_cells, results, transform_page, transform_results
from onnxq.models.point_results import POINTS
from onnxq.models.transform_grid import (
    FORMATS,
    PREPARE,
    ROTATIONS,
    TRANSFORMS,
    Format,
    Transform,
    is_in_grid,
    recipe_of,
)
from onnxq.models.transform_page import transform_part, transform_section
from onnxq.models.transform_results import (
    finished_transforms,
    measure_transforms,
    transform_tasks,
)
from onnxq.passes.registry import all_passes
from onnxq.runtime.machine import machine


def fixed(*rows):
    return Transform(rows=lambda fmt: rows)


INT3 = Format(weights="int3_g32")


@pytest.fixture
def grid(monkeypatch, loud_task):
    rows = {"none": fixed(), "smooth": TRANSFORMS["smooth"], "missing": fixed(("rotate_all", {}))}
    columns = {"W8A8 token": FORMATS["minilm"]["W8A8 token"], "W3": INT3}
    for module in (transform_results, transform_page):
        monkeypatch.setattr(module, "TRANSFORMS", rows)
    for module in (transform_results, transform_page):
        monkeypatch.setattr(module, "FORMATS", {"tiny": columns})
    monkeypatch.setattr(transform_results, "tasks", lambda: {"tiny": loud_task})


def test_smoothing_lowers_the_error_and_a_missing_pass_is_a_sentence(grid, tmp_path, loud_task):
    found = measure_transforms(loud_task, tmp_path)
    assert found["smooth"]["W8A8 token"]["metric"] < 0.5 * found["none"]["W8A8 token"]["metric"]
    assert found["smooth"]["W8A8 token"]["sqnr_db"] > found["none"]["W8A8 token"]["sqnr_db"]
    for cell in found["missing"].values():
        assert cell["refused"].startswith("RecipeError: There is no pass 'rotate_all'")


def test_a_static_column_tells_how_many_sites_kept_one_scale(
    grid, monkeypatch, tmp_path, loud_task
):
    columns = {"static": FORMATS["minilm"]["W8A8 static"], "token": INT3}
    for module in (transform_results, transform_page):
        monkeypatch.setattr(module, "FORMATS", {"tiny": columns})
    found = measure_transforms(loud_task, tmp_path)
    assert found["none"]["static"]["static"] == {"sites": 0, "of": 1}  # one channel is too loud
    assert found["smooth"]["static"]["static"] == {"sites": 1, "of": 1}
    assert found["none"]["token"]["static"] is None
    none, smooth = (tables_of(transform_section(loud_task, found))[0][2:][i] for i in (0, 1))
    assert (none[1][-4:], smooth[1][-4:]) == (" 0/1", " 1/1")
    assert none[2].endswith(")")


def test_cells_are_measured_once_and_a_lost_one_alone(grid, tmp_path, loud_task):
    found = measure_transforms(loud_task, tmp_path)
    before = loud_task.runs
    assert measure_transforms(loud_task, tmp_path) == found
    assert loud_task.runs == before
    (tmp_path / "transforms" / "smooth-w3.json").unlink()
    assert "W3" not in finished_transforms(loud_task, tmp_path)["smooth"]
    assert measure_transforms(loud_task, tmp_path, rows=["none"])["smooth"].keys() == {"W8A8 token"}
    assert measure_transforms(loud_task, tmp_path)["smooth"]["W3"]["metric"] > 0
    assert loud_task.runs == before + 1


def test_a_transform_that_changed_nothing_is_no_figure(grid, monkeypatch, tmp_path, loud_task):
    idle = fixed(("smooth_activations", {"exclude": ("*",)}))
    monkeypatch.setattr(transform_results, "TRANSFORMS", {"smooth": idle})
    cell = measure_transforms(loud_task, tmp_path)["smooth"]["W3"]
    assert cell["refused"].startswith("UnsupportedGraph: smooth_activations changed nothing: ")


def test_a_cell_of_another_grid_is_measured_anew(grid, monkeypatch, tmp_path, loud_task):
    found = measure_transforms(loud_task, tmp_path, rows=["none"])["none"]
    columns = {"W8A8 token": FORMATS["minilm"]["W8A8 token"], "W3": Format(weights="int4_g32")}
    monkeypatch.setattr(transform_results, "FORMATS", {"tiny": columns})
    assert finished_transforms(loud_task, tmp_path)["none"].keys() == {"W8A8 token"}
    again = measure_transforms(loud_task, tmp_path, rows=["none"])["none"]
    assert again["W8A8 token"] == found["W8A8 token"]
    assert again["W3"]["metric"] < found["W3"]["metric"]


def test_what_did_nothing_beside_what_did_is_told(grid, monkeypatch, tmp_path, loud_task):
    both = fixed(("smooth_activations", {}), ("insert_online_hadamard", {}))
    for module in (transform_results, transform_page):
        monkeypatch.setattr(module, "TRANSFORMS", {"both": both})
    found = measure_transforms(loud_task, tmp_path)
    assert "metric" in found["both"]["W3"]
    lines = transform_section(loud_task, found)
    assert any(one.startswith("- both: insert_online_hadamard changed nothing: ") for one in lines)


def test_a_format_that_refuses_leaves_the_others(grid, monkeypatch, tmp_path, loud_task):
    columns = {"good": INT3, "bad": Format(weights="int5.5_g32")}
    monkeypatch.setattr(transform_results, "FORMATS", {"tiny": columns})
    row = measure_transforms(loud_task, tmp_path, rows=["none"])["none"]
    assert "metric" in row["good"]
    assert "int5.5_g32" in row["bad"]["refused"]


def test_a_transform_runs_once_for_formats_that_ask_the_same(
    grid, monkeypatch, tmp_path, loud_task
):
    seen = []
    real = transform_results.run_recipe

    def counted(model, recipe, **options):
        seen.append(recipe.name)
        return real(model, recipe, **options)

    monkeypatch.setattr(transform_results, "run_recipe", counted)
    measure_transforms(loud_task, tmp_path, rows=["none"])
    assert seen == ["none", "formats", "formats"]
    seen.clear()
    measure_transforms(loud_task, tmp_path, rows=["smooth"])  # AWQ for weights alone
    assert seen == ["smooth", "formats", "smooth", "formats"]


def test_learned_clips_are_not_cut_again():
    fmt = Format(weights="int4_g64", bits=4, clip=0.9, by_gptq=True)
    assert fmt.rows(clip_is_learned=False)[0][1]["clip"] == 0.9
    assert "clip" not in fmt.rows(clip_is_learned=True)[0][1]
    assert [key for key, _ in fmt.rows(clip_is_learned=True)] == [
        "quantize_activations",
        "quantize_weights",
    ]


def made_up():
    row = {fmt: {"metric": 31.0, "kl": 0.1} for fmt in FORMATS["smollm2"]}
    missing = {fmt: {"refused": "RecipeError: no such pass"} for fmt in FORMATS["smollm2"]}
    return {
        "source": {"metrics": {"perplexity": 28.95}, "samples": {"model": 32}},
        **dict.fromkeys(TRANSFORMS, row),
        "KLT R1": {fmt: {"metric": 30.0, "kl": 0.1} for fmt in FORMATS["smollm2"]},
        "flat": missing,
        "ost": missing,
        "affine": {**row, "W8A8 static": {"refused": "CalibrationError: no range"}},
    }


def tables_of(lines):
    tables = [[]]
    for line in lines:
        if line[:1] == "|":
            tables[-1].append([cell.strip() for cell in line.split("|")[1:-1]])
        elif tables[-1]:
            tables.append([])
    return tables


def test_a_row_a_transform_a_column_a_format():
    first, second, *_ = tables_of(transform_section(transform_tasks()["smollm2"], made_up()))
    assert [row[0] for row in first[2:]] == list(TRANSFORMS)
    assert first[0][1:] == list(FORMATS["smollm2"])
    assert first[2][1] == "31 (0.1)"
    assert [row[0] for row in second[2:]] == list(ROTATIONS)
    assert second[2][1] == "30 / 31"


def test_refusals_are_dashes_and_each_reason_is_told_once():
    lines = transform_section(transform_tasks()["smollm2"], made_up())
    rows = {row[0]: row[1:] for row in tables_of(lines)[0]}
    assert set(rows["flat"]) == {"–"}
    assert "- flat; ost: RecipeError: no such pass" in lines
    assert "- affine in W8A8 static: CalibrationError: no range" in lines


def test_the_part_ends_the_page_and_is_absent_without_cells():
    solved = {"smollm2": {"source": made_up()["source"], "int4_g128": {}}}
    cell = {"metric": 30.0, "bits": 4.17, "seconds": 1.0, "kl": 0.1}
    rounded = {"smollm2": {"source": made_up()["source"], next(iter(POINTS)): {"cell": cell}}}
    page = functools.partial(results.page, {}, solvers=solved, points=rounded)
    parts = ["## Solvers", "## Formats of points", "## Transforms"]
    lines = page(transforms={"smollm2": made_up()}).splitlines()
    assert [line for line in lines if line.startswith("## ")] == parts
    lines = page(transforms={"smollm2": {}}).splitlines()
    assert [line for line in lines if line.startswith("## ")] == parts[:-1]
    assert transform_part({}) == []


def test_every_row_and_column_takes_the_options_of_its_passes():
    for columns in FORMATS.values():
        for fmt in columns.values():
            recipe_of("columns", fmt.rows(clip_is_learned=False))
            for name, transform in TRANSFORMS.items():
                recipe_of(
                    name, [*PREPARE, *(r for r in transform.rows(fmt) if r[0] in all_passes())]
                )
    assert set(transform_tasks()) == set(FORMATS)


def test_large_models_have_every_row_at_four_bits_and_every_column_of_the_widest_rows():
    columns = FORMATS["smollm2"]
    assert all(is_in_grid("smollm2", row, "W4A4 g64") for row in TRANSFORMS)
    for row in ("none", "smooth", "Hadamard R1, R2, R3, R4", "KLT R1, R2, R3, R4"):
        assert all(is_in_grid("smollm2", row, column) for column in columns)
    assert not is_in_grid("smollm2", "KLT R1", "W3 g128")
    assert not is_in_grid("smollm2", "flat", "W8A8 token")
    assert is_in_grid("digits-vit", "flat", "W8A8 token")


def test_a_half_written_cell_is_no_cell(tmp_path):
    path = tmp_path / "folder" / "cell.json"
    result_cells.keep(path, {"metric": 1.0})
    found = json.loads(path.read_text())
    assert found.pop("machine") == machine() and found.pop("date")
    assert found == {"metric": 1.0}
    assert [one.name for one in path.parent.iterdir()] == ["cell.json"]
