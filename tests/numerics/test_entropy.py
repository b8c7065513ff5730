import numpy as np
import pytest

from onnxq.numerics.entropy import entropy_sweep, window_divergence


def spiky(half, seed):
    rng = np.random.default_rng(seed)
    centres = np.arange(-half, half) + 0.5
    bins = rng.poisson(2000 * np.exp(-np.abs(centres) * 6 / half)).astype(np.int64)
    bins[rng.random(2 * half) < 0.3] = 0
    bins[-1] += 3
    return bins


@pytest.mark.parametrize("half", (1, 4, 37, 200))
@pytest.mark.parametrize("levels", (1, 2, 15, 64))
def test_sweep_is_the_divergence_of_every_window(half, levels):
    bins = spiky(half, half)
    for first, last in ((0, 2 * half), (half, 2 * half), (half // 3, half + half // 2)):
        inside = bins.copy()
        inside[:first] = inside[last:] = 0
        sweep = entropy_sweep(inside, first, last, levels)
        wanted = [
            window_divergence(
                inside, max(first, half - reach - 1), min(last, half + reach + 1), levels
            )
            for reach in range(half)
        ]
        # Sums of up to 400 terms p log p of size below 1e6, prefix sums subtracted: 1e-16 * 1e8
        # over a total of about 1e5 counts.
        assert sweep == pytest.approx(np.array(wanted), rel=1e-9, abs=1e-9)
        assert np.array_equal(sweep, entropy_sweep(inside, first, last, levels, threads=3))


def test_divergence_is_zero_when_every_level_is_one_bin_and_nothing_is_cut():
    bins = spiky(32, 0)
    assert entropy_sweep(bins, 0, 64, 64)[-1] == pytest.approx(0, abs=1e-12)


def test_cutting_a_share_of_the_mass_costs_at_least_its_logarithm():
    bins = np.ones(64, np.int64)
    sweep = entropy_sweep(bins, 0, 64, 8)
    inside = 2 * np.arange(1, 33) / 64
    # KL of P against Q restricted to the inside is at least that of the two masses.
    assert (sweep[7:] >= -1e-12).all()
    assert sweep[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(sweep[7:]) < 0).all() and inside[-1] == 1


def test_an_empty_window_and_a_window_of_too_few_bins_are_infinite():
    bins = np.zeros(32, np.int64)
    bins[0] = 5
    sweep = entropy_sweep(bins, 0, 32, 8)
    assert np.isinf(sweep[:-1]).all() and np.isfinite(sweep[-1])
    assert np.isinf(entropy_sweep(np.ones(32, np.int64), 0, 32, 8)[:3]).all()
