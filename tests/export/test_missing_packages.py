"""Every optional package, made absent: the message names it and the extra to install."""

import sys

import pytest

from onnxq import export
from onnxq.errors import MissingDependency


@pytest.fixture
def without(monkeypatch):
    def remove(package):
        for name in list(sys.modules):
            if name == package or name.startswith(package + "."):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return remove


@pytest.mark.parametrize(
    ("package", "extra"),
    [("gguf", "gguf"), ("transformers", "hf"), ("torch", "hf"), ("onnxruntime_genai", "genai")],
)
def test_from_gguf(package, extra, without, make_gguf, tmp_path):
    path = make_gguf(tmp_path / "tiny.gguf")
    without(package)
    with pytest.raises(MissingDependency, match=rf"'{package.replace('_', '-')}'.*\[{extra}\]"):
        export.from_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "extra"), [("transformers", "hf"), ("torch", "hf"), ("onnxruntime_genai", "genai")]
)
def test_from_hf(package, extra, without, llama_folder, tmp_path):
    without(package)
    with pytest.raises(MissingDependency, match=rf"'{package.replace('_', '-')}'.*\[{extra}\]"):
        export.from_hf(llama_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_from_torch(without, tmp_path):
    without("torch")
    with pytest.raises(MissingDependency, match=r"'torch'.*\[torch\]"):
        export.from_torch(object(), (), tmp_path / "out")
