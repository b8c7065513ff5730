"""The figures of outliers against distributions whose figures are known."""

import math

import numpy as np
import pytest

from onnxq.evaluate.outliers import (
    OutlierMeter,
    Outliers,
    log_ball_qsur,
    log_qsur,
    qsur_bits,
)

rng = np.random.default_rng(0)


def measured(rows, **options):
    meter = OutlierMeter(rows.shape[1], **options)
    for start in range(0, len(rows), 37):
        meter.add(rows[start : start + 37])
    return meter.result()


def hadamard(size):
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def covariance(eigenvalues, seed=0):
    """A moment with these eigenvalues, and the matrix of its eigenvectors."""
    draw = np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2)
    vectors, _ = np.linalg.qr(draw)
    return vectors * eigenvalues @ vectors.T, vectors


# The standard error of a sample kurtosis of a Gaussian is √(24 / n): 0.011 for n = 200 000.
@pytest.mark.parametrize(
    ("draw", "kurtosis", "error"),
    [
        (lambda n: rng.standard_normal(n), 3.0, 0.011),
        (lambda n: rng.uniform(-1, 1, n), 1.8, 0.004),
        (lambda n: rng.choice([-1.0, 1.0], n), 1.0, 1e-4),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_kurtosis_of_known_distributions_wherever_they_lie(draw, kurtosis, error, shift):
    found = measured(draw((2000, 100)) * 3 + shift)
    assert found.kurtosis == pytest.approx(kurtosis, abs=5 * error)


def test_kurtosis_is_that_of_the_definition():
    rows = rng.standard_normal((100, 16)) ** 3 + 2
    centred = rows - rows.mean()
    wanted = np.mean(centred**4) / np.mean(centred**2) ** 2
    assert measured(rows).kurtosis == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("size", [4, 64, 256])
def test_one_hot_has_the_root_of_its_length_and_a_hadamard_takes_it_to_one(size):
    rows = 7.5 * np.eye(size)[rng.integers(0, size, 20)]
    found = measured(rows)
    assert found.row_max_to_rms == pytest.approx(math.sqrt(size))
    assert found.max_to_rms == pytest.approx(math.sqrt(size))
    turned = measured(rows @ hadamard(size) / math.sqrt(size))
    assert turned.row_max_to_rms == pytest.approx(1.0)
    assert turned.max_to_rms == pytest.approx(1.0)


def test_one_loud_row_counts_for_the_tensor_and_not_for_the_others():
    rows = np.ones((100, 8))
    rows[0] = 50.0
    found = measured(rows)
    assert found.row_max_to_rms == pytest.approx(1.0)
    assert found.max_to_rms == pytest.approx(50 / math.sqrt((99 + 2500) / 100))


def test_rows_of_zeros_are_no_rows_of_the_mean():
    rows = np.zeros((10, 4))
    rows[3] = (1, 1, 1, 1)
    assert measured(rows).row_max_to_rms == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 500])
def test_qsur_of_a_ball_is_its_volume_over_that_of_the_cube(size):
    known = {1: 1.0, 2: math.pi / 4, 3: math.pi / 6}
    volume = log_qsur(3.7 * np.eye(size))
    assert volume == pytest.approx(log_ball_qsur(size), abs=1e-6)
    if size in known:
        assert math.exp(volume) == pytest.approx(known[size])


def test_qsur_of_an_ellipse_is_that_of_its_bounding_square():
    # Half axes 2 and 1, upright: π·2·1 over the square of edge 4.
    assert math.exp(log_qsur(np.diag([4.0, 1.0]))) == pytest.approx(2 * math.pi / 16)


def test_qsur_does_not_depend_on_scale():
    moment, _ = covariance(rng.uniform(0.1, 5, 40))
    assert log_qsur(moment * 1e8) == pytest.approx(log_qsur(moment))


def test_qsur_falls_with_the_spread_of_channels_by_half_a_bit_for_each_factor_two():
    moment = np.eye(8)
    moment[0, 0] = 4.0  # one of eight channels twice as large: the other seven waste a bit
    assert qsur_bits(moment) == pytest.approx(-7 / 8, abs=1e-6)


def test_a_rotation_to_a_level_diagonal_restores_all_but_the_means_of_the_eigenvalues():
    eigenvalues = np.r_[400.0, rng.uniform(0.5, 2, 63)]
    moment, vectors = covariance(eigenvalues)
    turn = hadamard(64) / 8 @ vectors.T
    levelled = turn @ moment @ turn.T
    np.testing.assert_allclose(np.diag(levelled), eigenvalues.mean())
    best = 0.5 * np.mean(np.log2(eigenvalues)) - 0.5 * np.log2(eigenvalues.mean())
    assert qsur_bits(levelled) == pytest.approx(best, abs=1e-6)
    assert qsur_bits(moment) < qsur_bits(levelled)
    for seed in range(5):  # no other rotation does better
        other, _ = covariance(eigenvalues, seed + 1)
        assert qsur_bits(other) <= best + 1e-6


def test_scaling_the_axes_of_the_ellipsoid_restores_the_ball():
    eigenvalues = rng.uniform(0.01, 100, 32)
    moment, vectors = covariance(eigenvalues)
    transform = vectors / np.sqrt(eigenvalues) @ vectors.T
    assert qsur_bits(transform @ moment @ transform.T) == pytest.approx(0.0, abs=1e-6)


def test_measured_qsur_is_that_of_the_moment():
    rows = rng.standard_normal((500, 24)) @ rng.standard_normal((24, 24)) + 1
    assert measured(rows).qsur == pytest.approx(qsur_bits(rows.T @ rows / 500), abs=1e-9)


def test_a_direction_without_variance_costs_the_ridge_alone():
    moment = np.eye(64) - 1 / 64  # what a norm without scale leaves
    wasted = 0.5 * (math.log2(1e-9) / 64 - math.log2(1 - 1 / 64))
    assert qsur_bits(moment) == pytest.approx(wasted, abs=1e-3)


def test_the_same_linear_map_moves_the_figure_as_it_moves_that_of_the_true_moment():
    rows = rng.standard_normal((96, 64))  # few rows: the level is off, the difference is not
    scales = np.r_[8.0, np.ones(63)]
    moved = measured(rows * scales).qsur - measured(rows).qsur
    peaks = [np.mean(np.square(rows * s), axis=0).max() for s in (np.ones(64), scales)]
    assert moved == pytest.approx(math.log2(8) / 64 - 0.5 * math.log2(peaks[1] / peaks[0]))


def test_too_few_rows_span_no_ellipsoid():
    assert measured(rng.standard_normal((10, 24))).qsur is None
    assert measured(rng.standard_normal((40, 24)), wants_qsur=False).qsur is None


def test_half_precision_is_taken_and_channels_are_told():
    rows = rng.standard_normal((50, 6)).astype(np.float16)
    meter = OutlierMeter(6)
    meter.add(rows)
    np.testing.assert_array_equal(meter.peaks, np.abs(rows).max(axis=0))
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(meter.roots, np.sqrt(np.mean(wide**2, axis=0)))
    assert isinstance(meter.result(), Outliers)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (np.zeros((3, 4)), "zero throughout"),
        (np.full((3, 4), np.nan), "NaN or infinity"),
        (np.empty((0, 4)), "empty"),
    ],
)
def test_nothing_to_measure_is_a_clause(rows, why):
    assert why in measured(rows)


def test_plain_values_have_four_digits():
    found = measured(np.ones((3, 2))).to_dict()
    assert found["kurtosis"] is None
    assert found["max_to_rms"] == 1.0
    assert found["rows"] == 3
