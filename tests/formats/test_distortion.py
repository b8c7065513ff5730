"""Distortion on weights of N(0, 1): known codes give their known errors."""

import numpy as np
import pytest

from onnxq.formats import parse_format
from onnxq.formats.distortion import Distortion, gaussian_distortion


class Signs:
    """The best code of one bit: ± E|x|, whose squared error is 1 - 2 / π (Lloyd, Max)."""

    def encode(self, weight, *, threads=None):
        return {"codes": weight > 0}

    def decode(self, arrays):
        return np.where(arrays["codes"], 1, -1).astype(np.float32) * np.float32(np.sqrt(2 / np.pi))

    def pack(self, arrays):
        return {"codes": np.packbits(arrays["codes"], axis=1)}

    def unpack(self, packed, shape):
        return {"codes": np.unpackbits(packed["codes"], axis=1).astype(bool)}

    def bits_per_weight(self, shape):
        return 1.0


def test_signs_lose_what_lloyd_and_max_say():
    found = gaussian_distortion(Signs())
    assert found.squared_error == pytest.approx(1 - 2 / np.pi, rel=0.005)
    assert found.bound == 0.25
    assert found.ratio == pytest.approx(4 * (1 - 2 / np.pi), rel=0.005)


def test_what_is_measured_is_what_is_stored():
    class Forgetful(Signs):
        def unpack(self, packed, shape):
            return {"codes": np.ones(shape, bool)}

    assert gaussian_distortion(Forgetful(), size=64).squared_error > 1


@pytest.mark.parametrize("name", ["int8", "int4_g128", "int3_g64_asym", "int2_g32"])
def test_integers_lose_a_twelfth_of_a_step_squared_or_more(name):
    fmt = parse_format(name)
    weight = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    steps = fmt.encode(weight)["scales"].astype(np.float64)
    uniform = float(np.mean(steps**2)) / 12
    found = gaussian_distortion(fmt)
    # Codes at the ends lose more; at 2 and 3 bits the density also bends within a step.
    assert 0.9 * uniform < found.squared_error < 1.2 * uniform
    assert found.ratio > 1


def test_a_bit_less_is_a_quarter_of_the_bound():
    coarse, fine = (Distortion(bits=bits, squared_error=0.1) for bits in (2.0, 3.0))
    assert coarse.bound == 4 * fine.bound
