"""Tables of few values: the best clustering, against brute force and against Lloyd and Max."""

import itertools

import numpy as np
import pytest

from onnxq.numerics.tables import fit_tables, nearest_entries, search_scales

LLOYD_MAX = {2: 0.3634, 4: 0.1175, 8: 0.03454, 16: 0.009497}
"""Mean squared errors for N(0, 1), Max, "Quantizing for Minimum Distortion" (1960), table I."""


def cost_of(values, weights, table):
    return float(np.sum(weights * np.min((values[:, None] - table) ** 2, axis=1)))


def least_cost(values, weights, clusters):
    """Over all ways to cut the sorted values into runs."""
    order = np.argsort(values)
    values, weights = values[order].astype(float), weights[order]
    count, least = len(values), np.inf
    for cuts in itertools.combinations_with_replacement(range(count + 1), clusters - 1):
        borders = [0, *cuts, count]
        total = 0.0
        for first, last in itertools.pairwise(borders):
            if last > first:
                x, w = values[first:last], weights[first:last]
                total += float(np.sum(w * (x - np.average(x, weights=w)) ** 2))
        least = min(least, total)
    return least


@pytest.mark.parametrize("seed", range(12))
def test_clusters_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    count, clusters = int(rng.integers(1, 11)), int(rng.integers(1, 5))
    values = rng.choice([-1.0, 0.5, 2.0, *rng.standard_normal(6)], count).astype(np.float32)
    weights = rng.uniform(0.1, 5.0, count)
    table = fit_tables(values[None], clusters, importance=weights).tables[0, 0]
    assert np.all(np.diff(table) >= 0)
    expected = least_cost(values, weights, clusters)
    assert cost_of(values, weights, table) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("entries", LLOYD_MAX)
def test_on_gaussian_numbers_it_is_the_quantizer_of_lloyd_and_max(entries):
    values = np.random.default_rng(0).standard_normal((1, 1 << 20)).astype(np.float32)
    table = fit_tables(values, entries, threads=2).tables
    codes = nearest_entries(values, table, np.ones((1, 1)), threads=2)
    error = np.mean((values - table[0, 0][codes]) ** 2, dtype=np.float64)
    assert error == pytest.approx(LLOYD_MAX[entries], rel=5e-3)


def test_joining_neighbours_first_loses_little():
    values = np.random.default_rng(1).standard_t(4, (1, 5000)).astype(np.float32)
    ones = np.ones(values.shape[1])
    best = cost_of(values[0], ones, fit_tables(values, 8).tables[0, 0])
    joined = cost_of(values[0], ones, fit_tables(values, 8, most=200).tables[0, 0])
    assert best <= joined <= 1.01 * best


def test_groups_and_threads_change_nothing():
    rng = np.random.default_rng(2)
    values, weights = rng.standard_normal((5, 70)), rng.uniform(0, 1, (5, 70))
    fitted = fit_tables(values, 4, group=32, importance=weights, threads=1)
    assert fitted.tables.shape == (5, 3, 4)
    again = fit_tables(values, 4, group=32, importance=weights, threads=3)
    np.testing.assert_array_equal(fitted.tables, again.tables)
    alone = fit_tables(
        np.ascontiguousarray(values[2:3, 64:]), 4, importance=weights[2:3, 64:] / weights.mean()
    )
    np.testing.assert_allclose(fitted.tables[2, 2], alone.tables[0, 0], rtol=1e-6)


def test_masses_are_the_weights_of_the_clusters():
    values = np.array([[0.0, 0.1, 5.0, 5.1, 5.2]], np.float32)
    fitted = fit_tables(values, 2)
    np.testing.assert_allclose(fitted.masses, [[[2, 3]]], rtol=1e-6)
    spare = fit_tables(values[:, :1], 3)
    assert spare.masses.sum() == pytest.approx(1)
    np.testing.assert_allclose(spare.tables, 0)


def test_nearest_entries_are_the_nearest():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((4, 300)).astype(np.float32)
    tables = np.sort(rng.standard_normal((4, 3, 16)), axis=-1).astype(np.float32)
    scales = np.where(rng.random((1, 3)) < 0.5, -1, 1) * rng.uniform(0.5, 2, (1, 3))
    codes = nearest_entries(values, tables, scales, group=128)
    points = np.repeat(tables * scales[..., None], 128, axis=1)[:, :300].astype(float)
    distances = np.abs(points - values[..., None])
    chosen = np.take_along_axis(distances, codes[..., None].astype(int), axis=-1)[..., 0]
    assert np.all(chosen <= distances.min(axis=-1) + 1e-6)


def test_scales_are_the_best_of_those_tried():
    rng = np.random.default_rng(4)
    values = rng.standard_normal((3, 50)).astype(np.float32)
    weights = rng.uniform(0.1, 1, 50)
    table = np.array([-1.0, -0.2, 0.0, 0.3], np.float32)
    scales, costs = search_scales(values, table, group=20, importance=weights)
    weights = weights / weights.mean()
    for row, group in itertools.product(range(3), range(3)):
        part = slice(20 * group, min(50, 20 * group + 20))
        numbers = values[row, part].astype(float)
        tried = np.abs(numbers).max() * np.linspace(1.0, 0.3, 71)
        tried = np.concatenate([tried, -tried]).astype(np.float16).astype(float)
        least = min(cost_of(numbers, weights[part], table * scale) for scale in tried)
        found = cost_of(numbers, weights[part], table.astype(float) * scales[row, group])
        assert found == pytest.approx(least, rel=1e-4)
        assert costs[row, group] == pytest.approx(found, rel=1e-4)
    assert (scales < 0).any(), "the table reaches farther down, and some groups up"


def test_a_group_of_zeros_has_scale_one():
    assert search_scales(np.zeros((1, 4)), np.array([-1.0, 1.0]))[0] == 1
