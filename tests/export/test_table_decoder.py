"""A decoder of 2-bit tables or codebooks generates in onnxruntime-genai, without kernels too."""

import json
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.export import from_gguf
from onnxq.models.smollm2 import gguf_path
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds

FORMATS = ("lut2", "vq_d4n256")


def settings(fmt):
    return [f"quantize_weights.format={fmt}", "quantize_weights.embedding_format=float"]


def without_library(folder):
    """The same files, so that the functions run."""
    (folder / Path(onnxq.ops_library()).name).unlink()
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    del config["model"]["decoder"]["session_options"]["custom_ops_library"]
    path.write_text(json.dumps(config))


def assert_generates(folder, prompt, count, greedy_tokens):
    """With the library and without it: the largest logit of ONNX Runtime, or one beside it.

    Activations are rounded to int8: where two sums differ in their last bit one may fall on the
    other side of a tie, a step of 1/127 in one of many inputs.
    """
    for custom_ops in (True, False):
        if not custom_ops:
            without_library(folder)
        ids = greedy_tokens(folder, prompt, count)
        assert len(ids) == count
        with open_session(folder / "model.onnx", custom_ops=False) as session:
            logits = session.run(decoder_feeds(session, np.array([prompt + ids])))["logits"][0]
        said = logits[len(prompt) - 1 : -1]
        gap = said.max(axis=1) - said[np.arange(count), ids]
        assert gap.max() < 1e-2 * np.abs(logits).max()


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_tiny_one(fmt, make_gguf, tmp_path, greedy_tokens):
    make_gguf(tmp_path / "tiny.gguf")
    exported = from_gguf(
        tmp_path / "tiny.gguf", tmp_path / "plain", checkpoint=tmp_path / "checkpoint"
    )
    artifact = onnxq.quantize(exported.folder, "int4", out=tmp_path / "out", set=settings(fmt))
    assert sum(site.format == fmt for site in artifact.quantized_sites) >= 7
    assert (tmp_path / "out" / Path(onnxq.ops_library()).name).is_file()
    assert_generates(tmp_path / "out", [5, 17, 40], 24, greedy_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", FORMATS)
def test_smollm2(fmt, tmp_path, greedy_tokens):
    """Thirty layers at two bits make one flipped rounding of int8 into other words: both generate,
    and the first word, which no earlier one has changed, is among the likeliest of the other."""
    from_gguf(gguf_path(), tmp_path / "float32", checkpoint=tmp_path / "checkpoint")
    out = tmp_path / "out"
    # Vectors to nearest, without data, leave too little of the model for its promise.
    given = {"set": settings(fmt), "check": "off"}
    artifact = onnxq.quantize(tmp_path / "float32", "int4", out=out, **given)
    assert sum(site.format == fmt for site in artifact.quantized_sites) >= 120
    prompt, count = [504, 2365, 5041, 314], 12
    for generates_with, checked_with in ((True, False), (False, True)):
        with open_session(out / "model.onnx", custom_ops=checked_with) as session:
            logits = session.run(decoder_feeds(session, np.array([prompt])))["logits"][0, -1]
        if not generates_with:
            without_library(out)
        ids = greedy_tokens(out, prompt, count)
        assert len(ids) == count
        assert ids[0] in np.argsort(logits)[-5:]
