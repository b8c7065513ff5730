"""A decoder of MatMulInt generates in onnxruntime-genai, by its functions and by the kernels."""

import json

import numpy as np
import pytest

import onnxq
from onnxq.export import from_gguf
from onnxq.graph import load
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds


@pytest.fixture(scope="module")
def artifacts(make_gguf, tmp_path_factory):
    """The exported decoder, and its W4A8 artifact."""
    folder = tmp_path_factory.mktemp("operator")
    make_gguf(folder / "tiny.gguf")
    exported = from_gguf(folder / "tiny.gguf", folder / "plain", checkpoint=folder / "checkpoint")
    ids = np.random.default_rng(5).integers(3, 120, (8, 24))
    with open_session(exported.models["model"]) as session:
        samples = [decoder_feeds(session, row[None]) for row in ids]
    out = folder / "w4a8"
    options = ["format=int4_g32_two", "embedding_format=int8_g16", 'overrides={"@head"="int8_g16"}']
    onnxq.quantize(
        exported.folder,
        "w4a8",
        out=out,
        data=samples,
        set=[f"quantize_weights.{option}" for option in options],
    )
    return exported, out


def logits_of(model, ids, custom_ops=True):
    with open_session(model, custom_ops=custom_ops) as session:
        return session.run(decoder_feeds(session, np.array([ids])))["logits"][0]


def test_every_linear_layer_is_an_operator(artifacts):
    _, out = artifacts
    kinds = [node.op_type for node in load(out / "model.onnx").graph]
    assert kinds.count("MatMulInt") == 2 * 5 + 1  # q, k and v are one; two layers, and the head
    assert "MatMul" not in kinds
    assert list(out.glob("libonnxq_ops*"))


def test_kernels_and_functions_say_the_same_near_to_the_float_model(artifacts):
    exported, out = artifacts
    ids = [5, 17, 40, 99, 3, 64]
    exact = logits_of(exported.models["model"], ids)
    kernels, functions = (logits_of(out / "model.onnx", ids, on) for on in (True, False))
    # A sum that falls the other side of a rounding of a token moves what comes behind it.
    assert np.linalg.norm(kernels - functions) < 0.02 * np.linalg.norm(functions)
    assert np.linalg.norm(kernels - exact) < 0.5 * np.linalg.norm(exact)  # of others: 1.4


def test_genai_generates_what_the_logits_say(artifacts, greedy_tokens):
    _, out = artifacts
    prompt = [5, 17, 40]
    ids = greedy_tokens(out, prompt, 32)
    logits = logits_of(out / "model.onnx", prompt + ids)
    said = logits[len(prompt) - 1 : -1].copy()
    config = json.loads((out / "genai_config.json").read_text())
    said[:, config["model"]["eos_token_id"]] = -np.inf  # never picked
    gap = said.max(axis=1) - said[np.arange(len(ids)), ids]
    assert gap.max() < 0.02 * np.abs(logits).max()  # the largest, or one within a rounding
