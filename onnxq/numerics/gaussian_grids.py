"""The quantizer of least squared error for N(0, 1) vectors: Lloyd's iteration on many of them.

Each round draws its vectors anew, so that no grid fits one sample, and moves every entry towards
the mean of the vectors nearest to it, by 1 at first and by less and less later (Robbins and Monro):
the noise of the means is averaged away. Of several starts the one with the least error on vectors
of its own is kept. In one dimension means come from the error function and nothing is drawn.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from onnxq.numerics.codebook import look_up, search_books

__all__ = ["solve_gaussian_grid"]

Floats = npt.NDArray[np.float32]


def solve_gaussian_grid(
    dimension: int,
    entries: int,
    *,
    seed: int = 0,
    starts: int = 8,
    rounds: int = 200,
    count: int = 2**19,
    threads: int | None = None,
) -> Floats:
    """The grid, ``[entries, dimension]`` float32, sorted by its first number.

    Args:
        dimension: 1, 2, 4 or 8.
        entries: of the grid.
        seed: of what is drawn.
        starts: grids that are tried.
        rounds: of each.
        count: vectors drawn in a round.
        threads: of the search; the result does not depend on it.
    """
    if dimension == 1:
        return _solve_line(entries)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(starts):
        grid = rng.standard_normal((entries, dimension), np.float32)
        for index in range(rounds):
            values = rng.standard_normal((count, dimension), np.float32)
            pull = min(1.0, 16 / (index + 1))
            grid += np.float32(pull) * (_means(values, grid, threads) - grid)
        found.append((_error(grid, seed + 1, dimension, threads), grid))
    best = min(found, key=lambda pair: pair[0])[1]
    return np.ascontiguousarray(best[np.lexsort(best.T[::-1])])


def _means(values: Floats, grid: Floats, threads: int | None) -> Floats:
    codes = search_books(values, grid[None], threads=threads)[:, 0]
    counts = np.bincount(codes, minlength=len(grid))
    sums = [np.bincount(codes, axis, len(grid)) for axis in values.T]
    means = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, grid).astype(np.float32)


def _error(grid: Floats, seed: int, dimension: int, threads: int | None) -> float:
    values = np.random.default_rng(seed).standard_normal((2**21, dimension), np.float32)
    near = look_up(grid[None], search_books(values, grid[None], threads=threads))
    return float(np.mean(np.square(values - near, dtype=np.float64)))


def _solve_line(entries: int) -> Floats:
    """Lloyd and Max: borders half way between entries, entries at the means between borders."""
    erf = np.vectorize(math.erf)
    # Optimal entries lie as densely as the cube root of the density: as a wider Gaussian.
    grid = np.sqrt(3) * _normal_quantiles((np.arange(entries) + 0.5) / entries)
    for _ in range(20000):
        borders = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
        density = np.exp(-(borders**2) / 2) / math.sqrt(2 * math.pi)
        below = (1 + erf(borders / math.sqrt(2))) / 2
        new = -np.diff(density) / np.diff(below)
        new = (new - new[::-1]) / 2
        if np.abs(new - grid).max() < 1e-9:
            break
        grid = new
    column: Floats = grid[:, None].astype(np.float32)
    return column


def _normal_quantiles(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Numbers that shares of N(0, 1) lie below, by bisection."""
    low, high = np.full(shares.shape, -10.0), np.full(shares.shape, 10.0)
    erf = np.vectorize(math.erf)
    for _ in range(60):
        middle = (low + high) / 2
        too_low = (1 + erf(middle / math.sqrt(2))) / 2 < shares
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    found: npt.NDArray[np.float64] = (low + high) / 2
    return found
