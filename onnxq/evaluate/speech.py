"""Word and character error rates by edit distance (Levenshtein, 1966)."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

__all__ = ["ErrorCount", "character_errors", "edit_distance", "spoken_words", "word_errors"]

_APOSTROPHES = re.compile(r"['’`]")
_NOT_A_WORD = re.compile(r"[^\w]+|_")
_SPELLED_OUT = {"mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint"}


@dataclasses.dataclass(frozen=True)
class ErrorCount:
    """Edits against a reference of some length.

    Attributes:
        errors: substitutions, insertions and deletions.
        length: words or characters in the reference.
    """

    errors: int
    length: int

    @property
    def rate(self) -> float:
        """Errors per unit of the reference; infinite for errors against an empty one."""
        if self.length == 0:
            return 0.0 if self.errors == 0 else float("inf")
        return self.errors / self.length

    def __add__(self, other: ErrorCount) -> ErrorCount:
        """Pool two counts, as rates over a test set are."""
        return ErrorCount(self.errors + other.errors, self.length + other.length)


def spoken_words(text: str) -> list[str]:
    """Normalize a transcript to comparable words.

    Unicode NFKC, lower case, apostrophes dropped (``don't`` → ``dont``), every other mark a space,
    and the titles Mr, Mrs, Dr and St spelled out as they are spoken. Numbers stay as written.
    """
    lowered = unicodedata.normalize("NFKC", text).lower()
    words = _NOT_A_WORD.sub(" ", _APOSTROPHES.sub("", lowered)).split()
    return [_SPELLED_OUT.get(word, word) for word in words]


def word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Word edits from a reference transcript, both normalized by `spoken_words`."""
    wanted = spoken_words(reference)
    return ErrorCount(edit_distance(wanted, spoken_words(hypothesis)), len(wanted))


def character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Character edits from a reference text, nothing normalized."""
    return ErrorCount(edit_distance(reference, hypothesis), len(reference))


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest substitutions, insertions and deletions that turn one sequence into the other.

    Args:
        first: items (words, or the characters of a string).
        second: items.

    Returns:
        The Levenshtein distance; time |first| · |second|, memory |second|.
    """
    symbols = {item: number for number, item in enumerate(dict.fromkeys([*first, *second]))}
    columns = np.array([symbols[item] for item in second], np.int64)
    offsets = np.arange(len(second) + 1)
    row = offsets.copy()
    for number, item in enumerate(first, start=1):
        best = np.empty_like(row)
        best[0] = number
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (columns != symbols[item]))
        # Insertions run along the row: a prefix minimum of (cost - position) covers them all.
        row = np.minimum.accumulate(best - offsets) + offsets
    return int(row[-1])
