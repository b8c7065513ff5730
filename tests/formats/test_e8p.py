"""E8P: its points are those of the paper, rounding finds the nearest, and the bytes are counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.formats import parse_format
from onnxq.formats.distortion import gaussian_distortion
from onnxq.formats.e8p import E8pFormat
from onnxq.numerics import _native
from onnxq.numerics.e8p import (
    E8P_UNITS,
    bit_points,
    e8p_costs,
    e8p_integers,
    pattern_gains,
    round_e8p,
)

EVERY = np.arange(2**16, dtype=np.uint16)


def lattice(bits: int) -> np.ndarray:
    """All points of the first stage, ``[65536, 8]`` in the lattice (gains included)."""
    unit = 28 if bits == 2 else 4
    first = e8p_integers(EVERY[:, None], 2)
    if bits != 2:
        first = first // pattern_gains(2)[EVERY >> 8][:, None]
    return first / unit


def test_points_are_those_of_quip_sharp() -> None:
    points = lattice(3)
    assert len(np.unique(points, axis=0)) == 2**16
    half = points - np.where(EVERY & 0x80, 0.25, -0.25)[:, None]
    assert set(np.unique(np.abs(half))) == {0.5, 1.5, 2.5}
    assert not (half.sum(axis=1) % 2).any()
    patterns = np.unique(np.abs(half), axis=0)
    lengths, counts = np.unique(np.square(patterns).sum(axis=1), return_counts=True)
    assert dict(zip(lengths, counts, strict=True)) == {2: 1, 4: 8, 6: 28, 8: 64, 10: 126, 12: 29}


def test_long_points_of_two_bits_lie_an_eighth_farther_out() -> None:
    half = lattice(3) - np.where(EVERY & 0x80, 0.25, -0.25)[:, None]
    gain = np.where(np.square(half).sum(axis=1) >= 10, 8 / 7, 1.0)
    np.testing.assert_allclose(lattice(2), lattice(3) * gain[:, None], rtol=1e-12)


def test_one_bit_points_are_of_the_lattice_e8() -> None:
    points = bit_points() / 2
    assert len(np.unique(points, axis=0)) == 256
    fractions = points % 1
    assert ((fractions == 0).all(axis=1) | (fractions == 0.5).all(axis=1)).all()
    assert not (points.sum(axis=1) % 2).any()
    lengths, counts = np.unique(np.square(points).sum(axis=1), return_counts=True)
    assert dict(zip(lengths, counts, strict=True)) == {0: 1, 2: 240, 4: 15}


@pytest.mark.parametrize("instructions", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rounding_finds_the_nearest_point_of_each_stage(bits: int, instructions: str) -> None:
    rng = np.random.default_rng(bits)
    values = (rng.standard_normal((12, 16)) * rng.choice([0.3, 1, 2], (12, 1))).astype(np.float32)
    try:
        codes, points = round_e8p(values, np.ones(12, np.float32), bits, instructions=instructions)
    except ValueError:
        pytest.skip(f"this CPU has no {instructions}")
    vectors = values.reshape(-1, 8).astype(np.float64)
    first = codes.reshape(-1, 1 if bits == 2 else 2)[:, 0]
    residual = check_nearest(vectors, lattice(bits), first)
    if bits == 3:
        check_nearest(2 * residual, bit_points() / 2, codes.reshape(-1, 2)[:, 1])
    if bits == 4:
        check_nearest(3.5 * residual, lattice(4), codes.reshape(-1, 2)[:, 1])
    np.testing.assert_allclose(points, e8p_integers(codes, bits) / E8P_UNITS[bits], rtol=1e-6)


def check_nearest(vectors: np.ndarray, points: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Fail unless each code is of a nearest point; returns what is left."""
    left = vectors - points[codes]
    found = np.square(left).sum(axis=1)
    least = [np.square(vector - points).sum(axis=1).min() for vector in vectors]
    # Magnitudes are compared to 1 part in 2^20, of a sum of at most 8 of them times 5.
    slack = np.abs(vectors).sum(axis=1) * 5 * 2.0**-20
    assert (found <= np.array(least) + slack).all()
    return left


