"""The best scales of trits: against every choice there is, and never worse after a round."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.ternary import (
    Spans,
    fit_one,
    fit_two,
    magnitudes,
    nearest_codes,
    only_magnitudes,
)

PAIRS = np.array([(t, u) for t in (-1, 0, 1) for u in (-1, 0, 1)])
SINGLES = np.array([[-1], [0], [1]])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def error_of(values, scales, costs=1.0):
    """What the nearest of all sums of trits leaves: every one of them is tried."""
    sums = (PAIRS if len(scales) == 2 else SINGLES) @ scales
    return np.sum(costs * np.min((values[:, None] - sums) ** 2, axis=1))


@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_scale_of_one_plane_is_the_best_of_all(size, seed, weighted):
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_normal((1, size)), 1)  # with ties and zeros
    costs = rng.integers(0, 4, (1, size)).astype(float) if weighted else np.ones((1, size))
    scale = fit_one(Spans.of(values, costs))[0, 0]
    found = np.sum(costs * np.min((values[..., None] - scale * np.arange(-1, 2)) ** 2, axis=-1))
    trits = np.array(list(itertools.product((-1, 0, 1), repeat=size)))
    power = np.sum(costs * trits**2, axis=1)
    fits = np.sum(costs * values * trits, axis=1) / np.where(power > 0, power, 1)
    errors = np.sum(costs * (values - fits[:, None] * trits) ** 2, axis=1)
    assert found <= errors.min() + 1e-12


@pytest.mark.parametrize("size", (1, 2, 7, 64, 1000))
@pytest.mark.parametrize("weighted", (False, True))
def test_no_round_of_the_progressive_approximation_makes_the_error_larger(size, weighted):
    values = draw(40, size, seed=size)
    values[3], values[4, size // 2 :] = 0, 0
    costs = np.random.default_rng(1).gamma(0.5, size=(40, size)) if weighted else None
    scales, errors = fit_two(Spans.of(values, costs))
    power = np.sum((1 if costs is None else costs) * values**2, axis=1)
    for before, after in itertools.pairwise(errors):
        assert (after <= before + 1e-12 * power).all()
    for row in range(40):
        told = error_of(values[row], scales[row], 1.0 if costs is None else costs[row])
        assert errors[-1][row] == pytest.approx(told, rel=1e-9, abs=1e-12 * max(power[row], 1))


def test_two_planes_are_no_worse_than_one_and_near_the_best_pair_of_scales():
    values = draw(10, 12, seed=3)
    spans = Spans.of(values)
    one, (two, errors) = fit_one(spans), fit_two(spans)
    grid = np.linspace(0, 3, 61)
    for row in range(10):
        assert errors[-1][row] <= error_of(values[row], one[row]) + 1e-12
        best = min(error_of(values[row], np.array([a, b])) for a in grid for b in grid[grid <= a])
        power = np.sum(values[row] ** 2)
        assert errors[-1][row] <= best + 0.02 * power
    assert (two[:, 0] >= two[:, 1]).all()
    assert (two >= 0).all()


@pytest.mark.parametrize(
    "scales", ([1.0], [0.0], [1.5, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0])
)
def test_every_number_takes_the_nearest_of_its_choices(scales):
    values = np.concatenate([draw(300) * 2, [0.0, -0.0, 1e9, -1e9]])[None]
    given_scales = np.array([scales])
    codes = nearest_codes(values, given_scales)[0]
    first = (codes + 4) // 3 - 1
    trits = np.stack([first, codes - 3 * first], axis=1) if len(scales) == 2 else codes[:, None]
    assert np.abs(trits).max() <= 1
    sums = trits @ np.array(scales)
    choices = (PAIRS if len(scales) == 2 else SINGLES) @ np.array(scales)
    least = np.abs(values[0][:, None] - choices).min(axis=1)
    np.testing.assert_allclose(np.abs(values[0] - sums), least, rtol=0, atol=1e-12)
    ascending, _ = magnitudes(given_scales)
    assert (np.diff(ascending) >= 0).all()


def test_spans_of_trits_are_recognised():
    values = np.array([[0.3, -0.3, 0.0], [0.3, 0.2, 0.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1]])
    most, is_ternary = only_magnitudes(values)
    assert is_ternary.tolist() == [True, False, True, True]
    assert most.tolist() == [0.3, 0.3, 0.0, 0.1]


def test_costs_draw_the_scales_to_what_counts():
    values, costs = draw(1, 400), np.ones((1, 400))
    costs[0, :40] = 50
    for fit in (fit_one, lambda spans: fit_two(spans)[0]):
        plain, weighted = fit(Spans.of(values))[0], fit(Spans.of(values, costs))[0]
        assert error_of(values[0], weighted, costs[0]) < error_of(values[0], plain, costs[0])
