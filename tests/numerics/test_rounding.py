"""Rounding by groups: the kernel is its NumPy meaning, bit for bit, and the meaning is nearest."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from onnxq.errors import FormatError
from onnxq.numerics.rounding import (
    MSE_GRID,
    Rounding,
    pack_groups,
    round_groups,
    round_groups_reference,
)

SHAPES = [(1, 1), (1, 17), (3, 16), (7, 33), (64, 32), (65, 40), (130, 129), (5, 1100)]
KINDS = [
    (bits, symmetric, positive, half)
    for bits in range(1, 9)
    for symmetric, positive in ((True, False), (True, True), (False, False))
    for half in (False, True)
]


def awkward(rows, columns, seed=0):
    """Normal weights with zeros, ties, one-signed rows, wide magnitudes and denormals."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)).astype(np.float32)
    w[rng.random(w.shape) < 0.1] = 0
    w[0] = rng.integers(-8, 9, columns) / 2  # exact halves of steps
    if rows > 4:
        w[1] = 0
        w[2] = np.abs(w[2])
        w[3] = -np.abs(w[3]) * np.float32(1e-41)
        w[4] *= np.float32(2.0) ** rng.integers(-30, 12, columns)
    return w


def layouts(w):
    """The same weight row-major, as the transpose of [K, N], and with other strides."""
    wide = np.zeros((2 * w.shape[0], 2 * w.shape[1]), np.float32)
    wide[::2, ::2] = w
    return [w, np.ascontiguousarray(w.T).T, wide[::2, ::2]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kernel_is_the_reference_bit_for_bit(kind):
    bits, symmetric, positive, half = kind
    for (rows, columns), group in itertools.product(SHAPES, (1, 16, 24, 1024)):
        how = Rounding(
            bits=bits, symmetric=symmetric, positive=positive, half_scales=half, group=group
        )
        w = awkward(rows, columns, seed=rows)
        wanted = round_groups_reference(w, how)
        for view, threads in itertools.product(layouts(w), (1, 2, 5)):
            got = round_groups(view, how, threads=threads)
            assert np.array_equal(got.codes, wanted.codes)
            assert got.scales.tobytes() == wanted.scales.tobytes()
            assert symmetric or np.array_equal(got.zeros, wanted.zeros)


@pytest.mark.parametrize("kind", KINDS[::3], ids=str)
def test_search_is_the_reference_bit_for_bit(kind):
    bits, symmetric, positive, half = kind
    for (rows, columns), group in itertools.product(SHAPES[::2], (16, 1024)):
        how = Rounding(
            bits=bits,
            symmetric=symmetric,
            positive=positive,
            half_scales=half,
            group=group,
            shrink=MSE_GRID,
        )
        w = awkward(rows, columns, seed=columns)
        wanted = round_groups_reference(w, how)
        for view in layouts(w):
            got = round_groups(view, how, threads=2)
            assert np.array_equal(got.codes, wanted.codes)
            assert got.scales.tobytes() == wanted.scales.tobytes()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_code_is_the_nearest_to_the_float64_quotient(kind):
    bits, symmetric, positive, half = kind
    how = Rounding(bits=bits, symmetric=symmetric, positive=positive, half_scales=half, group=32)
    w = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    got = round_groups(w, how)
    scales = np.repeat(got.scales, 32, axis=1).astype(np.float64)
    zeros = 0.0 if symmetric else np.repeat(got.zeros, 32, axis=1).astype(np.float64)
    exact = w / scales + zeros
    nearest = np.clip(exact, how.lowest, how.highest)
    # float32 division is off by at most half an ulp of a number below 2**bits.
    assert np.abs(got.codes - nearest).max() <= 0.5 + 2.0 ** (bits - 24)
    assert got.codes.min() >= how.lowest and got.codes.max() <= how.highest


@pytest.mark.parametrize("bits", range(1, 9))
def test_error_is_at_most_half_a_step_and_one_step_at_the_clipped_end(bits):
    w = np.random.default_rng(2).standard_normal((64, 128)).astype(np.float32)
    for symmetric in (True, False):
        how = Rounding(bits=bits, symmetric=symmetric, group=32)
        got = round_groups(w, how)
        step = np.abs(np.repeat(got.scales, 32, axis=1))
        zeros = 0.0 if symmetric else np.repeat(got.zeros, 32, axis=1).astype(np.float32)
        value = (got.codes - zeros) * np.repeat(got.scales, 32, axis=1)
        # Symmetric below 8 bits: the end away from the extreme lacks one level. Asymmetric: the
        # zero point is rounded, which moves both ends by up to half a step.
        allowed = 1.0 if bits < 8 or not symmetric else 0.5
        assert (np.abs(w - value) <= step * np.float32(allowed * 1.0001)).all()


def test_symmetric_extreme_is_exact_and_takes_the_lowest_code():
    w = np.array([[0.5, -3.0, 1.0, 2.0], [0.5, 3.0, 1.0, -2.0]], np.float32)
    got = round_groups(w, Rounding(bits=4, symmetric=True, group=4))
    assert got.codes[0, 1] == -8 and got.codes[1, 1] == -8
    assert got.scales[0, 0] == np.float32(0.375) and got.scales[1, 0] == np.float32(-0.375)


def test_eight_bit_symmetric_codes_never_are_minus_128():
    w = np.random.default_rng(3).standard_normal((200, 256)).astype(np.float32)
    for shrink in ((1.0,), MSE_GRID):
        codes = round_groups(w, Rounding(bits=8, symmetric=True, group=256, shrink=shrink)).codes
        assert codes.min() == -127


def test_zero_is_exact_and_a_zero_group_has_scale_one():
    w = np.zeros((3, 64), np.float32)
    w[1, :32] = 5 + np.arange(32)
    w[2, :32] = -5 - np.arange(32)
    for bits, symmetric in itertools.product(range(1, 9), (True, False)):
        got = round_groups(w, Rounding(bits=bits, symmetric=symmetric, group=32))
        zeros = 0 if symmetric else got.zeros[:, 1:2]
        assert (got.codes[:, 32:] == zeros).all()
        assert (got.scales[:, 1] == 1).all()


def test_search_is_never_worse_and_much_better_with_an_outlier():
    w = np.random.default_rng(4).standard_normal((128, 512)).astype(np.float32)
    w[:, 7] = 12
    error = {}
    for name, shrink in (("minmax", (1.0,)), ("mse", MSE_GRID)):
        got = round_groups(w, Rounding(bits=4, symmetric=False, group=128, shrink=shrink))
        value = (got.codes - np.repeat(got.zeros, 128, 1).astype(np.float64)) * np.repeat(
            got.scales, 128, 1
        )
        error[name] = ((w - value) ** 2).reshape(128, 4, 128).sum(-1)
    # Sums of float32 products: equal up to their rounding.
    assert (error["mse"] <= error["minmax"] * (1 + 1e-5)).all()
    assert error["mse"].sum() < 0.999 * error["minmax"].sum()


def test_half_scales_survive_float16():
    w = awkward(20, 100)
    got = round_groups(w, Rounding(bits=3, symmetric=True, half_scales=True, group=7))
    assert np.array_equal(got.scales.astype(np.float16).astype(np.float32), got.scales)
    assert (got.scales != 0).all()


@pytest.mark.parametrize("bits", (2, 4, 8))
@pytest.mark.parametrize("symmetric", (True, False))
def test_packed_is_unpacked_in_bits(bits, symmetric):
    for rows, columns, group in [(1, 5, 16), (70, 100, 32), (9, 1600, 1024), (128, 64, 16)]:
        how = Rounding(bits=bits, symmetric=symmetric, group=group)
        w = awkward(rows, columns, seed=5)
        plain = round_groups_reference(w, how)
        groups = plain.scales.shape[1]
        codes = np.full((rows, groups * group), 0, np.uint8)
        if symmetric:
            codes[:] = 2 ** (bits - 1)
            codes[:, :columns] += plain.codes.view(np.uint8)
        else:
            codes[:] = np.repeat(plain.zeros, group, axis=1)
            codes[:, :columns] = plain.codes
        places = np.arange(8 // bits, dtype=np.uint8) * bits
        wanted = (codes.reshape(rows, groups, -1, 8 // bits) << places).sum(-1).astype(np.uint8)
        for view, threads in itertools.product(layouts(w), (1, 3)):
            packed = pack_groups(view, how, threads=threads)
            assert np.array_equal(packed.codes, wanted)
            assert packed.scales.tobytes() == plain.scales.tobytes()
            assert (packed.zeros is None) == symmetric


@pytest.mark.parametrize("bits", (1, 2, 4, 8))
@pytest.mark.parametrize("symmetric", (True, False))
def test_squares_are_those_of_the_decoded_weight(bits, symmetric):
    rng = np.random.default_rng(6)
    for rows, columns, group in [(1, 5, 16), (70, 100, 32), (9, 1600, 1024)]:
        how = Rounding(bits=bits, symmetric=symmetric, group=group)
        w = rng.standard_normal((rows, columns)).astype(np.float32)
        rounded = round_groups(w, how, threads=1)
        spread = np.repeat(rounded.scales.astype(np.float64), group, axis=1)[:, :columns]
        zeros = 0 if symmetric else np.repeat(rounded.zeros.astype(int), group, axis=1)[:, :columns]
        gap = (rounded.codes - zeros) * spread - w
        wanted = [np.sum(gap**2, axis=1), np.sum(w.astype(np.float64) ** 2, axis=1)]
        # float32 sums of up to 512 terms: 512 * 2^-24; gaps of up to 127 steps: 128 * 2^-24 each.
        assert rounded.squares == pytest.approx(np.array(wanted), rel=1e-4)
        for view in layouts(w):
            again = round_groups(view, how, threads=3).squares
            assert again.tobytes() == rounded.squares.tobytes()
            if bits > 1:
                again = pack_groups(view, how, threads=2).squares
                assert again.tobytes() == rounded.squares.tobytes()


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
def test_not_finite_is_refused(bad):
    w = np.ones((70, 600), np.float32)
    w[69, 599] = bad
    how = Rounding(bits=4, symmetric=True, group=32)
    for round_one in (round_groups, round_groups_reference, pack_groups):
        with pytest.raises(FormatError, match=r"NaN or infinity, which no integer code"):
            round_one(w, how)


def test_scale_beyond_float16_is_refused():
    w = np.full((2, 16), 1e7, np.float32)
    how = Rounding(bits=4, symmetric=True, group=16, half_scales=True)
    for round_one in (round_groups, round_groups_reference):
        with pytest.raises(FormatError, match=r"too large for float16 scales"):
            round_one(w, how)


def test_huge_values_keep_a_finite_scale():
    w = np.array([[3e38, -3e38, 1e38, 0]], np.float32)
    for symmetric in (True, False):
        got = round_groups(w, Rounding(bits=4, symmetric=symmetric, group=4))
        assert np.isfinite(got.scales).all()


def test_a_read_only_file_is_read_where_it_lies(tmp_path):
    kn = np.random.default_rng(7).standard_normal((96, 70)).astype(np.float32)
    path = tmp_path / "weight.bin"
    kn.tofile(path)
    mapped = np.memmap(path, np.float32, "r", shape=kn.shape)
    how = Rounding(bits=4, symmetric=False, group=32)
    wanted = round_groups_reference(kn.T, how)
    assert np.array_equal(round_groups(mapped.T, how).codes, wanted.codes)
    assert pack_groups(mapped.T, how).scales.tobytes() == wanted.scales.tobytes()


@pytest.mark.slow
def test_packing_needs_no_memory_beyond_its_output():
    code = """
import resource, numpy as np
from onnxq.numerics.rounding import Rounding, pack_groups
kn = np.full((8192, 8192), 0.5, np.float32)
how = Rounding(bits=4, symmetric=True, group=128)
pack_groups(kn[:, :64].T, how)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
packed = pack_groups(kn.T, how)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown - packed.codes.nbytes - packed.scales.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 20  # thread stacks and 200 KiB of tiles each
