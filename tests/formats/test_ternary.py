"""Formats of trits: what they store, how well, exactly where they can, and what they refuse."""

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import pack_trits, parse_format, unpack_trits
from onnxq.formats.ternary import TernaryFormat

NAMES = [*TernaryFormat.names(), "ternary_f16", "ternary_g7", "ternary2_g32", "ternary2_tensor_f16"]
SHAPES = ((1, 1), (5, 70), (16, 128), (3, 37))


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_names_parse_back(name):
    assert str(parse_format(name)) == name
    assert parse_format("ternary_channel") == parse_format("ternary")


@pytest.mark.parametrize("count", (1, 4, 5, 6, 243, 1001))
def test_trits_are_packed_five_to_a_byte_and_come_back(count):
    trits = np.random.default_rng(count).integers(-1, 2, (3, count), np.int8)
    packed = pack_trits(trits)
    assert packed.shape == (3, -(-count // 5))
    assert packed.max() <= 242
    np.testing.assert_array_equal(unpack_trits(packed, count), trits)
    assert pack_trits(np.array([-1, 0, 1, 1, -1], np.int8)) == 0 + 3 * 1 + 9 * 2 + 27 * 2 + 81 * 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_packed_arrays_are_the_bits_that_are_told_and_come_back(name, shape):
    fmt = parse_format(name)
    arrays = fmt.encode(draw(shape))
    packed = fmt.pack(arrays)
    assert tuple(packed) == ("codes", "scales")
    stored = 8 * sum(array.nbytes for array in packed.values())
    assert stored / (shape[0] * shape[1]) == pytest.approx(fmt.bits_per_weight(shape))
    for key, array in fmt.unpack(packed, shape).items():
        np.testing.assert_array_equal(array, arrays[key])
        assert array.dtype == arrays[key].dtype


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_rounds_columns_as_encode_does(name):
    fmt, weight = parse_format(name), draw((5, 70))
    grid, arrays = fmt.grid(weight), fmt.encode(weight)
    decoded = fmt.decode(arrays)
    for column in range(70):
        codes, points = grid.round(weight[:, column : column + 1], column)
        np.testing.assert_array_equal(codes[:, 0], arrays["codes"][:, column])
        np.testing.assert_array_equal(points[:, 0], decoded[:, column])


@pytest.mark.parametrize("name", ("ternary", "ternary_g16", "ternary2", "ternary2_g16_f16"))
def test_parts_of_a_large_weight_are_searched_as_the_whole_is(name, monkeypatch):
    fmt, weight = parse_format(name), draw((31, 70))
    importance = np.random.default_rng(1).random(70)
    for costs in (None, importance):
        whole = fmt.encode(weight, importance=costs)
        with monkeypatch.context() as patch:
            patch.setattr("onnxq.formats.ternary._PART", 300)
            parts = fmt.encode(weight, importance=costs)
        assert all(np.array_equal(whole[key], parts[key]) for key in whole)


def ternary_weight(granularity, shape, dtype):
    """As BitNet's checkpoints are when they are read as floats: 0 and one magnitude."""
    rng = np.random.default_rng(5)
    rows, columns = shape
    scales = {
        "tensor": np.full((1, 1), 0.0123),
        "row": rng.uniform(0.01, 0.1, (rows, 1)),
        "group": np.repeat(rng.uniform(0.01, 0.1, (rows, -(-columns // 32))), 32, 1)[:, :columns],
    }[granularity].astype(dtype)
    weight = rng.integers(-1, 2, shape).astype(dtype) * scales
    weight[1] = 0
    return weight


@pytest.mark.parametrize("dtype", (np.float32, np.float16))
@pytest.mark.parametrize(
    ("granularity", "names"),
    [
        ("tensor", ("ternary_tensor", "ternary", "ternary_g32", "ternary2", "ternary2_tensor")),
        ("row", ("ternary", "ternary_g32", "ternary2", "ternary2_g64")),
        ("group", ("ternary_g32", "ternary_g16", "ternary2_g32")),
    ],
)
def test_weights_that_are_ternary_already_are_stored_exactly(granularity, names, dtype):
    weight = ternary_weight(granularity, (9, 150), dtype)
    halves = [f"{name}_f16" for name in names] if dtype == np.float16 else []
    for name in (*names, *halves):
        fmt = parse_format(name)
        packed = fmt.pack(fmt.encode(weight, importance=np.random.default_rng(0).random(150)))
        decoded = fmt.decode(fmt.unpack(packed, weight.shape))
        np.testing.assert_array_equal(decoded, weight.astype(np.float32), err_msg=name)
    # and not where the scale is that of a part of what the format gives one
    coarser = {"row": "ternary_tensor", "group": "ternary"}.get(granularity)
    if coarser:
        decoded = parse_format(coarser).decode(parse_format(coarser).encode(weight))
        assert not np.array_equal(decoded, weight.astype(np.float32))


@pytest.mark.parametrize("kind", ("TQ1_0", "TQ2_0"))
def test_ternary_weights_of_llama_cpp_are_stored_exactly(kind):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[kind]
    weight = gguf.quants.dequantize(gguf.quants.quantize(draw((8, 512)), kind), kind)
    fmt = parse_format("ternary_g256_f16")
    np.testing.assert_array_equal(fmt.decode(fmt.encode(weight)), weight)


# On N(0, 1): 0.1902 is the least of three symmetric levels (Max, 1960); nine levels have 0.0279.
@pytest.mark.parametrize(
    ("name", "most"), [("ternary_tensor", 0.192), ("ternary2_tensor", 0.0293), ("ternary2", 0.0291)]
)
def test_distortion_on_normal_weights(name, most):
    fmt, weight = parse_format(name), draw((512, 512))
    error = np.mean((fmt.decode(fmt.encode(weight)) - weight) ** 2, dtype=np.float64)
    assert error <= most


def test_importance_draws_scales_to_the_columns_that_count():
    weight, importance = draw((8, 64)), np.where(np.arange(64) < 8, 100.0, 1.0)
    for name in ("ternary", "ternary2", "ternary_tensor"):
        fmt = parse_format(name)
        errors = [
            np.sum(importance * (fmt.decode(fmt.encode(weight, importance=costs)) - weight) ** 2)
            for costs in (None, importance)
        ]
        assert errors[1] < errors[0]


def test_groups_that_cost_nothing_are_stored_all_the_same():
    weight, importance = draw((8, 64)), np.where(np.arange(64) < 32, 1.0, 0.0)
    for name in ("ternary_g32", "ternary2_g32"):
        fmt = parse_format(name)
        for costs in (importance, np.zeros(64)):
            decoded = fmt.decode(fmt.encode(weight, importance=costs))
            np.testing.assert_allclose(decoded, fmt.decode(fmt.encode(weight)), atol=1e-6)


def test_rows_of_zeros_stay_zero():
    for name in NAMES:
        fmt = parse_format(name)
        arrays = fmt.encode(np.zeros((3, 40), np.float32))
        assert not arrays["codes"].any()
        np.testing.assert_array_equal(fmt.decode(arrays), 0)


@pytest.mark.parametrize("text", ("ternary3", "ternary_g0", "ternary_b2x2", "ternary_asym"))
def test_names_that_are_none_are_refused(text):
    with pytest.raises(FormatError, match="trits are named ternary or ternary2"):
        parse_format(text)


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(FormatError, match="1 or 2 planes, not 3"):
        TernaryFormat(planes=3)
    with pytest.raises(FormatError, match="scale_dtype is 'bfloat16'"):
        TernaryFormat(scale_dtype="bfloat16")
    with pytest.raises(FormatError, match="too large for ternary_f16, whose scales are float16"):
        parse_format("ternary_f16").encode(np.full((2, 8), 1e6, np.float32))
    with pytest.raises(FormatError, match="NaN or infinity"):
        parse_format("ternary2").encode(np.full((2, 8), np.nan, np.float32))
