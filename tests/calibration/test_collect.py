import numpy as np
import onnx_ir as ir
import pytest

from onnxq.calibration import ChannelRange, ObserverSpec, Range, collect_ranges
from onnxq.errors import CalibrationError

CHAIN = """<ir_version: 9, opset_import: ["" : 19]>
g (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {1, -1, 2, 0, 0.5, 3, -2, 1}, float[2] half = {0.5, 0.5}>
{
  r = Relu(x)
  s = Shape(r)
  bias = Neg(half)
  m = MatMul(r, w)
  y = Add(m, bias)
}"""


def model():
    return ir.from_onnx_text(CHAIN)


def samples(count=6, rows=3):
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((rows, 4)).astype(np.float32)} for _ in range(count)]


def by_hand(data):
    x = np.concatenate([sample["x"] for sample in data])
    r = np.maximum(x, 0)
    m = r @ np.float32([[1, -1], [2, 0], [0.5, 3], [-2, 1]])
    return {"x": x, "r": r, "m": m, "y": m - np.float32(0.5)}


def test_ranges_are_those_of_the_activations():
    data = samples()
    ranges = collect_ranges(model(), None, data)
    assert set(ranges) == {"x", "r", "m", "y"}
    assert ranges.samples == len(data)
    for name, expected in by_hand(data).items():
        # A dot product of 4 floats: rounding of at most 4 half-ulps of its largest partial sum.
        assert ranges[name].low == pytest.approx(expected.min(), rel=1e-6, abs=1e-6)
        assert ranges[name].high == pytest.approx(expected.max(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "entropy", "mse"])
def test_the_budget_does_not_change_the_ranges(observer):
    data = samples()
    whole = collect_ranges(model(), None, data, observer=observer)
    assert collect_ranges(model(), None, data, observer=observer, budget=1) == whole
    assert collect_ranges(model(), None, data, observer=observer, budget=33_000) == whole


def test_the_budget_does_not_change_a_bit_where_the_runtime_fuses():
    generator = np.random.default_rng(1)
    subject = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[N, 64] x) => (float[N, 64] y)
    <float[1] w = {0}, float[1] b = {0}>
    {
      m0 = MatMul(x, w)  a0 = Add(m0, b)  r0 = Relu(a0)
      m1 = MatMul(r0, w) a1 = Add(m1, b)  r1 = Relu(a1)
      m2 = MatMul(r1, w) y = Add(m2, b)
    }""")
    for name, shape in (("w", (64, 64)), ("b", (64,))):
        tensor = ir.tensor(generator.standard_normal(shape).astype(np.float32), name=name)
        weight = subject.graph.initializers[name]
        weight.const_value, weight.shape = tensor, tensor.shape
    data = [{"x": generator.standard_normal((50, 64)).astype(np.float32)} for _ in range(3)]
    whole = collect_ranges(subject, None, data)
    assert len(whole) == 9
    assert collect_ranges(subject, None, data, budget=1) == whole


def test_a_sample_that_outgrows_the_budget_makes_the_chunk_smaller():
    data = samples(2) + samples(2, rows=300)
    whole = collect_ranges(model(), None, data)
    assert collect_ranges(model(), None, data, budget=10_000) == whole


@pytest.mark.parametrize("observer", ["minmax", "percentile", "entropy", "mse"])
def test_the_batch_size_does_not_change_the_ranges(observer):
    data = samples(count=8)
    joined = [{"x": np.concatenate([s["x"] for s in data[i : i + 4]])} for i in (0, 4)]
    spec = ObserverSpec(method=observer)
    assert collect_ranges(model(), None, data, observer=spec) == collect_ranges(
        model(), None, joined, observer=spec
    )


def test_a_generator_is_read_for_every_chunk():
    data = samples()
    expected = collect_ranges(model(), None, data)
    assert collect_ranges(model(), None, (s for s in data), budget=1) == expected


def test_chosen_values_and_channels():
    data = samples()
    ranges = collect_ranges(model(), ["r", "m"], data, axes={"r": -1})
    assert set(ranges) == {"r", "m"}
    assert isinstance(ranges["r"], ChannelRange)
    np.testing.assert_array_equal(ranges["r"].high, by_hand(data)["r"].max(axis=0))
    assert isinstance(ranges["m"], Range)


def test_the_model_is_left_as_it_is():
    subject = model()
    before = ir.to_proto(subject).SerializeToString()
    collect_ranges(subject, None, samples())
    assert ir.to_proto(subject).SerializeToString() == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("w", "it is a weight, an integer"),
        ("bias", "it is a weight, an integer"),
        ("s", "it is a weight, an integer"),
        ("nonsense", "or misspelt"),
    ],
)
def test_what_is_no_activation_is_refused(name, why):
    with pytest.raises(CalibrationError, match=f"'{name}' is no activation .*{why}"):
        collect_ranges(model(), [name], samples())


def test_no_samples_are_refused():
    with pytest.raises(CalibrationError, match="There are no samples in the given list"):
        collect_ranges(model(), None, [])


def test_masks_nan_and_empty_values_have_a_reason_and_no_range():
    subject = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[N] x) => (float[N] y, float[N] nan, float[M] empty)
    <float lowest = {-3.4e38}, float none = {0}, int64[1] zero = {0}>
    {
      positive = Greater(x, none)
      mask = Where(positive, x, lowest)
      y = Relu(mask)
      root = Neg(x)
      nan = Sqrt(root)
      empty = Slice(x, zero, zero)
    }""")
    ranges = collect_ranges(subject, None, [{"x": np.float32([-1, 2])}])
    assert set(ranges) == {"x", "y", "root"}
    assert ranges.reasons["mask"] == (
        "it holds magnitudes up to 3.4e+38, as masks do and activations do not"
    )
    assert ranges.reasons["nan"] == "it holds NaN"
    assert ranges.reasons["empty"] == "it is empty in every sample"


def test_values_inside_bodies_have_a_reason():
    subject = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (bool c, float[N] x) => (float[N] y)
    {
      y = If (c) <
        then_branch = yes () => (float[N] a) { a = Relu(x) },
        else_branch = no () => (float[N] b) { b = Neg(x) }
      >
    }""")
    subject.graph.node(0).name = "choice"
    data = [{"c": np.array(flag), "x": np.float32([-1, 2])} for flag in (True, False)]
    ranges = collect_ranges(subject, None, data)
    assert ranges == {"x": Range(-1, 2), "y": Range(-2, 2)}
    assert len(ranges.reasons) == 2
    for path, reason in ranges.reasons.items():
        assert path.startswith("choice/")
        assert reason.startswith("values inside the body of an operator or function cannot be")


def test_sequences_and_values_of_unknown_type_do_no_harm():
    subject = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[N, 4] x) => (float[N, 2] a)
    <int64 zero = {0}, int64 two = {2}>
    {
      parts = SplitToSequence <axis = 1> (x, two)
      same = Identity(parts)
      a = SequenceAt(same, zero)
    }""")
    ranges = collect_ranges(subject, None, samples())
    assert set(ranges) == {"x", "a"}


def test_progress_is_told_per_run():
    calls = []
    collect_ranges(model(), None, samples(), progress=lambda *call: calls.append(call))
    assert calls[-1] == ("calibrating", 6, 0)
    assert len(calls) == 6
