"""Artifacts that go to a URL: whole or not at all, whatever the network does."""

import json
import random
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import onnxq
from onnxq.errors import ExportError
from onnxq.graph import save
from onnxq.runtime import remote
from onnxq.runtime.remote_output import copy_out, local_output
from tests.one_product import one_product

MARK = "onnxq.json"


class Failing(MemoryFileSystem):
    """Some writes fail, some are cut short; names are counted as they are written."""

    protocol = "failing"
    chance = random.Random(0)
    often = 0.0
    puts: ClassVar[list[str]] = []

    def put_file(self, lpath, rpath, **kwargs):
        type(self).puts.append(rpath.rsplit("/", 1)[-1])
        if self.chance.random() < self.often:
            raise ConnectionError("the connection was reset")
        super().put_file(lpath, rpath, **kwargs)
        if self.chance.random() < self.often:
            self.pipe_file(rpath, self.cat_file(rpath)[:-1])


fsspec.register_implementation("failing", Failing, clobber=True)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    Failing.chance = random.Random(0)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    Failing.often, Failing.puts = 0.0, []


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "artifact"
    made.mkdir()
    for name in ("a.onnx", "a.onnx.data", MARK, "tokenizer.json"):
        (made / name).write_bytes(name.encode() * 50)
    return made


def copied(url):
    system, root = fsspec.core.url_to_fs(url)
    return {
        path.rsplit("/", 1)[-1]: system.cat_file(path) for path in system.ls(root, detail=False)
    }


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def copy(folder, url="failing://bucket/out"):
    copy_out(folder, url, MARK, lambda what, done, total: None)


def test_what_fails_is_written_again_and_the_mark_goes_last(folder):
    Failing.often = 0.4
    copy(folder)
    assert copied("failing://bucket/out") == content(folder)
    assert Failing.puts[-1] == MARK and len(Failing.puts) > 4


def test_a_network_that_is_down_leaves_no_artifact_and_the_next_copy_goes_on(folder):
    copy(folder)
    (folder / "a.onnx").write_bytes(b"new")
    (folder / "tokenizer.json").unlink()
    Failing.often, Failing.puts = 0.0, []
    real = Failing.put_file

    def down(self, lpath, rpath, **kwargs):
        if rpath.endswith("data"):
            raise ConnectionError("the connection was reset")
        real(self, lpath, rpath, **kwargs)

    Failing.put_file = down
    try:
        with pytest.raises(ExportError, match=r"out cannot be written: ConnectionError.*8 tries"):
            copy(folder)
    finally:
        Failing.put_file = real
    assert MARK not in copied("failing://bucket/out")
    Failing.puts = []
    copy(folder)
    assert Failing.puts == ["a.onnx.data", MARK]
    assert copied("failing://bucket/out") == content(folder)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_quantize_writes_to_a_url(kind, tiny_model, tmp_path):
    url = "memory://bucket/small" if kind == "memory" else f"file://{tmp_path}/far/small"
    done = onnxq.quantize(tiny_model, "int8", out=url)
    there = copied(url)
    assert there == content(done.artifact.folder) and done.artifact.folder == local_output(url)
    assert json.loads(there[MARK])["recipe"]["name"] == "int8"
    again = onnxq.quantize(tiny_model, "int4", out=url)  # an artifact is replaced
    assert copied(url) == content(again.artifact.folder) != there


def test_a_place_with_other_things_is_left_alone(tiny_model):
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/mine/notes.txt", b"x")
    with pytest.raises(ExportError, match=r"holds 'notes.txt' and no artifact.*--overwrite"):
        onnxq.quantize(tiny_model, "int8", out="memory://bucket/mine")
    assert copied("memory://bucket/mine") == {"notes.txt": b"x"}


@pytest.fixture
def tiny_model(tmp_path):
    return save(one_product(), tmp_path / "source" / "model.onnx")
