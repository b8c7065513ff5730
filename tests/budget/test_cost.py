"""The quadratic form of a site: a few rows tell what all of them will do."""

import numpy as np
import pytest

from onnxq.budget.cost import SiteCost
from onnxq.formats import parse_format
from onnxq.solvers.gptq import gptq
from onnxq.solvers.statistics import Statistics

ROWS, COLUMNS = 512, 64


@pytest.fixture(scope="module")
def layer():
    """Rows of unlike sizes and costs, some of which lie in the directions that M minds."""
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.standard_normal((COLUMNS, COLUMNS)))[0]
    matrix = ((turn * np.geomspace(9, 0.01, COLUMNS)) @ turn.T).astype(np.float32)
    weight = rng.standard_normal((ROWS, COLUMNS)) * rng.lognormal(0, 0.5, (ROWS, 1))
    loud = rng.permutation(ROWS)[:40]
    weight[loud] = np.linalg.norm(weight[loud], axis=1, keepdims=True) * turn[:, 0]
    rows = rng.lognormal(0, 0.5, ROWS)
    rows[loud] *= 10
    return weight.astype(np.float32), matrix, rows


@pytest.mark.parametrize("name", ["int3_g64", "trellis2_hyb_l12"])
def test_few_rows_tell_the_loss_of_all(layer, name):
    weight, matrix, rows = layer
    fmt = parse_format(name)
    error = weight - fmt.decode(gptq(weight, fmt, Statistics(hessian=matrix.astype(np.float64))))
    cost = SiteCost(form="own", factor=0.5, rows=rows, matrix=matrix[None])
    wanted = cost.of_rows(weight, np.arange(ROWS), None)(error)
    byhand = 0.5 * sum(r * e @ matrix @ e for r, e in zip(rows, error, strict=True))
    assert wanted == pytest.approx(byhand, rel=1e-4)
    starts = [0, 120, 240, 360, 480]
    told = []
    for shift in (0, 16):
        at = np.concatenate([np.arange(s + shift, s + shift + 16) for s in starts])
        told.append(cost.of_rows(weight, at, None)(error[at]) / wanted)
    # by Σ r w M w of the rows, as it was at first, these are off by up to a factor of two
    assert np.abs(np.log(told)).max() < 0.2


def test_relative_losses_are_parts_of_the_weight_itself(layer):
    weight, matrix, _ = layer
    cost = SiteCost(form="hessian", relative=True, factor=2.0)
    everything = np.arange(ROWS)
    assert cost.of_rows(weight, everything, [matrix])(0.1 * weight) == pytest.approx(0.02, rel=1e-4)
    at = np.arange(64)
    told = cost.of_rows(weight, at, [matrix])(0.1 * weight[at])
    assert 0 < told < 0.1
    assert cost.of_rows(0 * weight, at, [matrix])(weight[at]) == 0.0
