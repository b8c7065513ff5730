"""Pieces of work in processes: failures are told apart from lost workers, threads are shared."""

import os
import threading
from pathlib import Path

import pytest

from onnxq.errors import FormatError, OnnxqError, UsageError, WorkerError
from onnxq.numerics.threads import default_threads, limited_threads
from onnxq.runtime.workers import Workers

PROCESSES = Workers(count=2, threads=2)


def tell(problem, threads):
    return problem, threads, default_threads()


def fail(problem, threads):
    if problem == 1:
        raise FormatError("it holds NaN")
    if problem == 2:
        return [][problem]
    return problem


def die(problem, threads):
    """Kills its process while its file says how often."""
    if isinstance(problem, str):
        left = int(Path(problem).read_text())
        if left:
            Path(problem).write_text(str(left - 1))
            os._exit(9)
    return problem


def run(workers, function, problems):
    kept, failed = {}, {}
    workers.map(function, problems, kept.__setitem__, failed.__setitem__)
    assert list(kept) == sorted(kept)
    return kept, failed


def test_threads_are_shared_by_those_that_are_at_work():
    workers = Workers(count=4, threads=8)
    assert [workers.threads_each(pieces) for pieces in (1, 2, 3, 4, 9)] == [8, 4, 2, 2, 2]
    assert Workers(count=8, threads=4).threads_each(8) == 1
    assert Workers(count=2, backend="ray").threads_each(2) == 1


@pytest.mark.parametrize("backend", ["processes", "threads"])
def test_each_piece_is_told_its_threads(backend):
    kept, _ = run(Workers(count=2, threads=4, backend=backend), tell, ["a", "b"])
    assert kept == {0: ("a", 2, 2), 1: ("b", 2, 2)}
    kept, _ = run(Workers(count=2, threads=4, backend=backend), tell, ["alone"])
    assert kept == {0: ("alone", 4, 4)}


def test_a_limit_ends_where_it_was_set():
    before = default_threads()
    with limited_threads(3), limited_threads(1):
        assert default_threads() == 1
    assert default_threads() == before


@pytest.mark.parametrize("workers", [Workers(), PROCESSES, Workers(count=2, backend="threads")])
def test_what_fails_is_told_and_the_others_go_on(workers):
    kept, failed = run(workers, fail, [0, 1, 2, 3])
    assert kept == {0: 0, 3: 3}
    assert isinstance(failed[1], FormatError) and str(failed[1]) == "it holds NaN"
    assert isinstance(failed[2], WorkerError)
    assert str(failed[2]).startswith("IndexError: list index out of range (test_workers.py, line")


def test_a_failure_may_stop_the_rest():
    def stop(number, error):
        raise error

    with pytest.raises(FormatError):
        PROCESSES.map(fail, [0, 1, 2], lambda number, result: None, stop)


def test_a_lost_worker_is_replaced_and_what_is_kept_not_made_again(tmp_path):
    piece = tmp_path / "piece"
    piece.write_text("2")
    kept, failed = run(PROCESSES, die, [0, 1, str(piece), 3])
    assert list(kept) == [0, 1, 2, 3] and not failed


def test_a_piece_that_kills_every_worker_is_given_up_alone(tmp_path):
    piece = tmp_path / "piece"
    piece.write_text("99")
    kept, failed = run(PROCESSES, die, [0, str(piece), 2, 3])
    assert list(kept) == [0, 2, 3]
    assert "it lost its worker 3 times" in str(failed[1])
    assert isinstance(failed[1], OnnxqError)
    assert threading.active_count() < 50


def test_numbers_that_make_no_sense():
    with pytest.raises(UsageError, match="0 count of workers"):
        Workers(count=0)
