"""``onnxq outliers`` as a user meets it: rows, JSON, a picture, sentences."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from onnxq.cli import app
from onnxq.errors import UsageError
from onnxq.graph import save
from onnxq.outliers import outlier_rows

rng = np.random.default_rng(0)
SAMPLES = [{"x": rng.standard_normal((30, 12)).astype(np.float32)} for _ in range(2)]
WEIGHT = rng.standard_normal((12, 12)).astype(np.float32)


def written(folder, loud):
    """Two layers; the second reads an activation with one loud channel."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 12] x) => (float[n, 12] y) { h = MatMul(x, w1) y = MatMul(h, w2) }"
    )
    gain = np.r_[np.float32(loud), np.ones(11, np.float32)]
    arrays = {"w1": WEIGHT * gain, "w2": (WEIGHT.T / gain[:, None]).astype(np.float32)}
    for node, (name, array) in zip(model.graph, arrays.items(), strict=True):
        value = node.inputs[1]
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), value.const_value.dtype
        model.graph.register_initializer(value)
        node.name = f"layer_{name}"
    return save(model, folder / f"loud{loud}" / "model.onnx")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for index, sample in enumerate(SAMPLES):
        np.savez(folder / f"{index}.npz", **sample)
    return folder


@pytest.fixture
def loud(tmp_path):
    return written(tmp_path, 50)


def onnxq(*arguments):
    return CliRunner().invoke(app, ["outliers", *map(str, arguments)])


def test_the_tallest_site_is_first(loud, data):
    done = onnxq(loud, "--data", data, "--json")
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)
    assert first["site"] == "layer_w2"
    assert first["max/rms of a token"] > 3.2 > 2.6 > second["max/rms of a token"]
    assert first["QSUR bits"] < -4
    table = onnxq(loud, "--data", data)
    assert "the tallest first" in table.output


def test_before_and_after_with_a_picture(loud, data, tmp_path):
    quiet, picture = written(tmp_path, 1), tmp_path / "one.svg"
    rows = outlier_rows(loud, quiet, data=data, plot=picture)
    assert " → " in rows[0]["QSUR bits"]
    text = picture.read_text()
    assert "What layer_w2 reads" in text
    assert "before max/rms of a token 3" in text
    assert "after max/rms of a token 2" in text


def test_one_site_alone(loud, data, tmp_path):
    (row,) = outlier_rows(loud, data=data, site="layer_w1", plot=tmp_path / "one.svg")
    assert row["site"] == "layer_w1"
    assert "layer_w1" in (tmp_path / "one.svg").read_text()


def test_an_unknown_site_is_wrong_usage(loud, data):
    with pytest.raises(UsageError, match=r"no site 'layer_w3'\. Did you mean 'layer_w"):
        outlier_rows(loud, data=data, site="layer_w3")
