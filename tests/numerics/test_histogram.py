"""Histograms: a function of the values alone; ranges from them do what their definitions say."""

import itertools

import numpy as np
import pytest

from onnxq.errors import CalibrationError
from onnxq.numerics.histogram import (
    Histogram,
    bin_counts_reference,
    entropy_range,
    find_range,
    mse_range,
    percentile_range,
)

ENTROPY = pytest.param(lambda h: entropy_range(h, False), id="entropy")
MSE = pytest.param(lambda h: mse_range(h, 8, False), id="mse")
PERCENTILE = pytest.param(lambda h: percentile_range(h, 99.9), id="percentile")
RANGES = [ENTROPY, MSE, PERCENTILE]


def awkward(count, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count).astype(np.float32)
    values[::7] = 0
    values[1::7] = -0.0
    values[2::11] *= np.float32(2.0) ** rng.integers(-140, 20, len(values[2::11]))
    values[3::13] = np.float32(2.0) ** rng.integers(-10, 10, len(values[3::13]))  # bin edges
    return values


def histogram_of(*parts, bins=4096, threads=1):
    histogram = Histogram(bins)
    for part in parts:
        histogram.add(part, threads=threads)
    return histogram


def same(one, other):
    return (
        one.exponent == other.exponent
        and np.array_equal(one.counts, other.counts)
        and (one.low, one.high, one.count, one.zeros)
        == (other.low, other.high, other.count, other.zeros)
    )


@pytest.mark.parametrize("bins", (8, 64, 4096))
@pytest.mark.parametrize("count", (1, 2, 17, 4096, 100_003))
def test_counts_are_those_of_the_definition(bins, count):
    values = awkward(count)
    histogram = histogram_of(values, bins=bins)
    assert histogram.count == count
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    if histogram.exponent is not None:
        wanted = bin_counts_reference(values, histogram.exponent, bins)
        assert np.array_equal(histogram.counts, wanted)
    assert histogram.counts.sum() + histogram.zeros == count


@pytest.mark.parametrize("bins", (8, 1024))
def test_batches_order_threads_and_merging_do_not_matter(bins):
    values = awkward(60_000)
    whole = histogram_of(values, bins=bins)
    rng = np.random.default_rng(1)
    for pieces, threads in itertools.product((1, 2, 7, 100), (1, 2)):
        parts = np.array_split(rng.permutation(values), pieces)
        assert same(histogram_of(*parts, bins=bins, threads=threads), whole)
        merged = Histogram(bins)
        for part in parts:
            merged.merge(histogram_of(part, bins=bins))
        assert same(merged, whole)


def test_many_threads_count_a_long_array():
    values = awkward(1_500_000)
    assert same(histogram_of(values, threads=4), histogram_of(values, threads=1))


def test_at_least_a_quarter_of_the_bins_is_in_use():
    for reach in (1e-44, 1e-30, 0.999, 1.0, 1.001, 3e38):
        histogram = histogram_of(np.array([reach, -reach / 3], np.float32), bins=64)
        places = np.flatnonzero(histogram.counts)
        assert len(places) == 2 or reach < 1e-40
        # Subnormals share the first bins: a bin is never narrower than 2^-126.
        assert places[-1] >= 48 or reach < 1e-40


@pytest.mark.parametrize("dtype", (np.float16, np.float64))
def test_other_float_types_are_taken(dtype):
    values = np.random.default_rng(2).standard_normal((50, 60)).astype(dtype)
    assert same(histogram_of(values), histogram_of(values.astype(np.float32)))


def test_strided_arrays_and_empty_arrays():
    values = np.random.default_rng(3).standard_normal((40, 30)).astype(np.float32)
    wanted = histogram_of(np.ascontiguousarray(values[:, ::2]))
    assert same(histogram_of(values[:, ::2], np.zeros((0, 3), np.float32)), wanted)


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
def test_not_finite_is_refused_and_not_counted(bad):
    histogram = histogram_of(np.ones(5, np.float32))
    values = np.ones(1000, np.float32)
    values[777] = bad
    assert not find_range(values)[2]
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        histogram.add(values)
    assert histogram.count == 5


def test_find_range():
    for count in (1, 3, 16, 1000, 600_001):
        values = awkward(count, seed=count)
        for threads in (1, 3):
            assert find_range(values, threads=threads) == (values.min(), values.max(), True)


def test_wrong_use_is_refused():
    with pytest.raises(CalibrationError, match="power of two of bins from 8 up, not 100"):
        Histogram(100)
    with pytest.raises(CalibrationError, match="8 and 16 bins cannot be merged"):
        Histogram(8).merge(Histogram(16))
    with pytest.raises(CalibrationError, match="percentile is 0"):
        percentile_range(histogram_of(np.ones(1, np.float32)), 0)


@pytest.mark.parametrize("find", RANGES)
def test_an_empty_histogram_has_no_range(find):
    with pytest.raises(CalibrationError, match="no values were seen"):
        find(Histogram())


