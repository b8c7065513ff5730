"""bench: sizes that can be counted by hand, timings that tell a slow model from a fast one."""

import json
import os
import sys

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import CalibrationError, MissingDependency, ModelLoadError, OnnxqError
from onnxq.evaluate import Spread, bench_models, latency, token_rates
from onnxq.evaluate.bench import TokenRates, _rates
from onnxq.evaluate.size import file_bytes, weight_bits
from onnxq.graph import load, save
from onnxq.runtime.generation import Generation, TextGenerator, generate
from onnxq.runtime.peak_memory import peak_memory

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


def dense(width, layers=1):
    """``layers`` products with one square matrix."""
    steps = "\n".join(f"h{i + 1} = MatMul(h{i}, w)" for i in range(layers))
    text = f"g (float[N,{width}] h0, float[{width},{width}] w) => (float[N,{width}] h{layers})"
    return model(f"{text} {{\n{steps}\n}}", w=np.full((width, width), 1e-3, np.float32))


def sample(width, rows=4):
    return {"h0": np.ones((rows, width), np.float32)}


def test_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0)


def test_a_model_with_a_hundred_times_the_work_is_slower():
    samples = [sample(256, rows=64)]
    found = latency([dense(256), dense(256, layers=100)], samples, rounds=5, threads=1)
    assert found.seconds.shape == (2, 5) and (found.seconds > 0).all()
    assert found.ratios[0] == Spread(median=1.0, low=1.0, high=1.0)
    assert found.ratio > 5.0


def test_the_ratio_is_taken_round_by_round():
    """A machine that slows down threefold in every second round leaves the ratio alone."""
    from onnxq.evaluate import Latencies

    machine = np.array([1.0, 3.0, 1.0, 3.0])
    found = Latencies(np.stack([machine, 0.5 * machine]))
    assert found.ratios[1] == Spread(median=0.5, low=0.5, high=0.5)


def test_samples_are_taken_in_turn_and_progress_is_told():
    told = []
    latency(
        [dense(8)],
        [sample(8, rows=1), sample(8, rows=2)],
        rounds=3,
        progress=lambda *step: told.append(step),
    )
    assert told == [("latency", 1, 3), ("latency", 2, 3), ("latency", 3, 3)]


def test_no_samples_and_wrong_names_are_refused():
    with pytest.raises(CalibrationError, match="no samples to time"):
        latency([dense(8)], [])
    with pytest.raises(CalibrationError, match="Sample 0 has no input 'h0'"):
        latency([dense(8)], [{"x": np.ones((1, 8), np.float32)}])


FLOAT_WEIGHT = "g (float[N,64] x, float w, float b) => (float y) { y = Gemm(x, w, b) }"
BEHIND_DQ = """g (float[N,64] x, int8 q, float s) => (float y) {
    w = DequantizeLinear<axis=1>(q, s)
    y = MatMul(x, w)
}"""
BLOCKED = """g (float[N,64] x, uint8 q, float s) => (float y) {
    y = com.microsoft.MatMulNBits<K=64, N=8, bits=4, block_size=32>(x, q, s)
}"""
SHARED = """g (int64[N] ids, float w) => (float y) {
    t = Transpose(w)
    x = Gather(t, ids)
    y = MatMul(x, w)
}"""
ROWS = """g (int64[N] ids, uint8 q, float s) => (float y) {
    y = com.microsoft.GatherBlockQuantized<block_size=32, bits=4, quantize_axis=1>(q, ids, s)
}"""
COUNTED = {
    "float": (
        (FLOAT_WEIGHT, {"w": np.ones((64, 8), np.float32), "b": np.ones(8, np.float32)}),
        (64 * 8, 32.0),
    ),
    "int8 with a float scale for each of 8 columns": (
        (BEHIND_DQ, {"q": np.ones((64, 8), np.int8), "s": np.ones(8, np.float32)}),
        (64 * 8, 8 + 32 / 64),
    ),
    "4 bits with a float scale for each 32": (
        (BLOCKED, {"q": np.ones((8, 2, 16), np.uint8), "s": np.ones((8, 2), np.float32)}),
        (64 * 8, 4 + 32 / 32),
    ),
    "a shared weight counts once": (
        (SHARED, {"w": np.ones((16, 50), np.float16).astype(np.float32)}),
        (16 * 50, 32.0),
    ),
    "an embedding in blocks": (
        (ROWS, {"q": np.ones((50, 32), np.uint8), "s": np.ones((50, 2), np.float32)}),
        (50 * 64, 4 + 32 / 32),
    ),
}


@pytest.mark.parametrize("what", COUNTED)
def test_bits_per_weight(what):
    (text, weights), (count, bits) = COUNTED[what]
    found = weight_bits(model(text, **weights))
    assert found.weights == count
    assert found.bits_per_weight == bits


def test_a_model_without_weights_has_no_bits():
    assert weight_bits(model("g (float x) => (float y) { y = Relu(x) }")).bits_per_weight is None


@pytest.mark.parametrize("external", [False, True])
def test_file_size_counts_external_data(tmp_path, external):
    path = save(dense(64), tmp_path / "model.onnx", external=external)
    found = file_bytes(path, load(path))
    assert found == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert found > 64 * 64 * 4
    assert file_bytes(tmp_path, load(path)) == found


def test_peak_memory_sees_the_weights_and_not_the_parent(tmp_path):
    """64 MB of weights; the 400 MB this process holds meanwhile are not counted."""
    ballast = np.ones(50_000_000)
    path = save(dense(4096), tmp_path / "model.onnx")
    found = peak_memory(path, [sample(4096)], threads=1)
    assert found.idle < found.loaded <= found.peak
    assert 64e6 < found.peak - found.idle < 300e6
    assert ballast.nbytes == 400_000_000
    if sys.platform == "linux":
        assert found.peak < 400e6


def test_a_process_that_fails_says_why(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(OnnxqError, match=r"memory of .*broken.onnx failed: .*does not load"):
        peak_memory(path, [])


def test_bench_of_two_models(tmp_path):
    small = save(dense(64), tmp_path / "small.onnx")
    large = save(dense(256, layers=20), tmp_path / "large.onnx")
    with pytest.raises(OnnxqError):
        bench_models([small, large], [sample(64)], rounds=2, memory=False)
    rows = bench_models([small, small], [sample(64)], rounds=3, threads=1)
    first = json.loads(json.dumps(rows[0].to_dict(), allow_nan=False))
    assert first["ratio"] == 1.0 and first["threads"] == 1
    assert first["bits_per_weight"] == 32.0 and rows[0].weights == 64 * 64
    assert first["latency_ms_q1"] <= first["latency_ms"] <= first["latency_ms_q3"]
    assert first["peak_rss_mb"] > first["idle_rss_mb"] > 10
    assert first["file_mb"] == small.stat().st_size / 1e6
    assert "decode_tokens_s" not in first and rows[0].tokens is None


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
