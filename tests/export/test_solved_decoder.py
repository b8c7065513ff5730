"""A decoder whose weights a solver rounded runs in onnxruntime-genai as in ONNX Runtime."""

import json

import numpy as np
import pytest

import onnxq
from onnxq.export import from_gguf
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds


@pytest.fixture(scope="module")
def exported(make_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("solved")
    make_gguf(folder / "tiny.gguf")
    return from_gguf(folder / "tiny.gguf", folder / "out", checkpoint=folder / "checkpoint")


def tokens(count, length=24):
    return np.random.default_rng(5).integers(3, 120, (count, length))


def logits_of(model, ids):
    with open_session(model) as session:
        return session.run(decoder_feeds(session, ids))["logits"]


@pytest.mark.parametrize("recipe", ["int4_gptq", "int4_gptaq"])
def test_a_solved_artifact_generates_what_its_logits_say(recipe, exported, tmp_path, greedy_tokens):
    with open_session(exported.models["model"]) as session:
        samples = [decoder_feeds(session, row[None]) for row in tokens(20)]
    out = tmp_path / "out"
    artifact = onnxq.quantize(
        exported.folder,
        recipe,
        out=out,
        data=samples,
        set=["quantize_weights.format=int4_g16_asym", "quantize_weights.embedding_format=int8_g16"],
    )
    solved = [site for site in artifact.quantized_sites if site.output_error is not None]
    assert len(solved) >= 7  # q, k, v, o, gate, up, down of at least one layer
    prompt = [5, 17, 40]
    ids = greedy_tokens(out, prompt, 32)
    logits = logits_of(out / "model.onnx", np.array([prompt + ids]))[0]
    gap = (
        logits[len(prompt) - 1 : -1].max(axis=1)
        - logits[np.arange(len(prompt) - 1, len(prompt) + 31), ids]
    )
    assert gap.max() < 1e-3 * np.abs(logits).max()  # the largest, or one within float rounding
    exact = logits_of(exported.models["model"], np.array([prompt + ids]))[0]
    assert np.linalg.norm(logits - exact) < 0.4 * np.linalg.norm(exact)


def test_paths_through_a_trellis_generate_with_and_without_the_library(
    exported, tmp_path, greedy_tokens
):
    with open_session(exported.models["model"]) as session:
        samples = [decoder_feeds(session, row[None]) for row in tokens(20)]
    out = tmp_path / "out"
    artifact = onnxq.quantize(
        exported.folder,
        "qtip_w2",
        out=out,
        data=samples,
        set=["quantize_weights.format=trellis4_hyb_l13", "quantize_weights.embedding_format=float"],
    )
    done = [site for site in artifact.quantized_sites if site.format == "trellis4_hyb_l13"]
    assert len(done) >= 7  # q, k, v, o, gate, up, down of at least one layer
    config = json.loads((out / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    prompt = [5, 17, 40]
    for custom_ops in (True, False):
        if not custom_ops:
            assert (out / options.pop("custom_ops_library")).is_file()
            (out / "genai_config.json").write_text(json.dumps(config))
        ids = greedy_tokens(out, prompt, 24)
        with open_session(out / "model.onnx", custom_ops=custom_ops) as session:
            feeds = decoder_feeds(session, np.array([prompt + ids]))
            logits = session.run(feeds)["logits"][0, len(prompt) - 1 : -1]
        largest = np.abs(logits).max()
        logits[:, config["model"]["eos_token_id"]] = -np.inf  # kept from ending the text
        gap = logits.max(axis=1) - logits[np.arange(len(ids)), ids]
        assert gap.max() < 1e-3 * largest  # the largest, or one within float rounding
