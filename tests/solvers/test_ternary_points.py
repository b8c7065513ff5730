"""Solvers on trits: LDLQ gains on nearest, and a weight that is ternary already stays as it is."""

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import parse_format
from onnxq.solvers.gptaq import gptaq
from onnxq.solvers.gptq import gptq
from onnxq.solvers.nearest import nearest
from onnxq.solvers.objective import objective
from onnxq.solvers.refit_scales import refit_scales
from onnxq.solvers.statistics import Statistics

NAMES = ("ternary", "ternary_g32_f16", "ternary_tensor", "ternary2", "ternary2_g32_f16")


def layer(rows=48, columns=96, seed=0):
    """A weight, and statistics of correlated inputs."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) / np.sqrt(columns) + np.eye(columns)
    x = rng.standard_normal((600, columns)) @ mix
    drift = 0.01 * rng.standard_normal((columns, columns))
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    return weight, Statistics(hessian=x.T @ x / 600, drift=drift, weight=600)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_with_feedback_gains_on_nearest(name):
    fmt, (weight, statistics) = parse_format(name), layer()
    errors = [
        objective(weight, fmt.decode(solve(weight, fmt, statistics)), statistics).sum()
        for solve in (nearest, gptq)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ("natural", "activation"))
def test_a_weight_that_is_ternary_already_is_stored_exactly(name, order):
    fmt, (_, statistics) = parse_format(name), layer()
    rng = np.random.default_rng(1)
    weight = (rng.integers(-1, 2, (48, 96)) * np.float16(0.02)).astype(np.float32)
    arrays = gptq(weight, fmt, statistics, order=order)
    assert np.array_equal(fmt.decode(arrays), weight)
    if fmt.planes == 1:
        assert np.array_equal(
            refit_scales(weight, arrays, fmt, statistics)["scales"], arrays["scales"]
        )


def test_asymmetric_calibration_takes_trits():
    fmt, (weight, statistics) = parse_format("ternary"), layer()
    arrays = gptaq(weight, fmt, statistics)
    again = refit_scales(weight, arrays, fmt, statistics, asymmetric=True)
    assert set(np.unique(again["codes"])) <= {-1, 0, 1}
    assert not np.array_equal(again["scales"], arrays["scales"])


@pytest.mark.parametrize("name", ("ternary", "ternary_g32_f16", "ternary_tensor"))
def test_scales_of_one_plane_are_fitted_to_the_codes(name):
    fmt, (weight, statistics) = parse_format(name), layer()
    before = gptq(weight, fmt, statistics)
    after = refit_scales(weight, before, fmt, statistics)
    assert after["scales"].dtype == before["scales"].dtype
    errors = [objective(weight, fmt.decode(one), statistics).sum() for one in (before, after)]
    assert errors[1] < errors[0]


def test_scales_of_two_planes_are_not():
    fmt, (weight, statistics) = parse_format("ternary2"), layer()
    arrays = gptq(weight, fmt, statistics)
    with pytest.raises(FormatError, match="ternary2 has no scale for each row"):
        refit_scales(weight, arrays, fmt, statistics)
