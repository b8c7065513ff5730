"""LDLQ on scalar and vector grids: the objective is a sum of the grid's own errors."""

import numpy as np
import pytest
import torch

from onnxq.numerics.linalg import factor_hessian
from onnxq.solvers.ldlq import ScalarGrid, ldlq


def correlated(columns, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * columns, columns)) @ rng.standard_normal((columns, columns))
    return x.T @ x / len(x)


def weight_of(rows, columns, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def fine_grid(rows, columns, step=0.1):
    """One scale for all, wide enough that nothing clips."""
    ones = np.full((rows, 1), step, np.float32)
    return ScalarGrid((-128, 127), ones, None, np.zeros(columns, np.int32))


class Hexagonal:
    """The lattice A2 in two columns, and the errors it made: a vector grid."""

    width = 2

    def __init__(self, step):
        self.basis = step * np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])
        self.errors, self.metrics = {}, {}

    def round(self, values, start, metric=None):
        near = np.floor(values @ np.linalg.inv(self.basis))
        corners = [near + np.array(corner) for corner in ((0, 0), (0, 1), (1, 0), (1, 1))]
        points = np.stack([corner @ self.basis for corner in corners])
        best = np.argmin(((points - values) ** 2).sum(-1), axis=0)
        rows = np.arange(len(values))
        self.metrics[start] = metric
        self.errors[start] = (values - points[best, rows]).astype(np.float64)
        return np.stack(corners)[best, rows].astype(np.int8), points[best, rows]


class Opaque:
    """A scalar grid that hides what it is, to be taken the general way."""

    def __init__(self, grid):
        self.round, self.width = grid.round, 1


@pytest.mark.parametrize("block", (1, 16, 128))
def test_general_and_native_ways_agree(block):
    hessian, weight = correlated(50), weight_of(70, 50)
    factor, grid = factor_hessian(hessian), fine_grid(70, 50)
    native = ldlq(weight, factor, grid, block=block)
    general = ldlq(weight, factor, Opaque(grid), block=block)
    assert native.dtype == general.dtype == np.int8
    assert (native != general).any(axis=1).mean() <= 0.02  # near ties alone


def test_objective_of_a_vector_grid_is_the_sum_of_its_errors_in_the_block_metric():
    hessian, weight = correlated(30), weight_of(40, 30)
    factor, grid = factor_hessian(hessian, damping=0), Hexagonal(0.2)
    codes = ldlq(weight, factor, grid, block=8)
    decoded = (codes.reshape(40, 15, 2) @ grid.basis).reshape(40, 30)
    error = weight - decoded
    total = np.einsum("ri,ij,rj->r", error, hessian, error)
    wanted = np.zeros(40)
    for start, gap in grid.errors.items():
        here = slice(start, start + 2)
        metric = (factor.upper[here, here] * factor.variances[here]) @ factor.upper[here, here].T
        assert np.allclose(grid.metrics[start], metric, rtol=1e-12)
        wanted += np.einsum("ri,ij,rj->r", gap, metric, gap)
    # Feedback is summed in float32; an error δ of a target of size 1 changes a gap of 0.1 by δ.
    assert total == pytest.approx(wanted, rel=1e-4)


def test_its_average_cost_is_that_of_the_conditional_variances():
    hessian, weight = correlated(64), weight_of(4000, 64)
    factor, step = factor_hessian(hessian, damping=0), 0.1
    # Theorem: D_i ≤ H_ii, with equality only without correlations.
    assert (factor.variances <= np.diag(hessian) * (1 + 1e-12)).all()
    error = weight - ldlq(weight, factor, fine_grid(4000, 64)) * np.float32(step)
    cost = np.einsum("ri,ij,rj->r", error, hessian, error)
    # Errors uniform in ±step/2, as targets far wider than a step make them: step²/12 tr(D).
    spread = cost.std() / np.sqrt(len(cost))
    assert abs(cost.mean() - step**2 / 12 * factor.variances.sum()) <= 5 * spread
    nearest = weight - np.rint(weight / np.float32(step)) * np.float32(step)
    plain = np.einsum("ri,ij,rj->r", nearest, hessian, nearest)
    assert abs(plain.mean() - step**2 / 12 * np.trace(hessian)) <= 5 * plain.std() / np.sqrt(4000)
    assert cost.mean() < 0.5 * plain.mean()


def test_torch_on_any_grid():
    hessian, weight = correlated(20), weight_of(30, 20)
    grid = fine_grid(30, 20)
    tensors = ScalarGrid(grid.limits, torch.from_numpy(grid.scales), None, grid.group)
    factor = factor_hessian(torch.from_numpy(hessian))
    wanted = ldlq(weight, factor_hessian(hessian), grid)
    for shown in (tensors, Opaque(tensors)):
        got = ldlq(torch.from_numpy(weight), factor, shown)
        assert (got.numpy() != wanted).any(axis=1).mean() <= 0.04
