"""Matmuls of other libraries: ggml (llama.cpp) and the CPU kernel of aqlm.

``python -m tests.bench matmul_peers --peers DIR`` builds ggml from the source package that lies in
DIR, without AMX, whose kernels crash on some machines. DIR is filled by

    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python -d DIR
    pip install --no-deps --target DIR aqlm numba llvmlite

which leaves this environment as it is.
"""

import argparse
import ctypes
import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

from tests.bench.matmul_sides import Side, weights_in

GGML_TYPES = ("q4_0", "q4_K", "q2_K", "iq2_xxs", "iq2_xs", "tq2_0", "iq4_xs")
AQLM = "aqlm 2x8"
_LIBRARY = "libggml_matmul.so"
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def build(folder: Path, jobs: int = 1) -> Path:
    """Compile ggml from the source package in ``folder``; minutes. Returns the library."""
    archives = sorted(folder.glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        raise SystemExit(f"{folder} holds no source package of llama-cpp-python.\n{__doc__}")
    unpacked = folder / archives[-1].name.removesuffix(".tar.gz")
    if not unpacked.exists():
        with tarfile.open(archives[-1]) as archive:
            archive.extractall(folder, filter="data")
    made = folder / "build"
    configure = ["cmake", "-S", str(Path(__file__).with_name("ggml")), "-B", str(made)]
    configure += [f"-DGGML={unpacked / 'vendor' / 'llama.cpp' / 'ggml'}"]
    configure += ["-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DCMAKE_{language}_FLAGS={_NO_AMX}" for language in ("C", "CXX")]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(made), "-j", str(jobs)], check=True)
    return made / _LIBRARY


def peer_names(folder: Path | None, threads: int) -> list[str]:
    """Names of sides that can be opened with what is in ``folder``."""
    if folder is None:
        return []
    names: list[str] = []
    if (folder / "build" / _LIBRARY).exists():
        for kind in GGML_TYPES:
            names += [f"ggml {kind}", f"ggml {kind} repacked"]
    if threads == 1 and (folder / "aqlm").is_dir():
        names.append(AQLM)  # on two threads its result is wrong: they add to the same sums
    return names


def peer_side(
    name: str, folder: Path, shape: tuple[int, int], threads: int, set_bytes: int = 0
) -> Side | None:
    """A side of another library; None where it has no such layout, or cannot hold the shape."""
    if name == AQLM:
        return None if set_bytes else _aqlm(folder, shape)
    kind, _, layout = name.removeprefix("ggml ").partition(" ")
    return _ggml(name, folder, kind, bool(layout), shape, threads, set_bytes)


def _ggml_library(folder: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(folder / "build" / _LIBRARY))
    library.ggml_matmul_new.restype = ctypes.c_void_p
    library.ggml_matmul_new.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, *[ctypes.c_int] * 3]
    library.ggml_matmul_bytes.restype = ctypes.c_int64
    for name in ("run", "bytes", "free"):
        getattr(library, f"ggml_matmul_{name}").argtypes = [ctypes.c_void_p]
    return library


def _ggml(name, folder, kind, repacked, shape, threads, set_bytes) -> Side | None:
    """Graphs are of one number of tokens each, so they are made when activations are bound."""
    library = _ggml_library(folder)

    def make(tokens: int, weights: int) -> int | None:
        return library.ggml_matmul_new(
            kind.encode(), *shape, tokens, threads, int(repacked), weights
        )

    one = make(1, 1)
    if one is None:
        return None
    nbytes = library.ggml_matmul_bytes(one)
    library.ggml_matmul_free(one)
    weights = weights_in(nbytes, set_bytes)
    opened = []

    def bound(x: np.ndarray):
        opened.append(make(len(x), weights))
        return lambda matmul=opened[-1]: library.ggml_matmul_run(matmul)

    def close() -> None:
        while opened:
            library.ggml_matmul_free(opened.pop())

    return Side(name, nbytes * weights, weights, "int8", bound, close)


def _aqlm(folder: Path, shape: tuple[int, int]) -> Side:
    """Two books of 256 vectors of 8 weights, by its look-up kernel, on one thread."""
    import torch

    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # behind this environment, so that nothing of it is replaced
    import numba

    torch.set_num_threads(1)
    numba.set_num_threads(1)
    path = folder / "aqlm" / "inference_kernels" / "numba_kernel.py"
    spec = importlib.util.spec_from_file_location("aqlm_numba_kernel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows, columns = shape
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(-128, 128, (columns // 8, rows, 2), np.int8))
    books = torch.from_numpy(rng.standard_normal((2, 256, 1, 8), np.float32))
    scales = torch.from_numpy(rng.random((rows, 1, 1, 1), np.float32))

    def bound(x: np.ndarray):
        given = torch.from_numpy(x)
        return lambda: module.numba_gemm_lut(given, codes, books, scales, None)

    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in (codes, books, scales))
    return Side(AQLM, nbytes, 1, "float", bound, lambda: None)


def folder_of(given: Path | None) -> Path | None:
    """The folder that was given, or that the environment names in PEERS."""
    if given is None and "PEERS" in os.environ:
        given = Path(os.environ["PEERS"])
    return given


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench matmul_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", type=Path, help="the folder; PEERS of the environment")
    parser.add_argument("--jobs", type=int, default=1, help="compilers at once")
    options = parser.parse_args(argv)
    folder = folder_of(options.peers)
    if folder is None:
        parser.error("--peers DIR is needed")
    print(build(folder, options.jobs))
    print(f"sides: {', '.join(peer_names(folder, 1))}")
