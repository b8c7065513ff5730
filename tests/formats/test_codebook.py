"""Codes of vectors: the arrays mean what they say, and lose as little as was wanted."""

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import parse_format
from onnxq.formats.codebook import CodebookFormat
from onnxq.formats.distortion import gaussian_distortion
from onnxq.formats.gaussian import GAUSSIAN_GRIDS, gaussian_grid

SMALL = [
    "vq_d1n16",
    "vq_d2n16_g6",
    "vq_d2n64_tensor",
    "vq_d4n256_b64x8",
    "aq_m2d8n256",
    "aq_m3d2n16_g4",
    "higgs_d2n16_g8",
]


@pytest.mark.parametrize("name", SMALL)
def test_names_parse_back_and_arrays_take_the_bits_that_are_counted(name):
    fmt = parse_format(name)
    assert isinstance(fmt, CodebookFormat)
    assert str(fmt) == name
    weight = np.random.default_rng(0).standard_normal((130, 48), np.float32)
    arrays = fmt.encode(weight)
    packed = fmt.pack(arrays)
    assert set(packed) == {"codes", "codebook", "scales"}
    stored = sum(array.nbytes for array in packed.values())
    assert fmt.bits_per_weight(weight.shape) == pytest.approx(8 * stored / weight.size)
    back = fmt.unpack(packed, weight.shape)
    for key, array in arrays.items():
        assert np.array_equal(back[key], array), key


def test_decode_is_the_scaled_sum_of_entries():
    fmt = parse_format("aq_m2d2n16_g4_b64x4")
    weight = np.random.default_rng(1).standard_normal((70, 8), np.float32)
    arrays = fmt.encode(weight)
    decoded = fmt.decode(arrays)
    codes = arrays["codes"].reshape(70, 4, 2)
    for row in (0, 63, 64, 69):
        for run in range(4):
            books = arrays["codebook"][row // 64, run // 2]
            entry = sum(books[book, codes[row, run, book]].astype(int) for book in range(2))
            scale = np.float32(arrays["scales"][row, run // 2])
            assert np.array_equal(decoded[row, 2 * run : 2 * run + 2], entry * scale)


@pytest.mark.parametrize("name", ["vq_d2n16", "vq_d4n256_tensor", "higgs_d2n64_g16"])
def test_no_other_entry_is_nearer(name):
    fmt = parse_format(name)
    weight = np.random.default_rng(2).standard_normal((16, 32), np.float32)
    arrays = fmt.encode(weight)
    found = np.square(fmt.decode(arrays) - weight).reshape(16, -1, fmt.dimension).sum(axis=2)
    for code in range(fmt.entries):
        other = fmt.decode({**arrays, "codes": np.full_like(arrays["codes"], code)})
        losses = np.square(other - weight).reshape(16, -1, fmt.dimension).sum(axis=2)
        assert (found <= losses * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["vq_d2n16", "vq_d4n64_tensor"])
def test_no_other_entry_is_nearer_in_a_metric(name):
    fmt = parse_format(name)
    rng = np.random.default_rng(3)
    values = rng.standard_normal((16, fmt.dimension), np.float32)
    grid = fmt.grid(np.tile(values, 4))
    root = rng.standard_normal((fmt.dimension, fmt.dimension))
    found = np.square((grid.round(values, 0, root @ root.T)[1] - values) @ root).sum(axis=1)
    for code in range(fmt.entries):
        scale = grid.scales[:, :1].astype(np.float32)
        other = grid.codebook[0, 0, 0, code].astype(np.float32) * scale
        assert (found <= np.square((other - values) @ root).sum(axis=1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("shape", [(1, 8), (64, 8), (65, 16)])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_weights_that_are_all_alike_are_stored(shape, value):
    fmt = parse_format("vq_d4n256")
    weight = np.full(shape, value, np.float32)
    assert np.abs(fmt.decode(fmt.encode(weight)) - weight).max() <= 0.01 * value


def test_what_cannot_be_stored_is_refused():
    fmt = parse_format("vq_d4n256")
    with pytest.raises(FormatError, match="10 columns are not a whole number of vectors of 4"):
        fmt.encode(np.zeros((4, 10), np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(FormatError, match="NaN or infinity"):
            fmt.encode(np.full((4, 8), bad, np.float32))
    with pytest.raises(FormatError, match="beyond the float16 scales"):
        fmt.encode(np.full((4, 8), 1e9, np.float32) * np.arange(1, 9, dtype=np.float32))
    for name in ("vq_d3n16", "vq_d4n100", "vq_d4n256_g6", "vq_d4n256_b32x8", "higgs_d8n16"):
        with pytest.raises(FormatError):
            parse_format(name)


@pytest.mark.parametrize(("dimension", "entries"), GAUSSIAN_GRIDS)
def test_entries_of_gaussian_grids_are_the_means_of_what_is_nearest(dimension, entries):
    grid = gaussian_grid(dimension, entries).astype(np.float64)
    values = np.random.default_rng(3).standard_normal((2**15, dimension))
    nearest = ((values[:, None] - grid) ** 2).sum(axis=2).argmin(axis=1)
    pulls = values - grid[nearest]
    # Each coordinate of the mean pull of all is 0 up to its standard error.
    error = pulls.std(axis=0) / np.sqrt(len(values))
    assert (np.abs(pulls.mean(axis=0)) <= 5 * error + 1e-3).all()


# Wanted of issue D; measured on 2^20 weights.
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("vq_d2n16", 0.109),
        ("higgs_d2n16_g256", 0.109),
        ("vq_d1n16", 0.0096),
        ("vq_d4n256", 0.103),
        ("aq_m2d8n256", 0.108),
    ],
)
def test_distortion_is_what_is_wanted(name, most):
    assert gaussian_distortion(parse_format(name)).squared_error <= most
