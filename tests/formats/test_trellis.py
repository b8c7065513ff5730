"""Formats of trellises: what they store, how well, and what they refuse."""

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import parse_format
from onnxq.formats.trellis import TrellisFormat

NAMES = TrellisFormat.names()
SHORT = [name for name in NAMES if name.endswith("_l12")] + ["trellis3_1mad_l12_tensor"]
SHORT += ["trellis1.5_hyb_l10", "trellis2.5_hyb_l12", "trellis4_hyb_l13_tensor"]


def draw(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("shape", ((16, 16), (5, 48), (37, 32)))
def test_stored_weights_come_back(name, shape):
    fmt, weight = parse_format(name), draw(*shape)
    grid = fmt.grid(weight)
    pieces = [grid.round(weight[:, at : at + 16], at) for at in range(0, shape[1], 16)]
    arrays = fmt.encode(weight)
    assert np.array_equal(arrays["codes"], np.concatenate([codes for codes, _ in pieces], axis=1))
    decoded = fmt.decode(arrays)
    assert np.array_equal(decoded, np.concatenate([points for _, points in pieces], axis=1))
    packed = fmt.pack(arrays)
    again = fmt.unpack(packed, shape)
    assert set(again) == set(arrays)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    stored = 8 * sum(array.nbytes for array in packed.values())
    assert fmt.bits_per_weight(shape) == stored / weight.size


@pytest.mark.parametrize("name", NAMES)
def test_names_parse_back(name):
    assert str(parse_format(name)) == name
    assert parse_format(f"{name}_tensor") == parse_format(str(parse_format(f"{name}_tensor")))


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_bits_on_the_shapes_of_a_small_decoder(bits):
    fmt = parse_format(f"trellis{bits}_1mad")
    for shape in ((576, 576), (192, 576), (1536, 576), (576, 1536)):
        assert fmt.bits_per_weight(shape) <= bits + 0.05


# docs/formats.md has what 2^20 weights give.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("trellis2_1mad", 0.070),
        ("trellis2_3inst", 0.070),
        ("trellis3_1mad", 0.0185),
        ("trellis3_3inst", 0.0185),
        ("trellis4_1mad", 0.0049),
        ("trellis4_3inst", 0.0049),
        ("trellis1.5_hyb", 0.137),
        ("trellis2_hyb", 0.070),
        ("trellis2.5_hyb", 0.036),
        ("trellis3_hyb", 0.0185),
        ("trellis3.5_hyb", 0.0094),
        ("trellis4_hyb", 0.0049),
    ],
)
def test_distortion_of_gaussian_weights(name, most):
    fmt, weight = parse_format(name), draw(256, 64)
    assert np.mean(np.square(fmt.decode(fmt.encode(weight)) - weight)) <= most


def test_rows_of_zeros_stay_zeros():
    fmt, weight = parse_format("trellis2_1mad_l12"), draw(16, 16)
    weight[3] = 0
    weight[4] *= 1e-12
    decoded = fmt.decode(fmt.encode(weight))
    assert (decoded[3:5] == 0).all()
    assert np.mean(np.square(decoded - weight)) < 0.2


def test_weights_too_large_for_scales_are_refused():
    with pytest.raises(FormatError, match="too large for the scales of trellis2_1mad, which are"):
        parse_format("trellis2_1mad").encode(draw(16, 16) * 1e6)


def test_columns_that_are_no_tiles_are_refused():
    with pytest.raises(FormatError, match="16 columns share a path, and 40 columns"):
        parse_format("trellis2_1mad").encode(draw(16, 40))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("trellis2", "a trellis is named trellis<bits>_<code>"),
        ("trellis2_2mad", "'2mad' is no code of trellises"),
        ("trellis5_1mad", "has 1, 2, 3 or 4 bits, not 5"),
        ("trellis2_1mad_l17", "has states of 10 to 16 bits, not 17"),
        ("trellis1_hyb", "has 1.5, 2, 2.5, ... 4 bits, not 1"),
        ("trellis2.5_1mad", "has 1, 2, 3 or 4 bits, not 2.5"),
    ],
)
def test_names_that_mean_no_trellis_are_refused(name, reason):
    with pytest.raises(FormatError, match=reason):
        parse_format(name)
