"""The native build: sanitizer runs of the kernels, and what happens without a compiler."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "custom_ops"

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)


def configure(build, *options, **environment):
    command = ["cmake", "-S", str(SOURCE), "-B", str(build), *options]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def path_without_compiler(folder):
    """A folder with cmake and its build tools alone, to be the whole PATH."""
    folder.mkdir()
    for name in ("cmake", "make", "ninja"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(Path(found).resolve())
    return folder


@needs_cmake
@needs_compiler
@pytest.mark.slow  # instrumented kernels take minutes to compile
@pytest.mark.parametrize("sanitizers", ("address,undefined", "thread"))
def test_kernels_run_clean_under_sanitizers(sanitizers, tmp_path):
    done = configure(tmp_path, f"-DONNXQ_SANITIZE={sanitizers}")
    assert done.returncode == 0, done.stderr
    built = subprocess.run(
        ["cmake", "--build", str(tmp_path), "-j", "2"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    drivers = sorted(path for path in tmp_path.glob("onnxq_*_test") if path.is_file())
    assert len(drivers) >= 3
    for driver in drivers:
        ran = subprocess.run([str(driver)], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-4000:]


@needs_cmake
def test_without_a_compiler_the_build_says_what_to_install(tmp_path):
    tools = path_without_compiler(tmp_path / "bin")
    for variables in ({}, {"CXX": "/nowhere/c++"}):
        done = configure(tmp_path / f"build{len(variables)}", PATH=str(tools), **variables)
        assert done.returncode != 0
        said = " ".join(done.stderr.split())
        assert "onnxq needs a C++17 compiler to build its native kernels" in said
        assert "apt-get install g++" in said
        assert said.count("CMake Error") == 1


@needs_cmake
@needs_compiler
def test_installing_a_compiler_afterwards_is_enough(tmp_path):
    tools = path_without_compiler(tmp_path / "bin")
    option = "-DONNXQ_SANITIZE=address"  # needs no Python
    assert configure(tmp_path / "build", option, PATH=str(tools)).returncode != 0
    done = configure(tmp_path / "build", option)
    assert done.returncode == 0, done.stderr


@needs_cmake
@needs_compiler
def test_plugins_need_headers_and_nvcc_and_say_so(tmp_path):
    library = "-DONNXQ_LIBRARY=ON"  # needs no Python
    said = configure(tmp_path / "a", library, f"-DONNXQ_TENSORRT_INCLUDE={tmp_path}").stderr
    assert "which has no NvInferRuntime.h" in " ".join(said.split())
    (tmp_path / "NvInferRuntime.h").touch()
    headers = {"ONNXQ_TENSORRT_INCLUDE": str(tmp_path)}
    said = configure(tmp_path / "b", library, "-DONNXQ_CUDA=OFF", **headers).stderr
    assert "nvcc was not found" in " ".join(said.split())
