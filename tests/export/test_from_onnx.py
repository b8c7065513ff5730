import json

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import ExportError, ModelLoadError, UnsupportedGraph
from onnxq.export import export_model, from_onnx
from onnxq.export.recognise import producer_of, recognise
from onnxq.export.to_float32 import is_float32, to_float32
from onnxq.graph import load, save
from onnxq.runtime import open_session

LINEAR = """
<ir_version: 10, opset_import: ["" : 21]>
main (float[n, 4] x) => (float[n, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{ y = MatMul(x, w) }
"""

# The text form spells half precision by bit patterns.
_BITS = ", ".join(str(bits) for bits in np.arange(1, 13, dtype=np.float16).view(np.uint16))

HALF = f"""
<ir_version: 10, opset_import: ["" : 21]>
main (float16[n, 4] x, bool flag) => (float16[n, 3] y)
<float16[4, 3] w = {{{_BITS}}}>
{{
  h = MatMul(x, w)
  wide = Cast<to = 1>(h)
  narrow = Cast<to = 10>(wide)
  two = Constant<value = float16[1] {{16384}}>()
  y = If (flag) <
    then_branch = yes () => (float16[n, 3] a) {{ a = Mul(narrow, two) }},
    else_branch = no () => (float16[n, 3] b) {{ b = Identity(narrow) }}
  >
}}
"""


def write(path, text=LINEAR, **marks):
    model = ir.from_onnx_text(text)
    for name, value in marks.items():
        setattr(model, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path)
    return path


def test_a_single_file_of_any_name(tmp_path):
    path = write(tmp_path / "detector_v4.onnx", producer_name="tf2onnx", producer_version="1.16")
    exported = from_onnx(path)
    assert exported.models == {"model": path}
    assert exported.task == "unknown"
    assert exported.largest_error is None
    assert exported.notes == ("model: detector_v4.onnx by tf2onnx 1.16, opset 21",)


def test_optimum_folder_takes_the_merged_decoder(tmp_path):
    for name in ("encoder_model", "decoder_model", "decoder_with_past_model"):
        write(tmp_path / f"{name}.onnx")
    assert set(recognise(tmp_path).models) == {"encoder", "decoder", "decoder with past"}
    merged = write(tmp_path / "decoder_model_merged.onnx")
    write(tmp_path / "encoder_model_fp16.onnx")
    found = recognise(tmp_path)
    assert found.models == {"encoder": tmp_path / "encoder_model.onnx", "decoder": merged}
    assert "encoder_model_fp16.onnx" in [path.name for path in found.ignored]


def test_models_in_an_onnx_subfolder_find_their_tokenizer(tmp_path):
    write(tmp_path / "onnx" / "model.onnx")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    exported = from_onnx(tmp_path, tmp_path / "out")
    assert exported.task == "feature-extraction"
    names = sorted(path.name for path in exported.folder.iterdir())
    assert names == ["config.json", "model.onnx", "tokenizer.json"]


def test_genai_config_names_the_models_and_follows_their_new_names(tmp_path):
    config = {"model": {"decoder": {"filename": "text.onnx"}, "type": "llama"}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    write(tmp_path / "text.onnx")
    write(tmp_path / "something_else.onnx")
    exported = from_onnx(tmp_path, tmp_path / "out")
    assert exported.task == "text-generation"
    assert exported.models == {"model": tmp_path / "out" / "model.onnx"}
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["model"]["decoder"]["filename"] == "model.onnx"


def test_unclear_roles_are_refused(tmp_path):
    write(tmp_path / "left.onnx")
    write(tmp_path / "right.onnx")
    with pytest.raises(ExportError, match=r"roles are unclear: left.onnx, right.onnx"):
        from_onnx(tmp_path)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda path: None, ExportError, "There is no file or folder"),
        (lambda path: path.mkdir(), ExportError, "holds no .onnx file"),
        (lambda path: path.write_bytes(b"\x89PNG"), ModelLoadError, "PNG"),
        (lambda path: path.write_bytes(b""), ModelLoadError, "empty"),
    ],
)
def test_what_is_not_a_model_is_refused(make, error, sentence, tmp_path):
    path = tmp_path / "input"
    make(path)
    with pytest.raises(error, match=sentence):
        from_onnx(path)


def test_an_operator_that_no_runtime_has_is_refused(tmp_path):
    text = LINEAR.replace('["" : 21]', '["" : 21, "acme" : 1]').replace("MatMul", "acme.Fold")
    path = write(tmp_path / "model.onnx", text)
    with pytest.raises(UnsupportedGraph, match="does not load"):
        from_onnx(path)


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({"producer_name": "pytorch", "producer_version": "2.3"}, "torch 2.3, TorchScript"),
        ({"producer_name": "PaddlePaddle"}, "Paddle2ONNX"),
        ({"producer_name": "onnx.quantize"}, "onnxruntime.quantization"),
        ({"doc_string": "Model from PaddlePaddle."}, "Paddle2ONNX"),
        ({}, "an exporter that left no name"),
    ],
)
def test_producers_by_their_marks(marks, words):
    model = ir.from_onnx_text(LINEAR)
    for name, value in marks.items():
        setattr(model, name, value)
    assert producer_of(model).startswith(words)


def test_dynamo_is_told_from_torchscript(tmp_path):
    import torch

    from onnxq.export import from_torch

    exported = from_torch(torch.nn.Linear(3, 2), (torch.ones(1, 3),), tmp_path / "out")
    assert "dynamo exporter" in producer_of(load(exported.models["model"]))


def test_genai_is_named(llama_export):
    again = export_model(llama_export.folder, llama_export.folder.parent / "again")
    assert "by onnxruntime-genai" in again.notes[0]
    assert again.task == "text-generation"
    assert (again.folder / "tokenizer.json").is_file()


def test_half_precision_becomes_float32_everywhere(tmp_path):
    path = write(tmp_path / "half.onnx", HALF)
    exported = from_onnx(path, tmp_path / "out", float32=True)
    model = load(exported.models["model"])
    assert is_float32(model)
    assert exported.largest_error is not None
    assert exported.largest_error <= exported.bound
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with open_session(exported.models["model"]) as session:
        assert {spec.dtype for spec in session.inputs} == {np.dtype("float32"), np.dtype("bool")}
        for flag, factor in ((True, 2), (False, 1)):
            y = session.run({"x": x, "flag": np.array(flag)})["y"]
            weight = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
            np.testing.assert_allclose(y, factor * (x @ weight), rtol=1e-5, atol=1e-5)


def test_rewriting_needs_a_folder(tmp_path):
    path = write(tmp_path / "half.onnx", HALF)
    with pytest.raises(ExportError, match="is not float32, and there is no folder to write"):
        from_onnx(path, float32=True)


def test_a_quantized_model_is_not_made_float32():
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        main (float16[n, 4] x) => (float16[n, 3] y)
        <int8[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float16 s = {2}>
        { d = DequantizeLinear(w, s)  y = MatMul(x, d) }
        """
    )
    with pytest.raises(UnsupportedGraph, match="is a DequantizeLinear: the model is quantized"):
        to_float32(model)


def test_a_float32_model_is_left_as_it_is(tmp_path):
    path = write(tmp_path / "model.onnx")
    exported = from_onnx(path, tmp_path / "out", float32=True)
    assert exported.largest_error is None
    assert exported.errors == {}
