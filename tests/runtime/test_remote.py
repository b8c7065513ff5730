"""Remote models are copied whole, whatever the network does."""

import random

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from onnxq import cli
from onnxq.errors import MissingDependency, ModelLoadError
from onnxq.graph import load, save
from onnxq.runtime import remote
from onnxq.runtime.remote import local_path
from tests.one_product import one_product

CHUNK = 200


class Unreliable(LocalFileSystem):
    """One read in ten fails; how many were made is counted."""

    protocol = "unreliable"
    chance = random.Random(0)
    often = 0.1
    reads = 0

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("unreliable://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        type(self).reads += 1
        if self.chance.random() < self.often:
            raise ConnectionError("the connection was reset")
        return super().cat_file(path, start=start, end=end, **kwargs)


fsspec.register_implementation("unreliable", Unreliable, clobber=True)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    monkeypatch.setattr(remote, "_CHUNK", CHUNK)
    Unreliable.often, Unreliable.reads = 0.1, 0
    MemoryFileSystem.store.clear()


@pytest.fixture
def model(tmp_path):
    return save(one_product(), tmp_path / "source" / "model.onnx", external=True)


def test_one_read_in_ten_fails(model):
    copied = local_path(f"unreliable://{model}")
    assert {file.name: file.read_bytes() for file in model.parent.iterdir()} == {
        file.name: file.read_bytes()
        for file in copied.parent.iterdir()
        if not file.name.endswith(".source.json")
    }
    needed = sum(-(-file.stat().st_size // CHUNK) for file in model.parent.iterdir())
    assert Unreliable.reads > needed  # some failed, and were made again
    load(copied)


def test_a_folder_and_what_is_in_it(model):
    copied = local_path(f"unreliable://{model.parent}/")
    assert copied.is_dir() and load(copied).graph.num_nodes() == 1


def test_what_is_there_is_not_read_again_unless_it_has_changed(model):
    copied = local_path(f"unreliable://{model}")
    Unreliable.reads = 0
    local_path(f"unreliable://{model}")
    assert Unreliable.reads == 0
    content = model.read_bytes()
    model.write_bytes(content + b"\x00")
    local_path(f"unreliable://{model}")
    assert copied.read_bytes() == content + b"\x00"


def test_an_interrupted_copy_goes_on(model):
    data = next(file for file in model.parent.iterdir() if file.suffix == ".data")
    seen = []

    def stop(what, done, total):
        seen.append(done)
        if "data" in what and done >= 8000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_path(f"unreliable://{model}", progress=stop)
    Unreliable.often, Unreliable.reads = 0.0, 0
    copied = local_path(f"unreliable://{model}")
    assert (copied.parent / data.name).read_bytes() == data.read_bytes()
    assert Unreliable.reads == -(-(data.stat().st_size - 8000) // CHUNK)


def test_a_network_that_is_down(model):
    Unreliable.often = 1.0
    with pytest.raises(
        ModelLoadError, match=r"ConnectionError: the connection was reset \(8 tries"
    ):
        local_path(f"unreliable://{model}")


def test_nothing_there(tmp_path):
    with pytest.raises(ModelLoadError, match="There is nothing at"):
        local_path(f"unreliable://{tmp_path}/none.onnx")


def test_a_kind_of_place_that_nobody_knows():
    with pytest.raises(ModelLoadError, match="Protocol not known: nowhere"):
        local_path("nowhere://x/model.onnx")


def test_a_kind_of_place_whose_package_is_missing(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3", name="s3fs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingDependency, match=r"needs the package 's3fs'.*onnxq\[remote\]"):
        local_path("s3://bucket/model.onnx")


def test_a_command_takes_a_url(model):
    files = fsspec.filesystem("memory")
    for file in model.parent.iterdir():
        files.pipe_file(f"/zoo/{file.name}", file.read_bytes())
    result = CliRunner().invoke(cli.app, ["inspect", "memory://zoo/model.onnx", "--json"])
    assert result.exit_code == 0 and '"parameters": 4096' in result.output
