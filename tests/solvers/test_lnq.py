"""LNQ: no step raises the objective; tables are the best for their codes, and codes for tables."""

import itertools

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import parse_format
from onnxq.formats.lut import points
from onnxq.numerics.entry_descent import descend_entries, entry_sums
from onnxq.solvers.coordinate_descent import damped
from onnxq.solvers.gptq import gptq
from onnxq.solvers.lnq import lnq
from onnxq.solvers.nearest import nearest
from onnxq.solvers.objective import objective
from onnxq.solvers.statistics import Statistics

FORMATS = ("lut1", "lut2", "lut3_g32", "lut4", "lut3_tensor", "lut2_f16", "lut3_g20_f16")


def case(rows=37, columns=70, tokens=200, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)) @ rng.standard_normal((columns, columns))
    x *= np.exp(rng.standard_normal(columns) / 2)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return weight, Statistics(hessian=x.T @ x / tokens)


def cost(weight, arrays, fmt, statistics, damping=0.01):
    known = Statistics(hessian=damped(statistics.hessian, damping))
    return float(objective(weight, fmt.decode(arrays), known).sum())


@pytest.mark.parametrize("start", ("gptq", "nearest"))
@pytest.mark.parametrize("name", FORMATS)
def test_no_round_raises_the_objective(name, start):
    fmt = parse_format(name)
    weight, statistics = case()
    first = {"gptq": gptq, "nearest": nearest}[start](weight, fmt, statistics)
    costs = [cost(weight, first, fmt, statistics)]
    for rounds in range(4):
        found = lnq(weight, fmt, statistics, start=start, rounds=rounds, damping=0.01)
        assert {key: (part.shape, part.dtype) for key, part in found.items()} == {
            key: (part.shape, part.dtype) for key, part in first.items()
        }
        assert (np.diff(found["lut"].astype(np.float32), axis=-1) >= 0).all()
        costs.append(cost(weight, found, fmt, statistics))
    assert costs[0] == costs[1]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(costs))
    assert costs[-1] < 0.98 * costs[0]


def test_no_single_code_can_be_improved():
    fmt = parse_format("lut2_f16")
    weight, statistics = case(rows=6, columns=40)
    found = lnq(weight, fmt, statistics, rounds=20, sweeps=100, damping=0.01)
    best = cost(weight, found, fmt, statistics)
    for row, column, code in itertools.product(range(6), range(40), range(4)):
        codes = found["codes"].copy()
        codes[row, column] = code
        assert cost(weight, {**found, "codes": codes}, fmt, statistics) >= best * (1 - 1e-5)


def test_tables_are_the_least_squares_of_their_codes():
    fmt = parse_format("lut3_f16")
    weight, statistics = case(rows=5)
    found = lnq(weight, fmt, statistics, rounds=40, sweeps=40, damping=0.0)
    root = np.linalg.cholesky(statistics.hessian)
    for row, codes in enumerate(found["codes"]):
        which = np.eye(8)[codes]  # [columns, entries]
        best, *_ = np.linalg.lstsq(root.T @ which, root.T @ weight[row], rcond=None)
        stored = points(found["lut"], found["scales"])[row, 0]
        used = which.any(axis=0)
        np.testing.assert_allclose(stored[used], best[used], atol=2e-3)  # float16, last fit


def test_sums_and_steps_are_those_of_numpy_on_any_number_of_threads():
    weight, statistics = case(rows=9, columns=50)
    hessian = statistics.hessian.astype(np.float32)
    codes = np.random.default_rng(1).integers(0, 4, weight.shape, np.uint8)
    part = slice(16, 40)
    sums = entry_sums(hessian, codes, 4, part, threads=1)
    which = np.eye(4)[codes[:, part]]
    wanted = np.einsum("rik,ij,rjl->rkl", which, hessian[part, part].astype(np.float64), which)
    np.testing.assert_allclose(sums, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    table = np.sort(np.random.default_rng(2).standard_normal((9, 1, 4)), axis=-1)
    values = np.take_along_axis(table[:, 0], codes.astype(np.intp), axis=1)
    residual = (weight - values) @ hessian
    one = descend_entries(hessian, table, codes, residual, group=50, sweeps=3, threads=1)
    two = descend_entries(hessian, table, codes, residual, group=50, sweeps=3, threads=2)
    assert np.array_equal(one[0], two[0]) and one[1] == two[1] > 0
    assert np.array_equal(sums, entry_sums(hessian, codes, 4, part, threads=2))


def test_start_nearest_without_rounds_is_weighted_k_means():
    fmt = parse_format("lut3")
    weight, statistics = case()
    found = lnq(weight, fmt, statistics, start="nearest", rounds=0)
    wanted = fmt.encode(weight, importance=np.diagonal(statistics.hessian))
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


def test_columns_without_inputs_and_singular_hessians_are_fine():
    fmt = parse_format("lut2")
    weight, _ = case(columns=48)
    for hessian in (np.zeros((48, 48)), np.outer(np.arange(48.0), np.arange(48.0))):
        found = lnq(weight, fmt, Statistics(hessian=hessian), damping=0.0)
        assert np.isfinite(fmt.decode(found)).all()


def test_what_has_no_learned_table_is_refused():
    weight, statistics = case(rows=3, columns=20)
    for name in ("nf4", "int4"):
        with pytest.raises(FormatError, match=f"lnq fits learned tables, and {name}"):
            lnq(weight, parse_format(name), statistics)
    with pytest.raises(FormatError, match="start is 'zero'"):
        lnq(weight, parse_format("lut2"), statistics, start="zero")
    with pytest.raises(FormatError, match="needs the statistics"):
        lnq(weight, parse_format("lut2"))
