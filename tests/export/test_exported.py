import pytest

from onnxq.errors import ExportError
from onnxq.export.exported import fresh_folder


def test_nothing_appears_before_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with fresh_folder(out) as folder:
        (folder / "model.onnx").write_bytes(b"new")
        assert not out.exists()
    assert (out / "model.onnx").read_bytes() == b"new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_the_old_folder_and_no_traces(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"old")
    with pytest.raises(RuntimeError), fresh_folder(out, overwrite=True) as folder:
        (folder / "model.onnx").write_bytes(b"half")
        raise RuntimeError
    assert (out / "model.onnx").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_bytes(b"old")
    (out / "model.onnx.data").write_bytes(b"old data")
    with fresh_folder(out, overwrite=True) as folder:
        (folder / "model.onnx").write_bytes(b"new")
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way_is_refused(tmp_path):
    out = tmp_path / "out"
    out.write_text("a file")
    with pytest.raises(ExportError, match="is a file"), fresh_folder(out, overwrite=True):
        pass
    assert out.read_text() == "a file"


def test_an_empty_folder_is_filled(tmp_path):
    with fresh_folder(tmp_path) as folder:
        (folder / "model.onnx").write_bytes(b"new")
    assert (tmp_path / "model.onnx").read_bytes() == b"new"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("a file")
    out = tmp_path / "file" / "out"
    with pytest.raises(ExportError, match="cannot be made"), fresh_folder(out):
        pass
