import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibration import ChannelRange, ObserverSpec, Range
from onnxq.errors import CalibrationError

SPLIT_FREE = ["minmax", "percentile", "entropy", "mse"]


def observe(spec, arrays, axis=None):
    observer = spec.make(axis)
    for array in arrays:
        observer.add(array)
    return observer.result()


def bits(found):
    return np.array([found.low, found.high], np.float64).tobytes()


@pytest.mark.parametrize("method", SPLIT_FREE)
@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    spread=st.floats(1e-3, 1e3),
)
def test_ranges_do_not_depend_on_how_data_are_cut(method, symmetric, seed, cuts, spread):
    generator = np.random.default_rng(seed)
    data = generator.standard_t(3, 3000).astype(np.float32) * np.float32(spread)
    pieces = np.split(data, sorted(cuts))
    generator.shuffle(pieces)
    spec = ObserverSpec(method=method, symmetric=symmetric, bins=2048)
    assert bits(observe(spec, [data])) == bits(observe(spec, pieces))


@pytest.mark.parametrize("method", SPLIT_FREE)
def test_channel_ranges_are_those_of_each_channel_alone(method):
    generator = np.random.default_rng(0)
    data = generator.standard_normal((6, 3, 5, 7)).astype(np.float32) * [[[[1]], [[10]], [[100]]]]
    spec = ObserverSpec(method=method)
    found = observe(spec, list(data.astype(np.float32)), axis=0)
    assert isinstance(found, ChannelRange)
    for channel in range(3):
        alone = observe(spec, [np.ascontiguousarray(data[:, channel], np.float32)])
        assert found.low[channel] == np.float32(alone.low)
        assert found.high[channel] == np.float32(alone.high)
    assert found.overall == Range(float(found.low.min()), float(found.high.max()))


@pytest.mark.parametrize("method", SPLIT_FREE)
def test_a_value_larger_than_a_piece_is_observed_whole(method):
    data = np.random.default_rng(0).standard_normal((1 << 18) + 5).astype(np.float32)
    spec = ObserverSpec(method=method)
    assert bits(observe(spec, [data])) == bits(observe(spec, np.split(data, [7, 1 << 18])))


def test_min_max_is_exact_and_holds_no_negative_zero():
    found = observe(ObserverSpec(), [np.float32([[-1.5, 2.25]]), np.float32([-0.0])])
    assert found == Range(-1.5, 2.25)
    assert str(observe(ObserverSpec(), [np.float32([-0.0])]).high) == "0.0"


def test_symmetric_min_max_is_centred():
    assert observe(ObserverSpec(symmetric=True), [np.float32([-1, 3])]) == Range(-3, 3)


def test_moving_average_weighs_batches_by_momentum():
    spec = ObserverSpec(method="moving_average", momentum=0.5)
    found = observe(spec, [np.float32([-1, 1]), np.float32([-3, 5])])
    assert found == Range(-2, 3)


def test_percentile_cuts_the_share_of_values_asked_for():
    data = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    found = observe(ObserverSpec(method="percentile", percentile=99.0), [data])
    inside = np.mean((data >= found.low) & (data <= found.high))
    # Each end lies within one bin of 1/256 of the exact quantile: density there < 0.02.
    assert inside == pytest.approx(0.99, abs=2 * 0.02 / 256 * 2)


@pytest.mark.parametrize("method", ["entropy", "mse"])
def test_an_outlier_is_clipped_when_that_loses_less(method):
    data = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    data[0] = 50
    found = observe(ObserverSpec(method=method, bits=4), [data])
    assert found.high < 25
    assert observe(ObserverSpec(), [data]).high == 50


def test_mse_range_rounds_with_less_error_than_min_max():
    data = np.random.default_rng(1).standard_t(4, 50_000).astype(np.float32)

    def error(found):
        scale = (found.high - found.low) / 15
        zero = np.rint(-found.low / scale)
        codes = np.clip(np.rint(data / scale) + zero, 0, 15)
        return np.mean(((codes - zero) * scale - data) ** 2)

    assert error(observe(ObserverSpec(method="mse", bits=4), [data])) < 0.5 * error(
        observe(ObserverSpec(), [data])
    )


@pytest.mark.parametrize("method", [*SPLIT_FREE, "moving_average"])
@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (np.float32([1, np.nan]), "it holds NaN"),
        (np.float32([1, -np.inf]), "magnitudes up to inf, as masks do"),
        (np.float32([1, np.finfo(np.float32).min]), "magnitudes up to 3.4e+38, as masks do"),
    ],
)
def test_what_has_no_range_is_told(method, bad, sentence):
    observer = ObserverSpec(method=method).make()
    observer.add(np.float32([0, 1]))
    observer.add(bad)
    observer.add(np.float32([0, 1]))
    with pytest.raises(CalibrationError, match="A value has no range") as error:
        observer.result()
    assert sentence in str(error.value)


def test_nothing_but_empty_arrays_has_no_range():
    observer = ObserverSpec().make()
    observer.add(np.zeros((2, 0), np.float32))
    with pytest.raises(CalibrationError, match="it is empty in every sample"):
        observer.result()


def test_a_dynamic_channel_axis_is_told():
    observer = ObserverSpec().make(axis=-1)
    observer.add(np.zeros((2, 3), np.float32))
    observer.add(np.zeros((2, 4), np.float32))
    assert observer.problem is not None
    assert "channel axis -1 is dynamic (3 channels in one sample, 4 in another)" in observer.problem
    assert "calibrate it per tensor" in observer.problem


def test_a_missing_channel_axis_is_told():
    observer = ObserverSpec().make(axis=1)
    observer.add(np.zeros(3, np.float32))
    assert observer.problem == "it has 1 axes and no channel axis 1"


def test_half_and_double_precision_are_observed_as_float32():
    for dtype in (np.float16, np.float64):
        assert observe(ObserverSpec(), [np.array([-0.5, 2], dtype)]) == Range(-0.5, 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "median"}, "no observer 'median': choose one of minmax, moving_average"),
        ({"percentile": 40}, r"percentile is 40: it must be in \(50, 100\]"),
        ({"momentum": 1.0}, r"momentum is 1.0: it must be in \[0, 1\)"),
        ({"bits": 1}, "bits is 1: it must be from 2 to 8"),
        ({"bins": 1000}, "bins is 1000: it must be a power of two"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, sentence):
    with pytest.raises(CalibrationError, match=sentence):
        ObserverSpec(**settings)
