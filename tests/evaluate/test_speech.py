"""Edit distance against the textbook recursion, and the words a transcript is reduced to."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.evaluate.speech import (
    ErrorCount,
    character_errors,
    edit_distance,
    spoken_words,
    word_errors,
)


def _recursion(a, b):
    @functools.cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]),
        )

    return distance(len(a), len(b))


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_edit_distance_is_the_recursion(a, b):
    assert edit_distance(a, b) == _recursion(a, b)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("And Mr. John Dashwood,", ["and", "mister", "john", "dashwood"]),
        ("ill-disposed — don't!", ["ill", "disposed", "dont"]),
        (" ", []),
    ],
)
def test_spoken_words(text, words):
    assert spoken_words(text) == words


def test_word_errors_count_each_kind_of_edit():
    count = word_errors("he was not an ill disposed man", "He was an ill-disposed young men.")
    assert count == ErrorCount(3, 7)
    assert (count + ErrorCount(0, 3)).rate == 0.3


def test_an_empty_reference():
    assert character_errors("", "").rate == 0.0
    assert character_errors("", "x").rate == float("inf")
