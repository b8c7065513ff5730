"""Formats of tables: what they store, how well, and what they refuse."""

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import LutFormat, PerGroup, parse_format
from onnxq.formats.distortion import gaussian_distortion
from onnxq.formats.levels import LEVELS, levels

NAMES = ("lut2", "lut3_g32", "lut4_tensor", "lut4_f16", "nf4_g32", "nf3_g64_absmax", "fp4_f16")
NAMES += ("lut1", "post4_tensor", "power3_g16", "twinlog4", "lut2_g32_f16")
SHAPES = ((1, 1), (5, 70), (16, 128))


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_parses_back(name):
    assert str(parse_format(name)) == name
    assert isinstance(parse_format(name), LutFormat)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_packed_arrays_are_the_bits_that_are_told_and_come_back(name, shape):
    fmt = parse_format(name)
    arrays = fmt.encode(draw(shape))
    packed = fmt.pack(arrays)
    assert tuple(packed) == LutFormat.keys
    stored = 8 * sum(array.nbytes for array in packed.values())
    assert stored / (shape[0] * shape[1]) == pytest.approx(fmt.bits_per_weight(shape))
    for key, array in fmt.unpack(packed, shape).items():
        np.testing.assert_array_equal(array, arrays[key])


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_takes_the_nearest_entry_of_its_table(name):
    fmt, weight = parse_format(name), draw((5, 70))
    arrays = fmt.encode(weight, threads=2)
    decoded = fmt.decode(arrays)
    size = fmt.group_size(70)
    for row in range(5):
        for column in range(70):
            down = row % len(arrays["lut"])
            across = column // size % arrays["lut"].shape[1]
            scale = np.broadcast_to(arrays["scales"], (5, arrays["scales"].shape[1]))
            scale = float(scale[row, column // size % scale.shape[1]])
            points = arrays["lut"][down, across].astype(float) * scale
            least = np.abs(points - weight[row, column]).min()
            assert abs(decoded[row, column] - weight[row, column]) <= least + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_rounds_columns_as_encode_does(name):
    fmt, weight = parse_format(name), draw((5, 70))
    grid = fmt.grid(weight)
    arrays = fmt.encode(weight)
    decoded = fmt.decode(arrays)
    for column in range(70):
        codes, points = grid.round(weight[:, column : column + 1], column)
        np.testing.assert_array_equal(codes[:, 0], arrays["codes"][:, column])
        np.testing.assert_array_equal(points[:, 0], decoded[:, column])


@pytest.mark.parametrize(("bits", "error"), ((1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)))
@pytest.mark.parametrize("half", ("", "_f16"))
def test_tables_learned_from_gaussian_weights_are_those_of_lloyd_and_max(bits, error, half):
    found = gaussian_distortion(parse_format(f"lut{bits}_tensor{half}"), threads=2)
    assert found.squared_error == pytest.approx(error, rel=5e-3)


def test_importance_draws_entries_to_the_columns_that_count():
    weight, importance = draw((8, 64)), np.where(np.arange(64) < 8, 100.0, 1.0)
    fmt = parse_format("lut2")
    errors = []
    for weights in (None, importance):
        decoded = fmt.decode(fmt.encode(weight, importance=weights))
        errors.append(np.sum(importance * (weight - decoded) ** 2))
    assert errors[1] < 0.7 * errors[0]


def test_a_fixed_table_is_no_better_than_a_learned_one_and_a_searched_scale_than_absmax():
    weight = draw((64, 256))
    errors = {}
    for name in ("lut4_g64", "nf4_g64", "nf4_g64_absmax"):
        fmt = parse_format(name)
        errors[name] = np.mean((weight - fmt.decode(fmt.encode(weight))) ** 2)
    assert errors["lut4_g64"] < errors["nf4_g64"] < errors["nf4_g64_absmax"]


def test_nf4_is_the_table_of_qlora():
    published = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    published += [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
    published += [0.07958029955625534, 0.16093020141124725, 0.24611230194568634]
    published += [0.33791524171829224, 0.44070982933044434, 0.5626170039176941]
    published += [0.7229568362236023, 1.0]
    np.testing.assert_allclose(levels("nf", 4)[0], published, atol=1e-6)


@pytest.mark.parametrize("bits", (2, 3, 4))
@pytest.mark.parametrize("law", LEVELS)
def test_laws_give_ascending_tables_of_largest_magnitude_one(law, bits):
    for table in levels(law, bits):
        assert table.shape == (2**bits,)
        assert np.all(np.diff(table) >= 0)
        assert np.abs(table).max() == 1


def test_rows_of_zeros_stay_zero():
    for name in NAMES:
        fmt = parse_format(name)
        np.testing.assert_array_equal(fmt.decode(fmt.encode(np.zeros((3, 40), np.float32))), 0)


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(FormatError, match="1 to 4 bits, not 8"):
        parse_format("lut8")
    with pytest.raises(FormatError, match="learns its tables"):
        parse_format("lut4_absmax")
    with pytest.raises(FormatError, match=r"as large as 1e\+06 are beyond the float16 numbers"):
        parse_format("lut4").encode(np.full((2, 2), 1e6, np.float32))
    with pytest.raises(FormatError, match="NaN"):
        parse_format("nf4").encode(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(FormatError, match="choose lut, nf"):
        LutFormat(bits=4, levels="log", granularity=PerGroup(4))
