"""A decoder with online rotations generates in onnxruntime-genai, with and without the kernels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.custom_ops.hadamard import is_hadamard
from onnxq.export import from_gguf
from onnxq.export.operator_library import bundle_library
from onnxq.graph import load, save
from onnxq.passes.base import Context
from onnxq.passes.insert_online_hadamard import InsertOnlineHadamard
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds


@pytest.fixture(scope="module")
def folders(make_gguf, tmp_path_factory):
    """The exported decoder, and the same with every rotation in it."""
    folder = tmp_path_factory.mktemp("rotated")
    make_gguf(folder / "tiny.gguf")
    exported = from_gguf(folder / "tiny.gguf", folder / "plain", checkpoint=folder / "checkpoint")
    shutil.copytree(exported.folder, folder / "rotated", ignore=shutil.ignore_patterns("*.onnx*"))
    model = load(exported.models["model"])
    report = InsertOnlineHadamard(rotate_cache=True).call(model, Context())
    assert not report.left
    assert sum(map(is_hadamard, model.graph)) == 2 * 3  # q, k and the MLP of two layers
    save(model, folder / "rotated" / "model.onnx")
    return exported, folder / "rotated"


@pytest.mark.parametrize("with_library", [False, True])
def test_genai_generates_what_the_plain_model_says(folders, tmp_path, with_library, greedy_tokens):
    exported, rotated = folders
    here = shutil.copytree(rotated, tmp_path / "model")
    if with_library:
        library = Path(onnxq.ops_library()).name
        done = bundle_library(load(here / "model.onnx"), here)
        assert done == f"{library} holds the kernels of Hadamard"
        config = json.loads((here / "genai_config.json").read_text())
        assert config["model"]["decoder"]["session_options"]["custom_ops_library"] == library
        assert (here / library).is_file()
    prompt = [5, 17, 40]
    ids = greedy_tokens(here, prompt, 32)
    with open_session(exported.models["model"]) as session:
        logits = session.run(decoder_feeds(session, np.array([prompt + ids])))["logits"][0]
    said = logits[len(prompt) - 1 : -1]
    gap = said.max(axis=1) - said[np.arange(len(ids)), ids]
    assert gap.max() < 1e-4 * np.abs(logits).max()  # the largest, or one within float rounding


def test_a_model_without_operators_gets_no_library(folders):
    exported, _ = folders
    before = sorted(path.name for path in exported.folder.iterdir())
    assert bundle_library(load(exported.models["model"]), exported.folder) == "not needed"
    assert sorted(path.name for path in exported.folder.iterdir()) == before
