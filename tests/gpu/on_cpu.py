"""The kernels of CUDA compiled as C++, with the words of CUDA from custom_ops/matmul/tests."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[2] / "custom_ops"
SHIM = SOURCE / "matmul" / "tests" / "cuda_on_cpu"


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return next((found for name in ("g++", "c++") if (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """A library of all kernels, and of the operators of ONNX Runtime on them."""
    options = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    command = [compiler(), *options, "-x", "c++", f"-I{SHIM}", "-DONNXQ_CUDA_ON_CPU", "-c"]
    sources = [
        path for kind in ("*_cuda.cu", "*_cuda_ort.cpp") for path in SOURCE.glob(f"*/{kind}")
    ]
    sources += SHIM.glob("*.cpp")
    objects = [folder / f"{source.stem}.o" for source in sources]
    waiting = list(zip(sources, objects, strict=True))
    while waiting:  # two at a time
        pair, waiting = waiting[:2], waiting[2:]
        running = [
            subprocess.Popen([*command, str(source), "-o", str(target)]) for source, target in pair
        ]
        failed = [process.wait() for process in running]
        if any(failed):
            raise RuntimeError(f"{pair} did not compile")
    library = folder / "cuda_on_cpu.so"
    subprocess.run([compiler(), "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library


class Memory:
    """Copies of arrays that end where memory does: a byte read too far ends the program."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.guarded_copy.restype = ctypes.c_void_p
        self._library.guarded_free.argtypes = [ctypes.c_void_p]

    def put(self, array) -> int:
        """The address of a copy."""
        array = np.ascontiguousarray(array)
        return self._library.guarded_copy(
            ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        )

    def get(self, address, shape, dtype):
        """A copy of what lies there."""
        array = np.empty(shape, dtype)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        return array

    def free(self, address) -> None:
        """Give it back."""
        self._library.guarded_free(address)
