"""The page of targets: a row for each file and form, a column for each target, sentences below."""

import numpy as np
import pytest

from onnxq.errors import ArtifactError, UsageError
from onnxq.export.target import DeploymentTarget, Verdicts
from onnxq.export.targets import TARGETS
from onnxq.graph import load, save
from onnxq.models import target_cells
from onnxq.models.registry import tasks
from onnxq.models.result_cells import keep_as_is
from onnxq.models.target_cells import FORMS, forms_of, make_artifacts, measure_cell
from onnxq.models.targets_page import WHEN, targets_page
from onnxq.models.targets_results import cell_file, finished_cells, target_for
from onnxq.runtime import open_session
from tests.two_layers import two_layers

BUILT = {
    "bytes": 2_500_000, "unclean": {}, "ran": 2, "equal": False, "sqnr_db": 41.4,
    "relative_error": 0.0031, "machine": "box", "date": "2026-11-30",
}  # fmt: skip


class Two:
    """A task whose only file has two matrix products."""

    name = "two"

    def built(self, work):
        path = work / "source" / "model.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True)
            save(two_layers(np.random.default_rng(1)), path)
        return {"model": path}

    def held_back(self, models):
        with open_session(models["model"]) as session:
            (spec,) = session.inputs
        generator = np.random.default_rng(0)
        size = load(models["model"]).graph.inputs[0].shape[-1]
        return {
            "model": [
                {spec.name: generator.standard_normal((n, size)).astype(np.float32)}
                for n in (1, 3, 5)
            ]
        }


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(target_cells, "task", lambda name: Two())


def measured(tmp_path, target):
    make_artifacts("two", "int8_dynamic", tmp_path)
    return measure_cell("two", "int8_dynamic", "model", target, tmp_path)


def test_what_is_built_for_the_cpu_computes_the_same(two, tmp_path):
    cell = measured(tmp_path, target_for("two", "model", "onnxruntime-cpu"))
    assert cell["equal"] and cell["sqnr_db"] is None and cell["relative_error"] == 0
    assert cell["ran"] == 2 and cell["unclean"] == {} and cell["bytes"] > 0
    assert sum(cell["sites"].values()) == 2


class Worse(DeploymentTarget):
    """Adds a hundredth of the largest output to every entry of it."""

    name, title = "worse", "worse"

    def check(self, model):
        return Verdicts(target=self.name, sites=[])

    def build(self, source, staging):
        (staging / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
        return {}

    def run(self, folder, samples):
        with open_session(folder / "model.onnx") as session:
            found = [session.run(sample) for sample in samples]
        largest = max(float(np.abs(v).max()) for one in found for v in one.values())
        return [{k: v + np.float32(largest / 100) for k, v in one.items()} for one in found]


def test_what_computes_something_else_is_told_by_how_much(two, tmp_path):
    cell = measured(tmp_path, Worse())
    assert not cell["equal"] and cell["relative_error"] == pytest.approx(0.01, rel=1e-3)
    assert 20 < cell["sqnr_db"] < 40


class Refusing(Worse):
    """Builds nothing."""

    def build(self, source, staging):
        raise ArtifactError("no paper")


class Absent(Worse):
    """Cannot be run."""

    def run(self, folder, samples):
        raise UsageError("it is elsewhere")


def test_a_refusal_is_a_cell_and_so_is_what_cannot_be_run(two, tmp_path):
    assert measured(tmp_path, Refusing())["refused"] == "no paper"
    cell = measured(tmp_path, Absent())
    assert cell["not_run"] == "it is elsewhere" and cell["bytes"] > 0


def test_every_target_has_a_line_and_every_form_has_targets():
    assert set(WHEN) == set(TARGETS)
    assert all(set(form.targets) <= set(TARGETS) for form in FORMS.values())
    natural = {target for name in tasks() for targets in forms_of(name).values()
               for target in targets}  # fmt: skip
    assert natural == set(TARGETS)


def test_rows_refusals_and_rules():
    parser = "The parser refuses node 'a' at 12: no"
    cells = {
        ("one", "model", "int4", "onnxruntime-cpu"): {**BUILT, "equal": True, "sqnr_db": None},
        ("one", "model", "int4", "web"): {**BUILT, "unclean": {"web-every-run": 3}},
        ("one", "model", "int8_tensorrt", "tensorrt-rtx"): {"refused": parser, "unclean": {}},
        ("two", "encoder", "int8_tensorrt", "tensorrt-rtx"): {
            "refused": parser.replace("12", "7"), "unclean": {"opset": 1},
        },
        ("two", "encoder", "int4", "onnxruntime-cuda"): {
            "bytes": 1_000_000, "unclean": {}, "not_run": "no GPU",
        },
        ("two", "encoder", "w4a8", "recipe"): {
            "refused": "no stream to rotate in /tmp/here/model.onnx"
        },
    }  # fmt: skip
    page = targets_page(cells)
    lines = page.splitlines()
    order = list(TARGETS)

    def row(label, form):
        (line,) = [line for line in lines if line.startswith(f"| {label} | `{form}` |")]
        return dict(zip(order, line.strip("| ").split(" | ")[2:], strict=True))

    first = row("`one`", "int4")
    assert first["onnxruntime-cpu"] == "2.5 MB; same; clean"
    assert first["web"] == "2.5 MB; 41 dB, 3e-03; 3 unclean"
    assert first["genai"] == "–"
    assert row("`two` encoder", "int8_tensorrt")["tensorrt-rtx"] == "refused; 1 unclean"
    assert row("`two` encoder", "int4")["onnxruntime-cuda"] == "1.0 MB; not run; clean"
    assert set(row("`two` encoder", "w4a8").values()) == {"no artifact"}
    # one sentence for both models: only names and numbers differ
    told = [line for line in lines if "The parser refuses" in line]
    where = "`tensorrt-rtx`: `one` int8_tensorrt, `two` encoder int8_tensorrt"
    assert told == [f"- {parser} ({where})"]
    assert "- no stream to rotate in model.onnx (recipe: `two` encoder w4a8)" in lines
    assert "- no GPU (`onnxruntime-cuda`: `two` encoder int4)" in lines
    assert "| `web` | `web-every-run` | `one` int4 3 |" in lines
    assert "Measured on box (2026-11-30)." in lines


def test_finished_cells_come_back_in_the_order_of_the_page(tmp_path):
    cell = {"bytes": 1}
    for form, target in (("int4", "web"), ("int8_dynamic", "mobile")):
        keep_as_is(cell_file(tmp_path / "digits-vit", form, "model", target), cell)
    assert finished_cells(tmp_path) == {
        ("digits-vit", "model", "int8_dynamic", "mobile"): cell,
        ("digits-vit", "model", "int4", "web"): cell,
    }
