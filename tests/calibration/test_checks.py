import numpy as np
import onnx_ir as ir
import pytest

from onnxq.calibration import check_sample, checked_samples, input_specs
from onnxq.errors import CalibrationError

MODEL = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
g (float[N, 3, 4] pixels, int64[N] lengths) => (float[N, 3, 4] y) { y = Relu(pixels) }""")
ONE_INPUT = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }""")


def good(**changes):
    sample = {"pixels": np.zeros((2, 3, 4), np.float32), "lengths": np.zeros(2, np.int64)}
    return {name: array for name, array in {**sample, **changes}.items() if array is not None}


def refusal(sample):
    with pytest.raises(CalibrationError) as error:
        list(checked_samples([good(), sample], MODEL))
    return str(error.value)


def test_a_good_sample_is_passed_on():
    [sample] = checked_samples([good()], MODEL)
    assert sample["pixels"].shape == (2, 3, 4)
    assert [spec.name for spec in input_specs(MODEL)] == ["pixels", "lengths"]


def test_a_negative_dimension_is_a_dynamic_one():
    model = ONE_INPUT.clone()
    model.graph.inputs[0].shape = ir.Shape([-1, 2])
    assert input_specs(model)[0].shape == (None, 2)
    [sample] = checked_samples([{"x": np.zeros((5, 2), np.float32)}], model)
    assert sample["x"].shape == (5, 2)


def test_integers_are_widened():
    [sample] = checked_samples([good(lengths=np.array([1, 2], np.int32))], MODEL)
    assert sample["lengths"].dtype == np.int64
    np.testing.assert_array_equal(sample["lengths"], [1, 2])


def test_a_wrong_name_names_the_nearest():
    sentence = refusal({"pixel": good()["pixels"], "lengths": good()["lengths"]})
    assert "Sample 1 of the given list has an array 'pixel', which is no input" in sentence
    assert "did you mean 'pixels'?" in sentence


def test_a_missing_name():
    assert "lacks input 'lengths': every sample must give 'pixels', 'lengths'" in refusal(
        good(lengths=None)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"pixels": np.zeros((2, 3, 5), np.float32)},
            ["has shape [2, 3, 5], and the model takes [N, 3, 4]: axis 2 must be 4"],
        ),
        (
            {"pixels": np.zeros((3, 4), np.float32)},
            ["has shape [3, 4] (2 axes)", "[N, 3, 4] (3 axes). Add the batch axis"],
        ),
        (
            {"pixels": np.zeros((2, 3, 4), np.float64)},
            ["is float64, and the model takes float32", "array.astype('float32')"],
        ),
        (
            {"lengths": np.zeros(2, np.float32)},
            ["input 'lengths' is float32, and the model takes int64"],
        ),
        ({"lengths": np.zeros(2, np.uint64)}, ["is uint64, and the model takes int64"]),
        (
            {"pixels": np.where(np.arange(24).reshape(2, 3, 4) == 7, np.nan, 0).astype("f")},
            ["input 'pixels': element 7 (flat index) is nan", "must be finite"],
        ),
        (
            {"pixels": np.full((2, 3, 4), np.inf, np.float32)},
            ["element 0 (flat index) is inf"],
        ),
    ],
)
def test_what_does_not_fit_is_told(change, words):
    sentence = refusal(good(**change))
    assert sentence.startswith("Sample 1 of the given list")
    for word in words:
        assert word in sentence


def test_something_that_is_no_dict():
    assert "is a list, not a dict of arrays by input name: give {'pixels': array" in refusal([1, 2])


@pytest.mark.parametrize("empty", [[], (), iter(())])
def test_zero_samples(empty):
    with pytest.raises(CalibrationError, match=r"There are no samples in .*at least one"):
        list(checked_samples(empty, MODEL))


def test_a_bare_array_feeds_the_only_input():
    [sample] = checked_samples([np.ones((1, 2), np.float32)], ONE_INPUT)
    np.testing.assert_array_equal(sample["x"], [[1, 1]])


def test_an_input_with_an_initializer_need_not_be_fed():
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[N] x, float[1] w = {2}) => (float[N] y) { y = Mul(x, w) }""")
    assert [spec.name for spec in input_specs(model)] == ["x"]


def test_a_checked_sample_alone():
    with pytest.raises(CalibrationError, match=r"^The sample lacks input 'x'"):
        check_sample({}, input_specs(ONE_INPUT))
