"""Codebooks: the nearest sum of their vectors, and books fitted to data.

A vector v of ``dimension`` entries is stored as codes i_1 ... i_m of m books and stands for
C_1[i_1] + ... + C_m[i_m]. With weights g the codes shall make Σ_j g_j (v_j − Σ_k C_k[i_k]_j)²
least.

- One book: every entry is looked at, so the answer is the nearest.
- More books: a beam search. Of all sums of the first k books those found best are kept, ``beam`` of
  them, and each is followed by every entry of the next book; a beam as wide as ``entries ** (m −
  1)`` finds the nearest sum. (Beam search over additive codes: Babenko and Lempitsky, CVPR 2014;
  AQLM, Egiazarian et al., arXiv:2401.06118, section 3.2.)

`fit_books` alternates between codes and books (Lloyd 1957; with weights that differ by coordinate
as GPTVQ does, van Baalen et al., arXiv:2402.15319, section 3.1). The entries of a book that make
the error least are weighted means of what the other books leave of the vectors that chose them;
with more books one is done after the other, which goes downhill as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics import _native
from onnxq.numerics.threads import default_threads

__all__ = ["fit_books", "look_up", "search_books", "search_books_reference"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint16]

_SMALL, _STARTS, _PART = 64, 12, 2**14
"""Books of at most so many entries are tried from so many starts, on about so many vectors."""


def search_books(
    values: Array,
    books: Array,
    *,
    weights: Array | None = None,
    beam: int = 8,
    threads: int | None = None,
    instruction_set: str = "",
) -> Codes:
    """Codes of the nearest sums of entries of the books.

    Args:
        values: ``[count, dimension]``, finite; the dimension is 1, 2, 4 or 8.
        books: ``[m, entries, dimension]``, m up to 16, up to 65536 entries.
        weights: of squared errors, ``[count, dimension]``, none negative; alike when None.
        beam: sums that are kept while more books follow, 1 to 32.
        threads: of the kernel; the result does not depend on it.
        instruction_set: ``generic``, ``avx2`` or ``avx512``; the best there is when empty.

    Returns:
        uint16 ``[count, m]``. Of entries that are equally near the first is taken.
    """
    values = np.ascontiguousarray(values, np.float32)
    books = np.ascontiguousarray(books, np.float32)
    given = np.empty((0, values.shape[1]), np.float32)
    if weights is not None:
        given = np.ascontiguousarray(np.broadcast_to(weights, values.shape), np.float32)
    codes = np.empty((len(values), len(books)), np.uint16)
    how = (beam, instruction_set, threads or default_threads())
    _native.search_codebooks(values, given, books, codes, *how)
    return codes


def search_books_reference(values: Array, books: Array, *, weights: Array | None = None) -> Codes:
    """The same in NumPy and float64, over all ``entries ** m`` sums."""
    count, entries, dimension = books.shape
    sums = np.zeros((1, dimension))
    for book in books.astype(np.float64):
        sums = (sums[:, None] + book).reshape(-1, dimension)
    errors = (values.astype(np.float64)[:, None] - sums) ** 2
    if weights is not None:
        errors = errors * np.broadcast_to(weights, values.shape)[:, None]
    best = errors.sum(axis=-1).argmin(axis=1)
    digits = [best // entries ** (count - 1 - index) % entries for index in range(count)]
    return np.stack(digits, axis=1).astype(np.uint16)


def look_up(books: Array, codes: Array) -> Floats:
    """The vectors ``[..., dimension]`` float32 that codes ``[..., m]`` stand for."""
    vectors = books[0].astype(np.float32, copy=False)[codes[..., 0]]
    for index in range(1, len(books)):
        vectors = vectors + books[index].astype(np.float32, copy=False)[codes[..., index]]
    found: Floats = vectors
    return found


def fit_books(
    values: Array,
    shape: tuple[int, int],
    *,
    weights: Array | None = None,
    seed: int = 0,
    rounds: int = 30,
    beam: int = 8,
    threads: int | None = None,
    start: Array | None = None,
) -> Floats:
    """Books that make the error of ``values`` small.

    Args:
        values: ``[count, dimension]``, finite.
        shape: (m, entries).
        weights: as in `search_books`.
        seed: of the vectors that the books start from.
        rounds: of codes, then books.
        beam: as in `search_books`.
        threads: of the kernel; the result does not depend on it.
        start: books to start from, ``[m, entries, dimension]``.

    Returns:
        ``[m, entries, dimension]`` float32. With fewer distinct values than entries some entries
        are never nearest.
    """
    values = np.ascontiguousarray(values, np.float32)
    how: dict[str, Any] = {"weights": weights, "threads": threads}
    rng = np.random.default_rng(seed)
    if start is None:
        books = np.zeros((shape[0], shape[1], values.shape[1]), np.float32)
        left = values.copy()
        for index in range(shape[0]):
            first = _first_book(left, shape[1], rng, how)[None]
            books[index] = _lloyd(left, first, rounds if shape[0] == 1 else 8, rng, 1, how)[0]
            left -= look_up(books[index : index + 1], search_books(left, books[index][None], **how))
        if shape[0] == 1:
            return books
    else:
        books = np.array(start, np.float32)
    return _lloyd(values, books, rounds, rng, beam, how)


def _first_book(
    values: Floats, entries: int, rng: np.random.Generator, how: dict[str, Any]
) -> Floats:
    """Vectors to start from: drawn; small books are the best of several tried on a part."""
    if entries > _SMALL:
        return _drawn(values, entries, rng)
    part = values[:: max(1, len(values) // _PART)]
    weights = how["weights"]
    if weights is not None:
        weights = np.broadcast_to(weights, values.shape)[:: max(1, len(values) // _PART)]
    tried: list[tuple[float, Floats]] = []
    for _ in range(_STARTS):
        book = _lloyd(
            part, _drawn(part, entries, rng)[None], 12, rng, 1, {**how, "weights": weights}
        )
        codes = search_books(part, book, weights=weights, threads=how["threads"])
        errors = np.square(part - look_up(book, codes), dtype=np.float64)
        tried.append((float((errors if weights is None else errors * weights).sum()), book[0]))
    return min(tried, key=lambda pair: pair[0])[1]


def _drawn(values: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Vectors to start from: distinct ones as long as there are enough."""
    return values[np.resize(rng.permutation(len(values))[:count], count)].copy()


