import itertools

import numpy as np
import pytest

from onnxq.calibration import Samples
from onnxq.errors import CalibrationError


def numbered(count, rows=1):
    for index in range(count):
        yield {"x": np.full((rows, 2), index, np.float32), "file": np.arange(rows)}


def firsts(samples):
    return [int(sample["x"][0, 0]) for sample in samples]


def test_a_generator_can_be_read_again():
    samples = Samples.of(numbered(4))
    assert firsts(samples) == firsts(samples) == [0, 1, 2, 3]
    np.testing.assert_array_equal(next(iter(samples))["file"], [0])


def test_a_generator_without_end_is_read_as_far_as_asked():
    endless = ({"x": np.full((1, 1), index)} for index in itertools.count())
    assert firsts(Samples.of(endless, limit=3)) == [0, 1, 2]


def test_bare_arrays_of_a_generator_are_kept():
    samples = Samples.of(np.full(2, index) for index in range(2))
    assert [array.tolist() for array in samples] == [[0, 0], [1, 1]]


def test_a_list_is_read_in_place():
    data = list(numbered(2))
    assert next(iter(Samples.of(data)))["x"] is data[0]["x"]


def test_take():
    assert firsts(Samples.of(numbered(5)).take(2)) == [0, 1]


def test_batches_are_joined_along_the_first_axis():
    batches = list(Samples.of(list(numbered(5, rows=2))).batched(2))
    assert [batch["x"].shape for batch in batches] == [(4, 2), (4, 2), (2, 2)]
    np.testing.assert_array_equal(batches[0]["x"][:, 0], [0, 0, 1, 1])


def test_a_dimension_that_is_dynamic_where_a_batch_needs_a_static_one():
    data = [{"x": np.zeros((1, 3))}, {"x": np.zeros((1, 4))}]
    with pytest.raises(CalibrationError) as error:
        list(Samples.of(data).batched(2))
    assert "Samples 0 to 1 of the given list cannot be joined" in str(error.value)
    assert "input 'x' has the shapes [(1, 3), (1, 4)]" in str(error.value)
    assert "needs static sizes beyond its first axis. Use batches of 1" in str(error.value)


def test_an_empty_batch_is_refused():
    with pytest.raises(CalibrationError, match="A batch of 0 samples"):
        Samples.of([]).batched(0)


def test_a_generator_of_objects_is_refused():
    with pytest.raises(CalibrationError, match="Sample 0 of the given generator is no dict of arr"):
        Samples.of({"x": object()} for _ in range(1))
