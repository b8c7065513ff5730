"""bench: sizes counted by hand, timings that tell a slow model from a fast one."""

import json
import sys

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import CalibrationError, OnnxqError
from onnxq.evaluate import Spread, bench_models, latency
from onnxq.evaluate.size import file_bytes, weight_bits
from onnxq.graph import load, save
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