def test_ties_and_zeros_are_rounded_too() -> None:
    values = np.array([[0.0] * 8, [0.5] * 8, [100.0] * 8, [-1e-30] * 8], np.float32)
    codes, points = round_e8p(values, np.ones(4, np.float32), 2)
    np.testing.assert_allclose(points, e8p_integers(codes, 2) / 28, rtol=1e-6)
    _, nothing = round_e8p(values, np.zeros(4, np.float32), 4)
    assert not nothing.any()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_costs_are_those_of_the_rounded_weight(bits: int) -> None:
    rng = np.random.default_rng(7)
    values = rng.standard_normal((5, 24), np.float32)
    scales = rng.uniform(0.5, 1.5, 5).astype(np.float32)
    importance = rng.uniform(0, 2, 24).astype(np.float32)
    _, points = round_e8p(values, scales, bits, threads=1)
    wanted = (np.square(values.astype(np.float64) - points) * importance).sum(axis=1)
    np.testing.assert_allclose(e8p_costs(values, scales, importance, bits), wanted, rtol=1e-5)


@pytest.mark.parametrize(("name", "most"), [("e8p2", 0.090), ("e8p3", 0.030), ("e8p4", 0.0087)])
def test_distortion_on_the_normal_distribution(name: str, most: float) -> None:
    measured = gaussian_distortion(parse_format(name))
    assert measured.squared_error <= most
    assert measured.bits == pytest.approx(int(name[3:]) + 16 / 1024)


@pytest.mark.parametrize(
    ("name", "shape"),
    list(itertools.product(["e8p2", "e8p3", "e8p4", "e8p2_tensor"], [(3, 8), (5, 72)])),
)
def test_stored_bytes_are_those_promised_and_read_back(name: str, shape: tuple[int, int]) -> None:
    fmt = parse_format(name)
    assert isinstance(fmt, E8pFormat)
    assert str(fmt) == name
    weight = np.random.default_rng(3).standard_normal(shape, np.float32) * np.float32(0.02)
    arrays = fmt.encode(weight)
    packed = fmt.pack(arrays)
    stored = sum(array.nbytes for array in packed.values())
    assert 8 * stored / weight.size == pytest.approx(fmt.bits_per_weight(shape))
    again = fmt.unpack(packed, shape)
    np.testing.assert_array_equal(again["codes"], arrays["codes"])
    np.testing.assert_array_equal(fmt.decode(again), fmt.decode(arrays))
    error = np.square(fmt.decode(arrays) - weight).mean() / np.square(weight).mean()
    assert error < {2: 0.13, 3: 0.05, 4: 0.015}[fmt.bits]


def test_grid_rounds_to_what_is_decoded() -> None:
    fmt = E8pFormat(bits=2)
    weight = np.random.default_rng(1).standard_normal((6, 32), np.float32)
    grid = fmt.grid(weight)
    rounded = [grid.round(weight[:, at : at + 8], at) for at in range(0, 32, grid.width)]
    arrays = grid.arrays(np.concatenate([codes for codes, _ in rounded], axis=1))
    points = np.concatenate([points for _, points in rounded], axis=1)
    np.testing.assert_allclose(fmt.decode(arrays), points, rtol=1e-6)
    np.testing.assert_array_equal(arrays["codes"], fmt.encode(weight)["codes"])


def test_importance_moves_the_scale() -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((4, 64), np.float32)
    weight[:, :32] *= 0.3
    importance = np.where(np.arange(64) < 32, 1.0, 1e-3)
    fmt = E8pFormat(bits=2)
    plain, moved = fmt.encode(weight), fmt.encode(weight, importance=importance)
    assert (moved["scales"] < plain["scales"]).all()


def test_refusals() -> None:
    with pytest.raises(FormatError, match="12 columns are not a multiple of 8"):
        E8pFormat(bits=2).encode(np.ones((2, 12), np.float32))
    with pytest.raises(FormatError, match="choose e8p2, e8p3 or e8p4"):
        parse_format("e8p5")
    with pytest.raises(FormatError, match="float16 scales"):
        E8pFormat(bits=2).encode(np.full((1, 8), 1e6, np.float32))


def test_kernel_checks_its_arrays() -> None:
    values, scales = np.zeros((2, 8), np.float32), np.ones(2, np.float32)
    codes, points = np.zeros((2, 2), np.uint16), np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match="shape of codes"):
        _native.e8p_round(values, scales, codes, points, 2, 1, "")
