"""Profiles of channels are those of all samples together, however they are cut."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.calibration.channel_profile import profile_channels
from onnxq.calibration.readings import LinearReading
from onnxq.errors import CalibrationError

RNG = np.random.default_rng(47)
ROWS = LinearReading(-1)


@pytest.fixture
def model():
    return ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "main (float[n, 3, 4] x) => (float[n, 3, 4] y) { h = Neg (x)  y = Relu (h) }"
    )


def samples(array, *sizes):
    return [{"x": part} for part in np.split(array, np.cumsum(sizes))]


def test_figures_are_those_of_numpy(model):
    x = RNG.standard_normal((12, 3, 4)).astype(np.float32)
    found = profile_channels(model, {"h": -1, "x": -2}, samples(x, 5, 1))
    for name, values in (("h", -x.reshape(-1, 4)), ("x", np.moveaxis(x, 1, -1).reshape(-1, 3))):
        profile, wide = found[name], values.astype(np.float64)
        np.testing.assert_array_equal(profile.low, wide.min(axis=0))
        np.testing.assert_array_equal(profile.high, wide.max(axis=0))
        np.testing.assert_array_equal(profile.peak, np.abs(wide).max(axis=0))
        np.testing.assert_allclose(profile.magnitude, np.abs(wide).mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(profile.square, (wide**2).mean(axis=0), rtol=1e-6)
        assert not profile.rows


@pytest.mark.parametrize("limit", [1, 7, 36, 100])
def test_rows_are_evenly_spaced_whatever_the_samples(model, limit):
    x = RNG.standard_normal((12, 3, 4)).astype(np.float32)
    kept = [
        profile_channels(model, {"h": -1}, samples(x, *sizes), readings={"h": (ROWS,)}, rows=limit)[
            "h"
        ].rows[ROWS]
        for sizes in ((), (1, 4), (6, 5))
    ]
    step = next(2**k for k in range(9) if len(range(0, 36, 2**k)) <= limit)
    for rows in kept:
        np.testing.assert_array_equal(rows, -x.reshape(-1, 4)[::step])


def test_values_without_a_profile_are_named(model):
    with pytest.raises(CalibrationError, match="Activation 'h' is empty in every calibration"):
        profile_channels(model, {"h": -1}, [{"x": np.zeros((0, 3, 4), np.float32)}])
