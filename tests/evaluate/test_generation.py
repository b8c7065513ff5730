"""Text generation in onnxruntime-genai, on a decoder small enough to write down."""

import json
import os
import sys

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import MissingDependency, ModelLoadError
from onnxq.evaluate import Spread, bench_models, token_rates
from onnxq.evaluate.bench import TokenRates, _rates
from onnxq.graph import save
from onnxq.runtime.generation import Generation, TextGenerator, generate

HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'


def model(text, **weights):
    parsed = ir.from_onnx_text(f"{HEADER}\n{text}")
    for value in list(parsed.graph.inputs):
        array = weights.get(value.name)
        if array is None:
            continue
        parsed.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        parsed.graph.register_initializer(value)
    return parsed


def run(prefill, decode, new=5):
    return Generation(
        ids=tuple(range(new)), prompt_tokens=10, prefill_seconds=prefill, decode_seconds=decode
    )


def test_rates_of_generation():
    assert run(0.5, 2.0).prefill_rate == 20.0 and run(0.5, 2.0).decode_rate == 2.0
    assert run(0.5, 0.0, new=1).decode_rate is None
    rates = _rates([run(0.5, 2.0), run(1.0, 1.0), run(2.0, 4.0)])
    assert rates == TokenRates(
        prefill=Spread(median=10.0, low=7.5, high=15.0),
        decode=Spread(median=2.0, low=1.5, high=3.0),
        prompt_tokens=10,
        new_tokens=5,
    )


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"holds no genai_config.json"):
        generate(tmp_path, [1, 2], 3)
    with pytest.raises(ValueError, match="ask for two"):
        token_rates([tmp_path], new_tokens=1)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "genai_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingDependency, match=r"onnxq\[genai\]"):
        TextGenerator(tmp_path)


def test_a_broken_folder_is_refused(tmp_path):
    pytest.importorskip("onnxruntime_genai")
    (tmp_path / "genai_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="could not load"):
        TextGenerator(tmp_path)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A decoder of one layer whose weights are random, in the form genai takes."""
    pytest.importorskip("onnxruntime_genai")
    vocabulary, width = 40, 16
    random = np.random.default_rng(0)

    def weight(*shape):
        return random.standard_normal(shape).astype(np.float32)

    text = f"""g (int64[B,S] input_ids, int64[B,T] attention_mask,
        float[B,2,P,8] past_key, float[B,2,P,8] past_value, float e, float qkv, float o, float head,
        int64 one) => (float[B,S,{vocabulary}] logits,
        float[B,2,T,8] present_key, float[B,2,T,8] present_value) {{
        x = Gather(e, input_ids)
        p = MatMul(x, qkv)
        sum = ReduceSum<keepdims=0>(attention_mask, one)
        last = Sub(sum, one)
        lengths = Cast<to=6>(last)
        shape = Shape<start=1>(attention_mask)
        flat = Squeeze(shape)
        total = Cast<to=6>(flat)
        c, present_key, present_value =
            com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2>(
                p, , , past_key, past_value, lengths, total)
        y = MatMul(c, o)
        r = Add(x, y)
        logits = MatMul(r, head)
    }}"""
    network = model(
        text,
        e=weight(vocabulary, width),
        qkv=weight(width, 3 * width),
        o=weight(width, width),
        head=weight(width, vocabulary),
        one=np.array([1]),
    )
    names = {"past_key": "past_key_values.0.key", "past_value": "past_key_values.0.value"}
    names |= {"present_key": "present.0.key", "present_value": "present.0.value"}
    for value in (*network.graph.inputs, *network.graph.outputs):
        value.name = names.get(value.name, value.name)
    folder = tmp_path_factory.mktemp("decoder")
    save(network, folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps(_genai_config(vocabulary, width)))
    return folder


def _genai_config(vocabulary, width):
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    names |= {"past_key_names": "past_key_values.%d.key"}
    names |= {"past_value_names": "past_key_values.%d.value"}
    outputs = {"logits": "logits", "present_key_names": "present.%d.key"}
    outputs |= {"present_value_names": "present.%d.value"}
    return {
        "model": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "context_length": 64,
            "vocab_size": vocabulary,
            "type": "llama",
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": "model.onnx",
                "head_size": width // 2,
                "hidden_size": width,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "num_hidden_layers": 1,
                "inputs": names,
                "outputs": outputs,
            },
        },
        "search": {"max_length": 64, "past_present_share_buffer": True},
    }


def test_generation_counts_tokens_and_is_greedy(decoder):
    found = generate(decoder, [3, 4, 5], 8, threads=1)
    again = generate(decoder, [3, 4, 5], 8, threads=1)
    assert found.ids == again.ids and 1 <= len(found.ids) <= 8
    assert found.prompt_tokens == 3
    with TextGenerator(decoder) as generator:
        assert generator.vocabulary == 40
        longer = generator.generate([3, 4, 5], 8, stop_at_end=False)
        assert len(longer.ids) == 8 and 2 not in longer.ids
        with pytest.raises(ValueError, match="at least one token"):
            generator.generate([], 8)
        with pytest.raises(ModelLoadError, match=r"no tokenizer.json"):
            generator.encode("text")


def test_greedy_tokens_are_those_of_the_plain_runtime(decoder):
    """The first token is the argmax of the last logits of the prompt in ONNX Runtime."""
    from onnxq.runtime import open_session
    from onnxq.runtime.decoder import decoder_feeds

    with open_session(decoder / "model.onnx") as session:
        logits = session.run(decoder_feeds(session, np.array([[3, 4, 5]])), ["logits"])["logits"]
    assert generate(decoder, [3, 4, 5], 1).ids == (int(logits[0, -1].argmax()),)


def test_bench_of_text_generation(decoder):
    feeds = {
        "input_ids": np.array([[3, 4]]),
        "attention_mask": np.ones((1, 2), np.int64),
        "past_key_values.0.key": np.zeros((1, 2, 0, 8), np.float32),
        "past_key_values.0.value": np.zeros((1, 2, 0, 8), np.float32),
    }
    rows = bench_models([decoder, decoder], [feeds], rounds=2, threads=1, memory=False)
    assert all(row.tokens.decode.median > 0 and row.tokens.prefill.median > 0 for row in rows)
    assert rows[0].tokens.new_tokens == 32 and rows[0].tokens.prompt_tokens == 64 - 32
    assert rows[0].to_dict()["decode_tokens_s"] > 0
    assert os.fspath(decoder) == rows[0].model
