import contextlib
import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from onnxq.calibration import walk_sites
from onnxq.calibration.activations import ActivationStore
from onnxq.errors import CalibrationError
from onnxq.graph import find_sites
from onnxq.runtime.memory_settings import MemorySettings


def arrays(count=6, rows=3000):
    random = np.random.default_rng(0)
    return [random.standard_normal((rows, 3)).astype(np.float32) for _ in range(count)]


def test_what_exceeds_the_budget_comes_back_from_the_file():
    data = arrays()
    with ActivationStore(2 * data[0].nbytes) as store:
        held = [store.hold(array) for array in data]
        assert store.spilled_bytes == 4 * data[0].nbytes
        for back, array in zip(held, data, strict=True):
            np.testing.assert_array_equal(back.read(), array)


def test_space_is_used_again():
    data = arrays()
    with ActivationStore(0) as store:
        held = [store.hold(array) for array in data]
        end = store._end
        for _ in range(3):
            for index, array in enumerate(data):
                held[index] = None
                held[index] = store.hold(array[::-1])
        assert store._end == end == sum(array.nbytes for array in data)
        np.testing.assert_array_equal(held[5].read(), data[5][::-1])


def test_memory_is_given_back():
    (array,) = arrays(1)
    with ActivationStore(array.nbytes) as store:
        for _ in range(4):
            held = store.hold(array)
            assert held.read() is array
            del held
        assert store.spilled_bytes == 0


def test_other_types_strings_and_empty_arrays():
    data = [
        np.arange(20_000, dtype=np.int64).reshape(2, -1).T,
        np.ones(40_000, bool),
        np.zeros((0, 5), np.float16),
        np.array(["a", "b"] * 9000, object),
        np.float32(3).reshape(()),
    ]
    with ActivationStore(0) as store:
        for held, array in [(store.hold(array), array) for array in data]:
            np.testing.assert_array_equal(held.read(), array)
            assert held.read().dtype == array.dtype


def test_a_full_disk_is_told(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(CalibrationError, match=r"could not be written .*No space left.* Make room"),
        ActivationStore(0) as store,
    ):
        store.hold(arrays(1)[0])


def open_files(folder):
    """Open files of this process that are, or were before they were unlinked, in the folder."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is gone
            found.append(str(descriptor.readlink()))
    return [path for path in found if path.startswith(str(folder))]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_a_walk_that_fails(make, monkeypatch, tmp_path, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, samples = make("residual", count=3, length=600)
    assert not open_files(tmp_path)

    def solve(site, statistics):
        if site.name == "d":
            assert open_files(tmp_path)  # activations are in a file that has no name any more
            raise error
        return None

    with pytest.raises(error):
        walk_sites(model, samples, find_sites(model), solve, memory=MemorySettings(activations=0))
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert not open_files(tmp_path)