def _lloyd(
    values: Floats,
    books: Floats,
    rounds: int,
    rng: np.random.Generator,
    beam: int,
    how: dict[str, Any],
) -> Floats:
    weights = how["weights"]
    for _ in range(rounds):
        codes = search_books(values, books, beam=beam, **how)
        left = values - look_up(books, codes)
        for _ in range(1 if len(books) == 1 else 3):
            for index, book in enumerate(books):
                chosen = codes[:, index]
                shift = _means(left, weights, chosen, len(book))
                left -= shift[chosen]
                book += shift
        _revive(values, left, codes, books, rng)
    return books


def _means(left: Floats, weights: Array | None, chosen: Array, entries: int) -> Floats:
    """The weighted mean of ``left`` over the vectors of each entry; 0 where there is none."""
    means = np.zeros((entries, left.shape[1]), np.float32)
    for axis in range(left.shape[1]):
        mass = None if weights is None else np.broadcast_to(weights, left.shape)[:, axis]
        total = np.bincount(chosen, mass, entries)
        moment = left[:, axis] if mass is None else left[:, axis] * mass
        summed = np.bincount(chosen, moment, entries)
        means[:, axis] = np.divide(summed, total, out=np.zeros(entries), where=total > 0)
    return means


def _revive(
    values: Floats, left: Floats, codes: Codes, books: Floats, rng: np.random.Generator
) -> None:
    """Entries that nothing chose are put where the error is large."""
    for index, book in enumerate(books):
        unused = np.flatnonzero(np.bincount(codes[:, index], minlength=len(book)) == 0)
        if unused.size == 0 or len(values) <= len(book):
            continue
        errors = np.square(left, dtype=np.float64).sum(axis=1)
        if not errors.any():
            continue
        share = errors / errors.sum()
        at = rng.choice(len(values), min(unused.size, int(np.count_nonzero(share))), False, share)
        book[unused[: at.size]] += left[at] + book[codes[at, index]] - book[unused[: at.size]]
