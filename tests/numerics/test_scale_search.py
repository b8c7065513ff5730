"""Scale searches: never worse than their start, near the optimum, the same bytes always."""

import dataclasses
import itertools

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.numerics.grid_costs import GridCosts
from onnxq.numerics.rounding import MSE_GRID, Rounding, round_groups
from onnxq.numerics.scale_search import round_to, search_scales

SHAPES = [(1, 1), (3, 17), (65, 40), (5, 1100)]
KINDS = [
    (bits, symmetric, positive, half)
    for bits in (1, 2, 3, 4, 8)
    for symmetric, positive in ((True, False), (True, True), (False, False))
    for half in (False, True)
]


def rounding(kind, group=16):
    bits, symmetric, positive, half = kind
    return Rounding(
        bits=bits, symmetric=symmetric, positive=positive, half_scales=half, group=group
    )


def heavy(rows, columns, seed=0):
    """Weights with outliers, zeros and one-signed rows, and importances over three decades."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(4, (rows, columns)).astype(np.float32)
    w[rng.random(w.shape) < 0.05] = 0
    if rows > 2:
        w[1] = np.abs(w[1])
        w[2] = 0
    return w, (10.0 ** rng.uniform(-3, 0, columns)).astype(np.float32)


def cost(w, h, how, grid, power=2.0):
    """Σ h |w − Q(w)|^p of each group in float64, from codes and scales alone."""
    columns = w.shape[1]
    step = np.repeat(grid.scales.astype(np.float64), how.group, 1)[:, :columns]
    zero = 0 if grid.zeros is None else np.repeat(grid.zeros.astype(int), how.group, 1)[:, :columns]
    gap = np.abs(w - (round_to(w, how, grid) - zero) * step)
    return np.add.reduceat(gap**power * h, np.arange(0, w.shape[1], how.group), axis=1)


def layouts(w):
    wide = np.zeros((2 * w.shape[0], 2 * w.shape[1]), np.float32)
    wide[::2, ::2] = w
    return [w, np.ascontiguousarray(w.T).T, wide[::2, ::2]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_minmax_and_mse_and_their_codes_are_those_of_rounding_bit_for_bit(kind):
    for (rows, columns), group in itertools.product(SHAPES, (1, 16, 24, 1024)):
        w, _ = heavy(rows, columns)
        how = rounding(kind, group)
        for method, shrink in (("minmax", (1.0,)), ("mse", MSE_GRID)):
            wanted = round_groups(w, dataclasses.replace(how, shrink=shrink))
            for view in layouts(w):
                grid = search_scales(view, how, method=method)
                assert grid.scales.tobytes() == wanted.scales.tobytes()
                assert (grid.zeros is None) == how.symmetric
                assert how.symmetric or np.array_equal(grid.zeros, wanted.zeros)
                codes = round_to(view, how, grid, threads=3)
                assert codes.dtype == wanted.codes.dtype and np.array_equal(codes, wanted.codes)


def test_shrunk_errors_of_negative_zeros_are_zero():
    w, _ = heavy(20, 96)
    w[::2, ::3] = -0.0
    for symmetric in (False, True):
        how = Rounding(bits=4, symmetric=symmetric, group=32)
        problem = GridCosts(weight=w, how=how, importance=np.ones(96, np.float32))
        scale = np.full((20, 3), 0.7, np.float32)
        zero = None if symmetric else np.ones((20, 3), np.float32)
        sums = problem.moments(scale, zero, threshold=0.1)
        np.testing.assert_allclose(sums, problem.moments_reference(scale, zero, 0.1), 1e-4, 1e-3)


@pytest.mark.parametrize("kind", KINDS[::4], ids=str)
def test_threads_change_no_byte_of_a_weight_that_is_worth_several(kind):
    w, h = heavy(700, 1030)  # 16 grids of it are 11 million numbers
    how = rounding(kind, 128)
    for method, importance in (("mse", None), ("neuqi", h)):
        alone, shared = (
            search_scales(w, how, method=method, importance=importance, threads=threads)
            for threads in (1, 2)
        )
        assert alone.scales.tobytes() == shared.scales.tobytes()
        assert how.symmetric or np.array_equal(alone.zeros, shared.zeros)


@pytest.mark.parametrize("kind", KINDS[::2], ids=str)
def test_equal_importances_change_nothing(kind):
    w, _ = heavy(20, 100)
    how = rounding(kind, 24)
    plain, equal = (
        search_scales(w, how, method="mse", importance=h) for h in (None, np.full(100, 7.0))
    )
    # Not bit for bit: sums of tiles are in float64 here, so that near ties may fall elsewhere.
    ones = np.ones(100)
    assert cost(w, ones, how, equal) == pytest.approx(cost(w, ones, how, plain), rel=1e-5)
    assert np.mean(plain.scales == equal.scales) > 0.99


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("weighted", (False, True))
def test_neuqi_is_never_worse_than_mse_nor_that_than_minmax(kind, weighted):
    for (rows, columns), group in itertools.product(SHAPES, (16, 1024)):
        w, h = heavy(rows, columns, seed=columns)
        how = rounding(kind, group)
        importance = h if weighted else None
        minmax, mse, neuqi = (
            cost(w, h if weighted else 1.0, how, search_scales(
                w, how, method=method, importance=importance
            ))
            for method in ("minmax", "mse", "neuqi")
        )  # fmt: skip
        # Costs are compared as float32 sums of at most 512 products: 512 * 2^-24 of their size.
        assert (mse <= minmax * (1 + 4e-5) + 1e-30).all()
        assert (neuqi <= mse * (1 + 4e-5) + 1e-30).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hqq_is_never_worse_than_minmax_in_its_own_sum(kind):
    for rows, columns in SHAPES:
        w, h = heavy(rows, columns, seed=rows)
        how = rounding(kind, 32)
        for importance in (None, h):
            weights = 1.0 if importance is None else h
            minmax, hqq = (
                cost(w, weights, how, search_scales(w, how, method=m, importance=importance), 0.75)
                for m in ("minmax", "hqq")
            )
            assert (hqq <= minmax * (1 + 4e-5) + 1e-30).all()


def test_hqq_gives_up_an_outlier_and_does_not_depend_on_the_unit_of_the_weight():
    w = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    w[:, 5] = 9
    how = Rounding(bits=4, symmetric=False, group=128)
    minmax, hqq = (search_scales(w, how, method=m) for m in ("minmax", "hqq"))
    assert cost(w, 1.0, how, hqq, 0.75).sum() < 0.97 * cost(w, 1.0, how, minmax, 0.75).sum()
    smaller = search_scales(w * np.float32(2.0**-9), how, method="hqq")
    assert np.array_equal(smaller.scales, hqq.scales * np.float32(2.0**-9))


def best_symmetric(w, h, how):
    """The least cost of one group over every scale of both signs, exactly, in float64.

    Between two scales at which some w sits on a border of cells the codes stay, and the cost is a
    parabola in the scale; so its least value lies at the vertex of one of these pieces.
    """
    best = np.inf
    halves = np.arange(how.lowest, how.highest) + 0.5
    for sign in (1, -1):
        borders = np.unique(np.abs(np.divide.outer(w * sign, halves)).ravel())
        borders = borders[borders > 0]
        middles = np.concatenate([(borders[1:] + borders[:-1]) / 2, [borders[-1] * 2]]) * sign
        codes = np.clip(np.rint(w / middles[:, None]), how.lowest, how.highest)
        square = (h * codes**2).sum(1)
        gain = np.divide((h * codes * w).sum(1) ** 2, square, where=square > 0, out=0 * square)
        best = min(best, (h * w**2).sum() - gain.max())
    return best


@pytest.mark.parametrize("bits", (1, 2, 3, 4))
def test_neuqi_of_symmetric_groups_comes_within_two_percent_of_the_exact_optimum(bits):
    how = Rounding(bits=bits, symmetric=True, group=32)
    w, h = heavy(40, 32, seed=bits)
    found = cost(w, h, how, search_scales(w, how, method="neuqi", importance=h))[:, 0]
    exact = np.array([best_symmetric(row.astype(np.float64), h, how) if row.any() else 0.0
                      for row in w])  # fmt: skip
    assert (found >= exact * (1 - 1e-4) - 1e-12).all()  # the oracle is one
    assert found.sum() <= 1.02 * exact.sum()


@pytest.mark.parametrize("bits", (1, 2, 3, 4))
def test_neuqi_of_asymmetric_groups_comes_within_two_percent_of_brute_force(bits):
    how = Rounding(bits=bits, symmetric=False, group=32)
    w, h = heavy(30, 32, seed=10 + bits)
    found = cost(w, h, how, search_scales(w, how, method="neuqi", importance=h))[:, 0]
    top = np.abs(w).max(1, keepdims=True)
    top[top == 0] = 1
    best = np.full(30, np.inf)
    for factor, zero in itertools.product(np.geomspace(0.02, 2, 400), range(how.highest + 1)):
        step = top * factor
        value = (np.clip(np.rint(w / step) + zero, 0, how.highest) - zero) * step
        best = np.minimum(best, ((w - value) ** 2 * h).sum(1))
    assert found.sum() <= 1.02 * best.sum()


def test_neuqi_finds_the_grid_that_weights_lie_on():
    rng = np.random.default_rng(5)
    # Codes 2 to 12 of 16: the plain range makes a finer grid that misses all of them.
    codes = rng.integers(2, 13, (200, 128))
    steps = rng.uniform(0.01, 0.02, (200, 1))
    w = ((codes - 7) * steps).astype(np.float32)
    how = Rounding(bits=4, symmetric=False, group=128)
    minmax, neuqi = (
        cost(w, 1.0, how, search_scales(w, how, method=method)) for method in ("minmax", "neuqi")
    )
    on_grid = neuqi[:, 0] < 1e-9 * (w**2).sum(1)
    assert np.mean(on_grid) > 0.9 and not (minmax[:, 0] < 1e-9 * (w**2).sum(1)).any()


def test_an_importance_buys_accuracy_where_it_is_high():
    w = np.random.default_rng(6).standard_normal((64, 128)).astype(np.float32)
    h = np.full(128, 1e-4, np.float32)
    h[::8] = 1
    how = Rounding(bits=2, symmetric=False, group=128)
    plain = search_scales(w, how, method="neuqi")
    for method in ("mse", "neuqi"):
        weighted = search_scales(w, how, method=method, importance=h)
        assert cost(w, h, how, weighted).sum() < 0.97 * cost(w, h, how, plain).sum()
        again = search_scales(w, how, method=method, importance=h * np.float32(2.0**40))
        assert np.array_equal(again.scales, weighted.scales)  # only ratios matter


@pytest.mark.parametrize("kind", KINDS[1::3], ids=str)
def test_same_bytes_for_any_threads_and_strides(kind):
    w, h = heavy(150, 70)
    how = rounding(kind, 24)
    for method in ("mse", "neuqi", "hqq"):
        wanted = search_scales(w, how, method=method, importance=h, threads=1)
        for view, threads in itertools.product(layouts(w), (1, 2, 5)):
            got = search_scales(view, how, method=method, importance=h, threads=threads)
            assert got.scales.tobytes() == wanted.scales.tobytes()
            assert how.symmetric or got.zeros.tobytes() == wanted.zeros.tobytes()


@pytest.mark.parametrize("kind", KINDS[::2], ids=str)
@pytest.mark.parametrize("span", (1, 4))
def test_kernels_sum_what_their_reference_sums(kind, span):
    rng = np.random.default_rng(8)
    how = rounding(kind, 600)  # a group of more than one tile
    w, h = heavy(70, 1400)
    problem = GridCosts(weight=w, how=how, importance=h, span=span)
    bands = -(-70 // span)
    scales = rng.uniform(0.05, 2, (3, bands, 3)).astype(np.float32)
    zeros = None
    if not how.symmetric:
        zeros = rng.integers(0, how.highest + 1, scales.shape).astype(np.float32)
    for robust in (False, True):
        got = problem.costs(scales, zeros, robust=robust)
        for i in range(3):
            zero = None if zeros is None else zeros[i]
            wanted = problem.costs_reference(scales[i], zero, robust)
            # float32 sums of 512 terms of one sign: 512 * 2^-24.
            assert got[i] == pytest.approx(wanted, rel=4e-5, abs=1e-30)
    for threshold in (0.0, 0.1):
        zero = None if zeros is None else zeros[0] + np.float32(0.25)
        got = problem.moments(scales[0], zero, threshold=threshold)
        wanted = problem.moments_reference(scales[0], zero, threshold)
        size = problem.weights * np.square(np.abs(w).max() / np.abs(scales[0]) + 256)
        assert (np.abs(got - wanted) <= 4e-5 * size).all()


def test_the_best_scale_from_the_moments_is_the_least_squares_one():
    w, h = heavy(8, 64)
    how = Rounding(bits=3, symmetric=True, group=64)
    scale = np.full((8, 1), 0.7, np.float32)
    _, cross, square = GridCosts(weight=w, how=how, importance=h).moments(scale, None)
    codes = np.clip(np.rint(w / np.float32(0.7)), -4, 3).astype(np.float64)
    for row in (0, 1, 3, 7):
        wanted = np.linalg.lstsq((np.sqrt(h) * codes[row])[:, None], np.sqrt(h) * w[row])[0][0]
        assert 0.7 * cross[row, 0] / square[row, 0] == pytest.approx(wanted, rel=1e-5)


def test_rows_may_share_scales():
    w, h = heavy(10, 40)
    for symmetric, method in itertools.product((True, False), ("minmax", "mse", "neuqi", "hqq")):
        how = Rounding(bits=4, symmetric=symmetric, group=16)
        grid = search_scales(w, how, method=method, importance=h, span=4)
        assert grid.scales.shape == (3, 3)
        # The same numbers laid out as one row each: a range does not depend on their order.
        if method == "minmax":
            row = w[4:8, 16:32].reshape(1, -1)
            alone = search_scales(row, dataclasses.replace(how, group=64), method=method)
            assert alone.scales[0, 0] == grid.scales[1, 1]
        assert round_to(w, how, grid, span=4).shape == w.shape


def test_float16_scales_come_back_as_float16_values_and_are_chosen_as_such():
    w, h = heavy(40, 96)
    for method in ("mse", "neuqi", "hqq"):
        how = Rounding(bits=3, symmetric=False, group=32, half_scales=True)
        scales = search_scales(w, how, method=method, importance=h).scales
        assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))


def test_positive_and_eight_bit_scales_stay_positive():
    w, h = heavy(40, 96)
    for method, bits in itertools.product(("mse", "neuqi", "hqq"), (1, 2, 4, 8)):
        how = Rounding(bits=bits, symmetric=True, positive=bits < 8, group=32)
        grid = search_scales(w, how, method=method, importance=h)
        assert (grid.scales > 0).all()
        assert bits < 8 or round_to(w, how, grid).min() >= -127


def test_columns_without_importance_leave_a_finite_grid():
    w, _ = heavy(6, 64)
    for method in ("mse", "neuqi", "hqq"):
        for symmetric in (True, False):
            how = Rounding(bits=4, symmetric=symmetric, group=32)
            plain = search_scales(w, how)
            grid = search_scales(w, how, method=method, importance=np.zeros(64, np.float32))
            assert np.array_equal(grid.scales, plain.scales)  # nothing can cost less than 0


def test_huge_and_tiny_weights_keep_a_usable_scale():
    for size in (1e-41, 1e-30, 1e30, 3e38):
        w = (np.array([[1, -1, 0.3, 0]]) * size).astype(np.float32)
        for method, symmetric in itertools.product(("mse", "neuqi", "hqq"), (True, False)):
            how = Rounding(bits=4, symmetric=symmetric, group=4)
            scales = search_scales(w, how, method=method, importance=np.ones(4)).scales
            assert np.isfinite(scales).all() and (scales != 0).all()


def test_refusals():
    w = np.ones((2, 4), np.float32)
    how = Rounding(bits=4, symmetric=True, group=4)
    with pytest.raises(FormatError, match="'best'; choose one of 'minmax', 'mse', 'neuqi', 'hqq'"):
        search_scales(w, how, method="best")
    with pytest.raises(FormatError, match=r"importances of shape \[3\] do not fit .* 4 columns"):
        search_scales(w, how, method="mse", importance=np.ones(3))
    for bad in (np.nan, -1.0):
        with pytest.raises(FormatError, match="NaN, infinity or a negative number"):
            search_scales(w, how, method="neuqi", importance=np.array([1, 1, bad, 1]))
    with pytest.raises(FormatError, match=r"shape \[4\] is not a matrix"):
        search_scales(w[0], how)
    grid = search_scales(w, how)
    w[1, 2] = np.inf
    for method, span in itertools.product(("minmax", "mse", "neuqi", "hqq"), (1, 2)):
        with pytest.raises(FormatError, match="NaN or infinity, which no integer code"):
            search_scales(w, how, method=method, span=span)
    with pytest.raises(FormatError, match="NaN or infinity, which no integer code"):
        round_to(w, how, grid)
    w[1, 2] = 1e7
    with pytest.raises(FormatError, match="too large for float16 scales"):
        search_scales(w, dataclasses.replace(how, half_scales=True), method="neuqi")
