"""Columns kept in full precision: the correction is the best one, and codes count on it."""

import functools

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import parse_format
from onnxq.solvers.coordinate_descent import coordinate_descent
from onnxq.solvers.gptq import gptq
from onnxq.solvers.kept_columns import KeptColumns, solve_keeping
from onnxq.solvers.nearest import nearest
from onnxq.solvers.objective import objective
from onnxq.solvers.statistics import Statistics

SOLVERS = {"gptq": gptq, "coordinate_descent": coordinate_descent}


def problem(seed=0, rows=24, columns=48, loud=(5, 17)):
    """Activations of which two channels are ten times as loud as the others."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((400, columns)) @ (
        np.eye(columns) + 0.3 * rng.standard_normal((columns, columns))
    )
    inputs[:, list(loud)] *= 10.0
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return weight, Statistics(hessian=inputs.T @ inputs / len(inputs))


def kept(solver, count, weight, fmt, statistics):
    solve = functools.partial(lambda w, s: SOLVERS[solver](w, fmt, s))
    return solve_keeping(count, solve, weight, fmt, statistics)


@pytest.mark.parametrize("text", ["int3_channel", "int2_g16_asym", "int4_g20"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_keeping_more_columns_costs_less(solver, text):
    weight, statistics = problem()
    fmt = parse_format(text)
    costs = [objective(weight, fmt.decode(SOLVERS[solver](weight, fmt, statistics)), statistics)]
    for count in (2, 8, 47):
        arrays, columns = kept(solver, count, weight, fmt, statistics)
        costs.append(objective(weight, columns.added_to(fmt.decode(arrays)), statistics))
    totals = [float(cost.sum()) for cost in costs]
    assert totals == sorted(totals, reverse=True)
    assert totals[1] < 0.9 * totals[0]  # the two loud channels alone are worth a tenth


def test_the_correction_is_the_best_one_for_its_codes():
    """At the optimum of a quadratic in S its gradient (E − S) H vanishes on the columns kept."""
    weight, statistics = problem()
    fmt = parse_format("int2_channel")
    arrays, columns = kept("gptq", 4, weight, fmt, statistics)
    error = weight - columns.added_to(fmt.decode(arrays))
    gradient = (error @ statistics.hessian)[:, columns.columns]
    before = ((weight - fmt.decode(arrays)) @ statistics.hessian)[:, columns.columns]
    assert np.abs(gradient).max() < 1e-5 * np.abs(before).max()


def test_it_equals_least_squares_by_hand():
    """The second column has large weights and is kept: S = e₂ + (e₁ H₁₂ + e₃ H₃₂) / H₂₂."""
    hessian = np.array([[2.0, 1.0, 0.0], [1.0, 4.0, 0.5], [0.0, 0.5, 3.0]])
    weight = np.array([[0.8, 100.0, -0.7], [1.0, 90.0, 0.6]], np.float32)
    fmt = parse_format("int2_channel")
    solve = functools.partial(lambda w, s: nearest(w, fmt))
    arrays, columns = solve_keeping(1, solve, weight, fmt, Statistics(hessian=hessian))
    assert columns.columns.tolist() == [1]
    error = weight - fmt.decode(arrays)
    assert error[:, 1].tolist() == [100.0, 90.0]  # the codes of the column kept stand for 0
    by_hand = error[:, 1] + (error[:, 0] * 1.0 + error[:, 2] * 0.5) / 4.0
    np.testing.assert_allclose(columns.correction[:, 0], by_hand, rtol=1e-5)


def test_loud_channels_are_the_ones_kept():
    weight, statistics = problem(loud=(3, 40))
    _, columns = kept("gptq", 2, weight, parse_format("int3_channel"), statistics)
    assert columns.columns.tolist() == [3, 40]


@pytest.mark.parametrize("hessian", [np.zeros((8, 8)), np.ones((8, 8)), np.diag([1.0] + [0] * 7)])
def test_singular_statistics_are_fine(hessian):
    weight = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    fmt = parse_format("int4_channel")
    arrays, columns = kept("gptq", 2, weight, fmt, Statistics(hessian=hessian))
    total = columns.added_to(fmt.decode(arrays))
    assert np.isfinite(total).all()
    plain = objective(weight, fmt.decode(arrays), Statistics(hessian=hessian)).sum()
    assert objective(weight, total, Statistics(hessian=hessian)).sum() <= plain + 1e-6


@pytest.mark.parametrize("count", [0, 48, 60])
def test_a_count_that_leaves_nothing_is_refused(count):
    weight, statistics = problem()
    with pytest.raises(FormatError, match="keep at least one, and fewer than there are"):
        kept("gptq", count, weight, parse_format("int4_channel"), statistics)


def test_adding_leaves_the_other_columns_alone():
    columns = KeptColumns(np.array([1]), np.array([[2.0]], np.float32))
    assert columns.added_to(np.array([[1.0, 1.0, 1.0]], np.float32)).tolist() == [[1.0, 3.0, 1.0]]
