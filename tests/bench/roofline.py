"""What the machine could do: bytes per second it reads, products per second it sums, measured.

A matmul cannot take less than its bytes over the one, nor than its operations over the other.
"""

import ctypes
import dataclasses
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.bench.matmul_sides import runtime_side

_SOURCE = Path(__file__).with_name("roofline.cpp")
_MEGABYTES = (4, 16, 64, 256, 1024)
_PEAK_SIZE = 2048
_PEAK_SIDES = {"float": "fp32", "int8": "dynamic int8"}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Measured limits with one number of threads.

    Attributes:
        bandwidth: gigabytes read in a second, by megabytes of what is read over and over.
        peak: billions of operations (two for a product and its sum) in a second, by what the
            products are of: ``float`` or ``int8``.
    """

    bandwidth: dict[int, float]
    peak: dict[str, float]

    def microseconds(self, nbytes: float, operations: float, kind: str, resident: float) -> float:
        """The least time for so many bytes and operations.

        Args:
            nbytes: read by one call.
            operations: done by one call.
            kind: of the products.
            resident: bytes of all that is read before anything is read again.
        """
        sizes = [size for size in self.bandwidth if size * 2**20 >= resident]
        rate = self.bandwidth[min(sizes)] if sizes else self.bandwidth[max(self.bandwidth)]
        return max(nbytes / rate, operations / self.peak[kind]) / 1e3


def measure_roofline(threads: int) -> Roofline:
    """Read buffers of several sizes, and multiply matrices large enough to reach the peak."""
    return Roofline(
        {size: _bandwidth(size * 2**20, threads) for size in _MEGABYTES}, _peaks(threads)
    )


def _peaks(threads: int) -> dict[str, float]:
    x = np.random.default_rng(0).standard_normal((_PEAK_SIZE, _PEAK_SIZE), np.float32)
    found = {}
    for kind, name in _PEAK_SIDES.items():
        side = runtime_side(name, x.shape, threads)
        call = side.bound(x)
        call()
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        found[kind] = 2 * _PEAK_SIZE**3 / min(taken) / 1e9
        side.close()
    return found


def _bandwidth(nbytes: int, threads: int, rounds: int = 5) -> float:
    """Gigabytes per second, each thread reading its part."""
    library = _library()
    words = np.ones(nbytes // 8, np.uint64)
    parts = np.array_split(words, threads)
    repeats = max(1, 2**28 // nbytes)
    taken = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(lambda part: library(part.ctypes.data, part.size, repeats), parts))
            taken.append(time.perf_counter() - start)
    return nbytes * repeats / min(taken) / 1e9


def _library():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "roofline.so"
        compiler = os.environ.get("CXX", "c++")
        subprocess.run(
            [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(_SOURCE), "-o", str(path)],
            check=True,
        )
        read = ctypes.CDLL(str(path)).read_all
    read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    read.restype = ctypes.c_uint64
    return read
