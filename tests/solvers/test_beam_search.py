"""beam_search: the objective goes down turn by turn, to what can be found by hand where it can."""

import itertools

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import parse_format
from onnxq.solvers.beam_search import _Turn, beam_search
from onnxq.solvers.coordinate_descent import damped
from onnxq.solvers.gptq import gptq
from onnxq.solvers.nearest import nearest
from onnxq.solvers.objective import objective
from onnxq.solvers.statistics import Statistics


def problem(rows, columns, seed=0):
    """A weight, and a Hessian whose columns go together."""
    rng = np.random.default_rng(seed)
    mixed = np.eye(columns) + 0.4 * rng.standard_normal((columns, columns))
    x = rng.standard_normal((4 * columns, columns)) @ mixed
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return weight, Statistics(hessian=(x.T @ x / len(x)).astype(np.float32))


def cost(weight, fmt, arrays, statistics):
    return float(objective(weight, fmt.decode(arrays), statistics).sum())


@pytest.mark.parametrize(
    "name", ["vq_d2n16", "vq_d4n64_b64x16", "vq_d1n16_g8", "aq_m2d4n16", "aq_m3d8n16_tensor",
             "higgs_d2n16_g8"]
)  # fmt: skip
def test_the_objective_is_below_that_of_gptq_and_nearest(name):
    weight, statistics = problem(130, 48)
    fmt = parse_format(name)
    found = cost(weight, fmt, beam_search(weight, fmt, statistics), statistics)
    assert found < cost(weight, fmt, gptq(weight, fmt, statistics), statistics)
    assert found < cost(weight, fmt, nearest(weight, fmt, statistics), statistics)


@pytest.mark.parametrize("name", ["vq_d2n16", "aq_m2d4n16_g8", "aq_m2d2n16_b64x8"])
def test_no_turn_raises_the_objective(name):
    weight, statistics = problem(130, 48)
    fmt = parse_format(name)
    arrays = gptq(weight, fmt, statistics)
    turn = _Turn(fmt, weight, damped(statistics.hessian, 0.01), 8, None)
    for step in (turn.codes, turn.scales, lambda a: turn.books(a, 5), turn.codes):
        after = step(arrays)
        assert turn.costs(after).sum() <= turn.costs(arrays).sum() * (1 + 1e-6)
        arrays = after


def test_codes_are_the_best_for_each_run_given_the_others():
    weight, statistics = problem(3, 8)
    fmt = parse_format("vq_d4n16")
    hessian = damped(statistics.hessian, 0.01)
    turn = _Turn(fmt, weight, hessian, 1, None)
    arrays = gptq(weight, fmt, statistics)
    for _ in range(20):
        arrays = turn.codes(arrays)
    found = turn.costs(arrays)
    for run, code in itertools.product(range(2), range(16)):
        other = arrays["codes"].copy()
        other[:, run] = code
        assert (found <= turn.costs({**arrays, "codes": other}) * (1 + 1e-5)).all()


def test_books_reach_what_least_squares_gives_in_closed_form():
    rows, columns = 40, 8
    weight, statistics = problem(rows, columns)
    fmt = parse_format("vq_d2n16_tensor")
    arrays = nearest(weight, fmt)
    hessian = damped(statistics.hessian, 0.01).astype(np.float64)
    scale = float(arrays["scales"][0, 0])
    # Numbers of the book → weights, row by row, as one matrix; whitened by H = R Rᵀ.
    maps = np.zeros((rows, columns, 32))
    for row, run in itertools.product(range(rows), range(4)):
        for axis in range(2):
            maps[row, 2 * run + axis, 2 * arrays["codes"][row, run] + axis] = scale
    root = np.linalg.cholesky(hessian)
    design = np.einsum("cd,rcn->rdn", root, maps).reshape(-1, 32)
    aim = (weight.astype(np.float64) @ root).reshape(-1)
    best = np.linalg.lstsq(design, aim, rcond=None)[0]
    least = float(np.square(design @ best - aim).sum())
    turn = _Turn(fmt, weight, hessian.astype(np.float32), 1, None)
    before, after = (turn.costs(one).sum() for one in (arrays, turn.books(arrays, 64)))
    # Rounded to int8: of the way to the least, all but a hundredth.
    assert least <= after * (1 + 1e-6)
    assert after - least <= 0.01 * (before - least)


def test_the_seed_and_threads_decide_nothing_else():
    weight, statistics = problem(130, 48)
    fmt = parse_format("aq_m2d4n16")
    first = beam_search(weight, fmt, statistics, threads=1)
    second = beam_search(weight, fmt, statistics, threads=3)
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_without_statistics_it_says_what_to_gather():
    with pytest.raises(FormatError, match="beam_search needs the statistics"):
        beam_search(np.zeros((4, 8), np.float32), parse_format("vq_d4n16"))
    _, statistics = problem(4, 8)
    with pytest.raises(FormatError, match="beam_search searches codebooks, and lut2 has none"):
        beam_search(np.zeros((4, 8), np.float32), parse_format("lut2"), statistics)
