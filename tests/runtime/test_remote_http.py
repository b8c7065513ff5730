"""Models from an HTTP server, of which one answer in ten is an error."""

import pytest

from onnxq.errors import ModelLoadError
from onnxq.graph import load, save
from onnxq.runtime import remote
from onnxq.runtime.remote import local_path
from tests.faulty_server import faulty_server
from tests.one_product import one_product

pytest.importorskip("aiohttp")


def test_a_server_that_fails_one_read_in_ten(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    monkeypatch.setattr(remote, "_CHUNK", 200)
    model = save(one_product(), tmp_path / "zoo" / "model.onnx")
    with faulty_server(tmp_path) as (url, counts):
        copied = local_path(f"{url}/zoo/model.onnx")
    assert copied.read_bytes() == model.read_bytes()
    load(copied)
    assert counts["failed"] > 0 and counts["answered"] > 80


def test_a_server_that_lists_no_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    model = save(one_product(), tmp_path / "zoo" / "model.onnx", external=True)
    data = model.with_name("model.onnx.data")
    with faulty_server(tmp_path) as (url, _):
        copied = local_path(f"{url}/zoo/model.onnx")
        assert copied.with_name(data.name).read_bytes() == data.read_bytes()
        load(copied)
        data.rename(tmp_path / "gone")
        monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "other"))
        with pytest.raises(ModelLoadError, match=r"nothing at .*data, which .*onnx names"):
            local_path(f"{url}/zoo/model.onnx")
