"""The kernels of CUDA compiled as C++, with the words of CUDA from custom_ops/matmul/tests."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[2] / "custom_ops"
CUDA_HEADERS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
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
    _compile(command, sources, objects)
    library = folder / "cuda_on_cpu.so"
    subprocess.run([compiler(), "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library


def tensorrt_headers() -> Path | None:
    """The folder with TensorRT's headers, where ``ONNXQ_TENSORRT_INCLUDE`` names one."""
    folder = Path(os.environ.get("ONNXQ_TENSORRT_INCLUDE", "/nowhere"))
    return folder if (folder / "NvInferRuntime.h").exists() else None


def build_ptx(folder: Path, kernels: Path) -> Path:
    """A library of the kernels that are started by their address, and of what starts them."""
    options = ["-std=c++17", "-O0", "-fPIC", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    command = [compiler(), *options, "-x", "c++", f"-I{SHIM}", "-DONNXQ_CUDA_ON_CPU", "-c"]
    sources = [*SOURCE.glob("*/*_ptx.cu"), SHIM / "launch_by_address.h"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    _compile(command, sources, objects)
    library = folder / "ptx_on_cpu.so"
    link = [compiler(), "-shared", *map(str, objects), str(kernels)]
    subprocess.run([*link, f"-Wl,-rpath,{kernels.parent}", "-o", str(library)], check=True)
    return library


def _compile(command, sources, objects) -> None:
    """Compile two files at a time."""
    waiting = list(zip(sources, objects, strict=True))
    while waiting:
        pair, waiting = waiting[:2], waiting[2:]
        running = [
            subprocess.Popen([*command, str(source), "-o", str(target)]) for source, target in pair
        ]
        failed = [process.wait() for process in running]
        if any(failed):
            raise RuntimeError(f"{pair} did not compile")


def build_plugins(folder: Path, kernels: Path) -> Path:
    """A library of the plugins for TensorRT over ``kernels``, and of what runs them.

    It needs `tensorrt_headers`, and those of CUDA.
    """
    headers = [f"-isystem{path}" for path in (tensorrt_headers(), CUDA_HEADERS)]
    options = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    plugins = SOURCE / "tensorrt"
    sources = [*plugins.glob("*.cpp"), plugins / "tests" / "plugin_on_cpu.cpp"]
    library = folder / "plugins_on_cpu.so"
    command = [compiler(), *options, *headers, "-shared", *map(str, sources), str(kernels)]
    subprocess.run([*command, f"-Wl,-rpath,{kernels.parent}", "-o", str(library)], check=True)
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
