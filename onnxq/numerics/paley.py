"""Hadamard matrices from the squares of a finite field (Paley 1933).

With χ(a) = 1 where a is a square of GF(q), −1 where it is not and 0 at 0, Q_ab = χ(a − b) has
Q Qᵀ = q I − J. Bordered with a row and a column of ones it gives a Hadamard matrix

* of order q + 1 where q ≡ 3 mod 4 (Q is skew): H = I + S, S = [[0, 1ᵀ], [−1, Q]];
* of order 2 (q + 1) where q ≡ 1 mod 4 (Q is symmetric): H = C ⊗ [[1, 1], [1, −1]] +
  I ⊗ [[1, −1], [−1, −1]], C = [[0, 1ᵀ], [1, Q]].

(R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12, 1933.) The field is built from a
polynomial whose root x has all q − 1 nonzero elements for powers, so that χ(xⁱ) = (−1)ⁱ: no table
is stored, prime powers work as primes do.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

__all__ = ["is_paley_order", "paley"]


def is_paley_order(order: int) -> bool:
    """Whether `paley` makes a Hadamard matrix of that order."""
    return _field_size(order) is not None


def paley(order: int) -> npt.NDArray[np.int8]:
    """The Paley Hadamard matrix ``[order, order]`` int8 with entries ±1.

    The first construction is taken where both apply.

    Raises:
        ValueError: `is_paley_order` is false.
    """
    size = _field_size(order)
    if size is None:
        raise ValueError(f"no Paley matrix has order {order}")
    squares = _differences(size)
    bordered = np.ones((size + 1, size + 1), np.int8)
    bordered[0, 0] = 0
    bordered[1:, 1:] = squares
    unit = np.eye(size + 1, dtype=np.int8)
    if size % 4 == 3:
        bordered[1:, 0] = -1
        return bordered + unit
    plain, turned = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
    return (np.kron(bordered, plain) + np.kron(unit, turned)).astype(np.int8)


def _field_size(order: int) -> int | None:
    """The q of the construction that gives this order."""
    if order % 4:
        return None
    for size, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if size % 4 == remainder and _prime_power(size) is not None:
            return size
    return None


def _prime_power(number: int) -> tuple[int, int] | None:
    """``(p, m)`` with p prime and pᵐ the number, or None."""
    if number < 2:
        return None
    prime = next((d for d in range(2, int(number**0.5) + 1) if number % d == 0), number)
    power = 0
    while number % prime == 0:
        number //= prime
        power += 1
    return (prime, power) if number == 1 else None


def _differences(size: int) -> npt.NDArray[np.int8]:
    """Q_ab = χ(a − b); the element with digits d_i in base p has the number Σ d_i pⁱ."""
    found = _prime_power(size)
    if found is None:
        raise ValueError(f"{size} is no prime power")
    prime, power = found
    character = _character(prime, power)
    numbers = np.arange(size)
    index = np.zeros((size, size), np.int64)
    for place in range(power):
        digit = numbers // prime**place % prime
        index += (digit[:, None] - digit[None, :]) % prime * prime**place
    return character[index]


def _character(prime: int, power: int) -> npt.NDArray[np.int8]:
    """χ of every element, from the powers of an x that generates the field."""
    size = prime**power
    for lowest in itertools.product(range(prime), repeat=power):
        powers = _powers(prime, lowest, size)
        if powers is not None:
            character = np.zeros(size, np.int8)
            character[powers] = 1 - 2 * (np.arange(size - 1) % 2)
            return character
    raise ValueError(f"GF({size}) has a primitive element, and none was found")


def _powers(prime: int, lowest: tuple[int, ...], size: int) -> npt.NDArray[np.int64] | None:
    """The numbers of 1, x, x², ... where xᵐ = Σ lowest_i xⁱ; None unless they are q − 1."""
    power = len(lowest)
    if lowest[0] == 0:  # multiplying by such an x loses elements
        return None
    state = [1] + [0] * (power - 1)
    numbers: list[int] = []
    for step in range(size - 1):
        number = sum(digit * prime**place for place, digit in enumerate(state))
        if number == 0 or (step and number == 1):
            return None
        numbers.append(number)
        carry = state[-1]
        shifted = [0, *state[:-1]]
        state = [(d + carry * low) % prime for d, low in zip(shifted, lowest, strict=True)]
    return np.array(numbers)
