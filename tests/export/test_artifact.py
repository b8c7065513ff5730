"""An artifact is verified as written, and never replaces a good one by half."""

import json

import numpy as np
import onnx_ir as ir
import pytest

import onnxq
from onnxq.errors import ArtifactError, CalibrationError, ExportError
from onnxq.export import artifact as room
from onnxq.graph import load, save
from onnxq.runtime.cache import file_hash

RECIPE = """
summary = "weights in 8 bits"
[[pass]]
use = "quantize_weights"
format = "int8_channel"
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    weight = ir.tensor(rng.standard_normal((16, 8)).astype(np.float32), name="w")
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 16] x) => (float[n, 8] y) { y = MatMul(x, w) }"
    )
    value = model.graph[0].inputs[1]
    value.const_value, value.shape, value.dtype = weight, ir.Shape((16, 8)), weight.dtype
    model.graph.register_initializer(value)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    return save(model, tmp_path / "source" / "model.onnx")


def test_the_report_tells_what_was_done_and_the_files_are_those_hashed(source, recipe, tmp_path):
    artifact = onnxq.quantize(source, recipe, out=tmp_path / "out").artifact
    report = json.loads((tmp_path / "out" / "onnxq.json").read_text())
    assert report["source"]["sha256"]["model.onnx"] == file_hash(source)
    assert report["recipe"]["pass"][0]["format"] == "int8_channel"
    (site,) = report["steps"][0]["sites"]
    assert site["format"] == "int8_channel" and 8 < site["bits"] < 11 and 0 < site["error"] < 0.01
    for name, entry in report["files"].items():
        assert file_hash(tmp_path / "out" / name) == entry["sha256"]
    assert "tokenizer.json" in report["files"]
    assert report["verification"]["onnxruntime"] == "loads and runs"
    assert artifact.nbytes == (tmp_path / "out" / "model.onnx").stat().st_size
    assert room.read_artifact(tmp_path / "out").report == report


def test_the_same_run_gives_the_same_bytes(source, recipe, tmp_path):
    first, second = (
        onnxq.quantize(source, recipe, out=tmp_path / name).artifact for name in ("a", "b")
    )
    assert first.model.read_bytes() == second.model.read_bytes()


def test_an_artifact_is_replaced_and_foreign_folders_are_not(source, recipe, tmp_path):
    onnxq.quantize(source, recipe, out=tmp_path / "out")
    onnxq.quantize(source, recipe, out=tmp_path / "out")
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ExportError, match="not empty"):
            onnxq.quantize(source, recipe, out=foreign, overwrite=overwrite)
    assert (foreign / "chapter.tex").read_text() == "precious"


def test_a_model_that_fails_verification_is_not_put_in_place(source, recipe, tmp_path, monkeypatch):
    good = onnxq.quantize(source, recipe, out=tmp_path / "out").artifact.model.read_bytes()

    def truncate(path):
        path.write_bytes(path.read_bytes()[:100])
        return load(path)

    monkeypatch.setattr(room, "load", truncate)
    with pytest.raises(ArtifactError, match="failed its verification and was not put in place"):
        onnxq.quantize(source, recipe, out=tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "small.toml", "source"]


def test_held_back_inputs_are_not_calibrated_on(source, recipe):
    samples = [{"x": np.full((1, 16), i, np.float32)} for i in range(10)]
    quantized = onnxq.quantize(source, recipe, data=samples)
    assert sorted(float(s["x"][0, 0]) for s in quantized.held_back) == [6.0, 7.0, 8.0, 9.0]


def test_no_samples_and_no_data_are_sentences(source, recipe):
    with pytest.raises(CalibrationError, match="There are no samples in the given list"):
        onnxq.quantize(source, recipe, data=[])
    with pytest.raises(CalibrationError, match="'int8_static' needs calibration data"):
        onnxq.quantize(source, "int8_static")
