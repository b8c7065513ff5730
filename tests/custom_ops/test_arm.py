"""The kernels on 64-bit ARM: the drivers of the sanitizer builds, cross-compiled, under QEMU.

Each driver compares every instruction set that the CPU has with the generic one; of QEMU's CPUs one
has products of bytes, one matrix products too, and one neither.
"""

import shutil
import subprocess

import pytest

from tests.numerics.test_build import configure

COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
CPUS = {"cortex-a72": "generic", "neoverse-n1": "dot", "max": "i8mm"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMPILER is None or EMULATOR is None or shutil.which("cmake") is None,
        reason="ARM is tested where cmake, g++-aarch64-linux-gnu and qemu-user-static are "
        "installed: make test-arm",
    ),
]


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm")
    done = configure(
        folder,
        "-DONNXQ_DRIVERS=ON",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    assert done.returncode == 0, done.stderr
    built = subprocess.run(
        ["cmake", "--build", str(folder), "-j", "2"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr
    found = sorted(folder.glob("onnxq_*_test"))
    assert found
    return found


@pytest.mark.parametrize("cpu", CPUS)
def test_drivers_run_on_arm(drivers, cpu):
    for driver in drivers:
        ran = subprocess.run(
            [EMULATOR, "-cpu", cpu, str(driver)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, (driver.name, ran.returncode, ran.stderr[-4000:])
