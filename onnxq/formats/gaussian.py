"""Grids of least squared error for vectors of independent N(0, 1) numbers, shipped as data.

They are what `onnxq.numerics.gaussian_grids.solve_gaussian_grid` computes; to compute them again::

    python -m onnxq.formats.gaussian onnxq/formats/gaussian_grids.npz

The grids of HIGGS (Malinovskii et al., arXiv:2411.17525, section 4.2) after Pagès and Printems
(2003), optimal quadratic quantization for the Gaussian case.
"""

from __future__ import annotations

import functools
import importlib.resources
import sys

import numpy as np
import numpy.typing as npt

__all__ = ["GAUSSIAN_GRIDS", "gaussian_grid"]

GAUSSIAN_GRIDS = ((1, 16), (1, 64), (1, 256), (2, 16), (2, 64), (2, 256), (4, 256))
"""(dimension, entries) of every grid there is."""


@functools.cache
def gaussian_grid(dimension: int, entries: int) -> npt.NDArray[np.float32]:
    """One of `GAUSSIAN_GRIDS`: ``[entries, dimension]`` float32, for variance 1."""
    data = importlib.resources.files("onnxq.formats") / "gaussian_grids.npz"
    with data.open("rb") as stream, np.load(stream) as grids:
        grid: npt.NDArray[np.float32] = grids[f"d{dimension}n{entries}"]
    grid.flags.writeable = False
    return grid


def _write(path: str) -> None:
    from onnxq.numerics.gaussian_grids import solve_gaussian_grid

    grids = {
        f"d{dimension}n{entries}": solve_gaussian_grid(dimension, entries)
        for dimension, entries in GAUSSIAN_GRIDS
    }
    np.savez_compressed(path, **grids)  # type: ignore[arg-type]


if __name__ == "__main__":
    _write(sys.argv[1])
