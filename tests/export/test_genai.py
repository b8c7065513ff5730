import json

import pytest

from onnxq.errors import ExportError
from onnxq.export import copy_companions
from onnxq.export.genai import build_with_genai


def test_companions_are_copied_and_models_are_not(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    out.mkdir()
    carried = ("genai_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt")
    left = ("model.onnx", "model.onnx.data", "model.safetensors", "notes.txt", "onnxq.json")
    for name in (*carried, *left):
        (source / name).write_text("{}")
    copied = copy_companions(source, out)
    assert sorted(path.name for path in copied) == sorted(carried)
    assert sorted(path.name for path in out.iterdir()) == sorted(carried)


def test_a_file_stands_for_its_folder_and_nothing_is_replaced(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "model.onnx").write_bytes(b"")
    (source / "tokenizer.json").write_text("new")
    (out / "tokenizer.json").write_text("mine")
    assert copy_companions(source / "model.onnx", out) == []
    assert (out / "tokenizer.json").read_text() == "mine"


def test_renamed_models_are_followed_in_every_section(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    pipeline = [{"a": {"filename": "text.onnx"}}, {"b": {"filename": "kept.onnx"}}]
    config = {"model": {"decoder": {"filename": "text.onnx", "pipeline": pipeline}}}
    (source / "genai_config.json").write_text(json.dumps(config))
    copy_companions(source, out, renamed={"text.onnx": "model.onnx"})
    decoder = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["filename"] == "model.onnx"
    assert [next(iter(p.values()))["filename"] for p in decoder["pipeline"]] == [
        "model.onnx",
        "kept.onnx",
    ]


def test_the_builders_last_words_are_in_the_message(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ExportError, match=r"(?s)failed on .*\(LlamaForCausalLM\): .*last lines"):
        build_with_genai(tmp_path, out)
