import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.numerics.rounding import MSE_GRID, Rounding, round_groups_reference
from onnxq.numerics.whole import round_whole

KINDS = [
    (bits, symmetric, half)
    for bits in (1, 2, 4, 8)
    for symmetric in (True, False)
    for half in (True, False)
]


@pytest.mark.parametrize(("bits", "symmetric", "half"), KINDS)
@pytest.mark.parametrize("shrink", ((1.0,), MSE_GRID), ids=("minmax", "mse"))
def test_a_whole_weight_is_one_group(bits, symmetric, half, shrink):
    for shape in ((1, 1), (3, 5), (70, 33)):
        w = np.random.default_rng(bits).standard_normal(shape).astype(np.float32)
        for weight in (w, w - 5, w + 5, np.zeros_like(w), w.T):
            how = Rounding(
                bits=bits, symmetric=symmetric, half_scales=half, group=w.size, shrink=shrink
            )
            wanted = round_groups_reference(weight.reshape(1, -1), how)
            got = round_whole(weight, how)
            assert got.codes.shape == weight.shape and got.codes.dtype == wanted.codes.dtype
            assert np.array_equal(got.scales, wanted.scales)
            assert np.array_equal(got.codes.reshape(1, -1), wanted.codes)
            assert symmetric or np.array_equal(got.zeros, wanted.zeros)


def test_pieces_are_put_together():
    w = np.random.default_rng(0).standard_normal((1100, 1000)).astype(np.float32)
    how = Rounding(bits=8, symmetric=True, group=1)
    got = round_whole(w, how)
    assert np.array_equal(got.codes, np.rint(w / got.scales[0, 0]).astype(np.int8))


@pytest.mark.parametrize("bad", (np.nan, np.inf))
def test_not_finite_is_refused(bad):
    with pytest.raises(FormatError, match="NaN or infinity"):
        round_whole(np.array([[1, bad]], np.float32), Rounding(bits=8, symmetric=True, group=1))
