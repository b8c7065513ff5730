"""Sessions open on anything that is a model, answer by name, and leave no trace."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import MissingDependency, OnnxqError, UnsupportedGraph
from onnxq.graph import save
from onnxq.runtime import open_session, random_samples


@pytest.fixture
def model():
    return ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[batch, n] x, int64[batch, n] mask) => (float[batch, n] y)"
        "{ h = Neg(x) a = Abs(h) y = Sqrt(a) }"
    )


X = np.array([[1.0, -4.0]], np.float32)
FEEDS = {"x": X, "mask": np.ones((1, 2), np.int64)}


def test_a_model_a_file_and_bytes_give_the_same(model, tmp_path):
    path = save(model, tmp_path / "model.onnx")
    for source in (model, path, str(path), path.read_bytes()):
        with open_session(source) as session:
            assert [spec.name for spec in session.inputs] == ["x", "mask"]
            assert session.inputs[0].dtype == np.float32
            assert session.inputs[0].shape == ("batch", "n")
            np.testing.assert_array_equal(session.run(FEEDS)["y"], [[1.0, 2.0]])


@pytest.mark.parametrize("from_file", [False, True])
def test_inner_values_can_be_fetched_and_the_model_is_left_alone(model, tmp_path, from_file):
    source = save(model, tmp_path / "model.onnx") if from_file else model
    with open_session(source, extra_outputs=["h", "a"]) as session:
        results = session.run(FEEDS, ["a", "h"])
        np.testing.assert_array_equal(results["h"], -X)
        np.testing.assert_array_equal(results["a"], np.abs(X))
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_an_inner_value_that_does_not_exist_is_named(model):
    with pytest.raises(UnsupportedGraph, match="computes no value named 'q'"):
        open_session(model, extra_outputs=["q"])


def test_feeds_that_do_not_fit_are_a_sentence_with_their_shapes(model):
    wrong = {"x": np.zeros(2, np.float32), "mask": FEEDS["mask"]}
    with (
        open_session(model) as session,
        pytest.raises(OnnxqError, match=r"on inputs of shapes x \(2,\)"),
    ):
        session.run(wrong)


def test_what_the_runtime_does_not_load_is_refused_with_its_message(model):
    model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(UnsupportedGraph, match=r"ONNX Runtime does not load .*NoSuchOperator"):
        open_session(model)


def test_temporary_files_are_gone_when_the_session_closes(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with open_session(model):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_is_named_with_its_extra(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'onnxq\[cpu\]'"):
        open_session(model)


def test_random_samples_fit_the_model_and_are_deterministic(model):
    first, second = random_samples(model, 2, seed=3, sizes={"n": 5})
    assert first["x"].shape == (1, 5) and first["mask"].tolist() == [[1] * 5]
    assert not np.array_equal(first["x"], second["x"])
    again = random_samples(model, 2, seed=3, sizes={"n": 5})
    np.testing.assert_array_equal(second["x"], again[1]["x"])
    with open_session(model) as session:
        session.run({**first, "x": np.abs(first["x"])})