@pytest.mark.parametrize("find", RANGES)
def test_ranges_hold_zero_and_stay_inside_the_data(find):
    for offset in (-10, -1, 0, 1, 10):
        values = awkward(5000) % 4 + np.float32(offset)
        low, high = find(histogram_of(values))
        assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
    assert find(histogram_of(np.zeros(4, np.float32))) == (0, 0)


@pytest.mark.parametrize("find", RANGES)
def test_negated_data_have_the_negated_range(find):
    values = awkward(20_000)
    low, high = find(histogram_of(values))
    assert find(histogram_of(-values)) == pytest.approx((-high, -low), rel=1e-12)


@pytest.mark.parametrize("find", RANGES)
def test_a_power_of_two_scales_the_range(find):
    values = np.random.default_rng(4).standard_normal(20_000).astype(np.float32)
    low, high = find(histogram_of(values))
    assert find(histogram_of(values * 64)) == pytest.approx((64 * low, 64 * high), rel=1e-12)


def test_percentile_agrees_with_numpy_to_a_bin():
    values = np.random.default_rng(5).standard_normal(200_000).astype(np.float32)
    values[:50_000] = 0
    histogram = histogram_of(values)
    for percentile in (50, 90, 99, 99.9, 100):
        low, high = percentile_range(histogram, percentile)
        cut = (100 - percentile) / 2
        wanted = np.percentile(values, [cut, 100 - cut])
        assert np.abs(np.array([low, high]) - wanted).max() <= histogram.width
        reach = percentile_range(histogram, percentile, symmetric=True)[1]
        assert abs(reach - np.percentile(np.abs(values), percentile)) <= histogram.width


def test_percentile_of_one_sided_data_ends_at_zero():
    values = np.abs(np.random.default_rng(6).standard_normal(10_000).astype(np.float32))
    assert percentile_range(histogram_of(values), 99)[0] == 0


def test_entropy_ignores_a_lone_outlier_and_keeps_a_uniform_range():
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(400_000).astype(np.float32)
    with_outlier = np.append(normal, np.float32(60))
    for symmetric in (True, False):
        assert entropy_range(histogram_of(with_outlier, bins=16384), symmetric)[1] < 8
        uniform = histogram_of(rng.random(400_000).astype(np.float32) - np.float32(0.5))
        low, high = entropy_range(uniform, symmetric)
        assert high > 0.49 and low < -0.49


def test_entropy_does_not_look_at_exact_zeros():
    normal = np.maximum(np.random.default_rng(8).standard_normal(100_000), 1e-3)
    normal = normal.astype(np.float32)
    many_zeros = np.append(normal, np.zeros(900_000, np.float32))
    for symmetric in (True, False):
        wanted = entropy_range(histogram_of(normal), symmetric)
        assert entropy_range(histogram_of(many_zeros), symmetric) == wanted


def test_entropy_with_fewer_bins_than_levels_keeps_the_data():
    histogram = histogram_of(np.array([-1, 2, 3], np.float32), bins=64)
    assert entropy_range(histogram, False) == (-1, 3)
    assert entropy_range(histogram, True) == (-3, 3)


@pytest.mark.parametrize("bits", (2, 3, 4, 6, 8))
@pytest.mark.parametrize("draw", ("normal", "laplace", "relu"))
@pytest.mark.parametrize("symmetric", (True, False))
def test_mse_range_is_as_good_as_a_dense_search_on_the_values(bits, draw, symmetric):
    rng = np.random.default_rng(9)
    values = rng.laplace(size=40_000) if draw == "laplace" else rng.standard_normal(40_000)
    values = (np.maximum(values, 0) if draw == "relu" else values).astype(np.float32)
    low, high = mse_range(histogram_of(values), bits, symmetric)

    def cost(low, high):
        if symmetric:
            top = 2 ** (bits - 1) - 1
            scale = max(-low, high) / top
            return np.mean((np.clip(np.rint(values / scale), -top, top) * scale - values) ** 2)
        scale = (high - low) / (2**bits - 1)
        zero = np.rint(-low / scale)
        codes = np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1)
        return np.mean(((codes - zero) * scale - values) ** 2)

    full = min(values.min(), 0), max(values.max(), 0)
    dense = min(cost(full[0] * factor, full[1] * factor) for factor in np.linspace(0.02, 1, 200))
    # A histogram of 4096 bins knows values to a bin, 1/16 of an 8-bit step or better, and the
    # sweep leaves the best end by at most 1 %.
    assert cost(low, high) <= 1.02 * dense


def test_mse_range_cuts_an_outlier():
    values = np.random.default_rng(10).standard_normal(100_000).astype(np.float32)
    values[0] = 200
    low, high = mse_range(histogram_of(values), 4, True)
    assert 2 < high < 8 and low == -high
