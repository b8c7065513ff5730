import numpy as np
import pytest

from onnxq.numerics.clipping import least_error_window, rounding_costs, rounding_costs_reference


@pytest.mark.parametrize("size", (1, 2, 3, 4, 5, 31, 1000))
@pytest.mark.parametrize(("lowest", "highest"), ((0, 15), (-127, 127), (0, 1), (-7, 7)))
def test_costs_are_the_reference(size, lowest, highest):
    rng = np.random.default_rng(size)
    values = rng.standard_normal(size)
    values[::3] = np.round(values[::3] * 2) / 2
    counts = rng.integers(0, 1000, size).astype(np.float64)
    scales = np.array([1e-3, 0.01, 0.1, 0.25, 1.0, 7.0])
    zeros = np.rint(np.linspace(lowest, highest, 6)) if lowest == 0 else np.zeros(6)
    got = rounding_costs(values, counts, scales, zeros, lowest, highest)
    wanted = rounding_costs_reference(values, counts, scales, zeros, lowest, highest)
    # Sums of `size` positive terms in another order.
    assert got == pytest.approx(wanted, rel=size * 2.0**-52 + 1e-15, abs=0)


def test_values_on_a_grid_keep_their_whole_range():
    values = np.arange(-7, 9) / 4
    counts = np.ones(16)
    assert least_error_window(values, counts, -1.75, 2.0, 4, False) == (-1.75, 2.0)
    values = np.arange(-7, 8) / 4
    assert least_error_window(values, np.ones(15), -1.75, 1.75, 4, True) == (-1.75, 1.75)
