"""One option for every site, of the least total loss within every budget: exactly.

This is the multiple-choice knapsack problem. For prices λ ≥ 0 of the resources,

    L(λ) = Σ over sites  min over options (loss + λ · use)  −  λ · budget

is a lower bound of the best loss (Lagrange); the best λ is that of the linear relaxation. Sites are
then taken in turn, and of all ways to fill those so far only such are kept as

- can still be completed within every budget,
- no other one beats in the loss and in every resource (Nemhauser and Ullmann 1969), and
- could still be better than the best solution known: their loss, priced use and the priced rest of
  the sites (a bound for every completion, as above) stay below it.

Nothing that a better solution could grow from is dropped, so what is left at the end is the best
one. Resources are whole numbers and sums of them are exact. The bound is so close for models of
many sites that a few thousand ways are alive at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import BudgetError

__all__ = ["Allocation", "allocate", "front", "joined", "smallest"]

Array = npt.NDArray[Any]

_HALVINGS = 200
"""Of the interval of a price: beyond the precision of float64."""
_ROUNDS = 30
"""Of the prices of several resources, one after the other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """A choice of one option for every site.

    Attributes:
        choice: index of the option of each site.
        loss: the sum of the losses.
        uses: of each resource.
        bound: no choice within the budgets has less loss.
    """

    choice: tuple[int, ...]
    loss: float
    uses: tuple[int, ...]
    bound: float


@dataclasses.dataclass(frozen=True)
class _Table:
    """Losses ``[options]`` and uses ``[options, resources]`` of every site."""

    losses: Sequence[Array]
    uses: Sequence[Array]

    def priced(self, prices: Array) -> list[Array]:
        return [loss + use @ prices for loss, use in zip(self.losses, self.uses, strict=True)]

    def relaxed(self, prices: Array) -> tuple[list[int], Array]:
        """The cheapest option of each site at these prices, and what they use together."""
        choice = [int(np.argmin(values)) for values in self.priced(prices)]
        return choice, self.use_of(choice)

    def use_of(self, choice: Sequence[int]) -> Array:
        total: Array = np.sum([use[at] for use, at in zip(self.uses, choice, strict=True)], axis=0)
        return total

    def loss_of(self, choice: Sequence[int]) -> float:
        return float(sum(loss[at] for loss, at in zip(self.losses, choice, strict=True)))


def allocate(
    losses: Sequence[Sequence[float]],
    uses: Sequence[Sequence[Sequence[int]]],
    budgets: Sequence[int],
) -> Allocation:
    """The choice of least loss whose use of every resource is within its budget.

    Args:
        losses: for each site, of each option; finite, 0 or more.
        uses: for each site and option, of each resource; whole numbers, 0 or more.
        budgets: of each resource.

    Raises:
        BudgetError: even the least use of a resource is above its budget, or the budgets cannot be
            met together.
    """
    table = _Table(
        [np.asarray(values, np.float64) for values in losses],
        [np.asarray(values, np.int64).reshape(len(values), -1) for values in uses],
    )
    limit = np.asarray(budgets, np.int64)
    _check(table, limit)
    prices = _prices(table, limit)
    bound = float(sum(values.min() for values in table.priced(prices)) - prices @ limit)
    known = _completed(table, limit, prices)
    best = _search(table, limit, prices, known)
    loss = table.loss_of(best)
    return Allocation(
        choice=tuple(best),
        loss=loss,
        uses=tuple(int(use) for use in table.use_of(best)),
        bound=min(max(bound, 0.0), loss),
    )


def smallest(uses: Sequence[Sequence[Sequence[int]]], resource: int = 0) -> int:
    """The least use of a resource that any choice has."""
    return sum(min(option[resource] for option in site) for site in uses)


def _check(table: _Table, limit: Array) -> None:
    for resource, budget in enumerate(limit):
        least = int(sum(use[:, resource].min() for use in table.uses))
        if least > budget:
            raise BudgetError(
                f"The options that use least of resource {resource} use {least} together, and its "
                f"budget is {budget}: give more, or allow smaller options."
            )


def _prices(table: _Table, limit: Array) -> Array:
    """Prices of a high bound: for one resource the best ones, else by turns until none moves."""
    prices = np.zeros(len(limit))
    for _ in range(_ROUNDS if len(limit) > 1 else 1):
        before = prices.copy()
        for resource in range(len(limit)):
            prices[resource] = _price(table, limit, prices, resource)
        if np.allclose(before, prices, rtol=1e-9, atol=0):
            break
    return prices


def _price(table: _Table, limit: Array, prices: Array, resource: int) -> float:
    """The least price of one resource at which its budget is kept, the others given."""

    def is_kept(price: float) -> bool:
        trial = prices.copy()
        trial[resource] = price
        return bool(table.relaxed(trial)[1][resource] <= limit[resource])

    if is_kept(0.0):
        return 0.0
    high = 1e-12
    while not is_kept(high) and high < 1e30:
        high *= 4
    low = 0.0 if high == 1e-12 else high / 4
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if is_kept(middle) else (middle, high)
    return high


def _completed(table: _Table, limit: Array, prices: Array) -> list[int] | None:
    """A good choice within the budgets: that of the prices, then the best single improvements."""
    for factor in (1.0, 1 + 1e-9, 1.01, 1.1, 2.0, 10.0, 1e3, 1e9):
        choice, use = table.relaxed(prices * factor)
        if (use <= limit).all():
            break
    else:
        return None
    while True:
        gains = [
            (float(loss[at] - loss[other]), site, other)
            for site, (loss, own, at) in enumerate(
                zip(table.losses, table.uses, choice, strict=True)
            )
            for other in np.flatnonzero(loss < loss[at])
            if (use - own[at] + own[other] <= limit).all()
        ]
        if not gains:
            return choice
        _, site, other = max(gains)
        use = use - table.uses[site][choice[site]] + table.uses[site][other]
        choice[site] = int(other)


def _search(table: _Table, limit: Array, prices: Array, known: list[int] | None) -> list[int]:
    """The best choice; see the module docstring."""
    priced = table.priced(prices)
    order = sorted(range(len(priced)), key=lambda site: -float(np.ptp(priced[site])))
    rest_priced = _behind([priced[site].min() for site in order])
    rest_least = _behind([table.uses[site].min(axis=0) for site in order])
    best = np.inf if known is None else table.loss_of(known)
    slack = 0.0 if known is None else 1e-12 * (best + float(prices @ limit))
    losses, used = np.zeros(1), np.zeros((1, len(limit)), np.int64)
    trail: list[tuple[Array, Array]] = []
    for place, site in enumerate(order):
        count = len(table.losses[site])
        grown = (losses[:, None] + table.losses[site]).reshape(-1)
        use = (used[:, None, :] + table.uses[site]).reshape(-1, len(limit))
        parents, options = np.divmod(np.arange(len(grown)), count)
        bound = grown + (use - limit) @ prices + rest_priced[place + 1]
        alive = (use + rest_least[place + 1] <= limit).all(axis=1) & (bound <= best + slack)
        index = np.flatnonzero(alive)
        index = index[_undominated(grown[index], use[index])]
        losses, used = grown[index], use[index]
        trail.append((parents[index], options[index]))
        if not len(index):
            break
    if not len(losses):
        if known is None:
            raise BudgetError(
                f"Each budget of {', '.join(map(str, limit))} can be met, but not all at once: "
                "give more of one of them, or allow smaller options."
            )
        return known
    return _traced(order, trail, int(np.argmin(losses)))


def _behind(values: Sequence[Any]) -> list[Any]:
    """Sums of what is at each place and behind it; 0 at the end."""
    sums = [values[0] * 0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def _undominated(losses: Array, used: Array) -> Array:
    """Indices of those that no other one matches or beats in everything."""
    order = np.lexsort((losses, *used.T[::-1]))
    if used.shape[1] == 1:
        sorted_losses = losses[order]
        before = np.minimum.accumulate(np.concatenate([[np.inf], sorted_losses[:-1]]))
        return order[sorted_losses < before]
    kept: list[int] = []
    points = np.column_stack([used, losses])[order]
    front: Array = np.empty((0, points.shape[1]))
    for at, point in zip(order, points, strict=True):
        if not (front <= point).all(axis=1).any():
            front = np.vstack([front, point])
            kept.append(int(at))
    return np.asarray(kept, np.int64)


def _traced(order: Sequence[int], trail: Sequence[tuple[Array, Array]], end: int) -> list[int]:
    choice = [0] * len(order)
    for site, (parents, options) in zip(reversed(order), reversed(trail), strict=True):
        choice[site] = int(options[end])
        end = int(parents[end])
    return choice


def front(
    losses: Sequence[Sequence[float]], uses: Sequence[Sequence[int]]
) -> list[tuple[int, float]]:
    """Points (use, loss) of the convex front of one resource, the smallest use first.

    These are the solutions that some price makes best (the corners of the Lagrangian bound); the
    least loss for a budget in between lies on or above the line between its neighbours.
    """
    steps: list[tuple[float, int, float]] = []
    use, loss = 0, 0.0
    for site_losses, site_uses in zip(losses, uses, strict=True):
        corners = _hull(np.asarray(site_losses, np.float64), np.asarray(site_uses, np.int64))
        use, loss = use + corners[0][0], loss + corners[0][1]
        for (u, a), (v, b) in itertools.pairwise(corners):
            steps.append(((a - b) / (v - u), v - u, a - b))
    points = [(int(use), loss)]
    for _, more, less in sorted(steps, key=lambda step: -step[0]):
        use, loss = use + more, max(0.0, loss - less)
        points.append((int(use), loss))
    return points


def _hull(losses: Array, uses: Array) -> list[tuple[int, float]]:
    """The lower convex hull of the options of a site, the smallest use first."""
    corners: list[tuple[int, float]] = []
    for at in np.lexsort((losses, uses)):
        use, loss = int(uses[at]), float(losses[at])
        if corners and loss >= corners[-1][1]:
            continue
        while len(corners) > 1:
            (u, a), (v, b) = corners[-2:]
            if (a - b) * (use - v) > (b - loss) * (v - u):
                break
            corners.pop()
        corners.append((use, loss))
    return corners


def joined(
    names: Sequence[Sequence[str]], groups: Sequence[Sequence[int]]
) -> list[list[Mapping[int, int]]]:
    """The options of sites that must share a format, as one.

    Args:
        names: of the options of every site.
        groups: indices of sites that share one; a site in none is a group of its own.

    Returns:
        For each group, in the order of their first sites: for each option that all members have,
        the index of it in each member, by site.
    """
    of_site = {site: tuple(group) for group in groups for site in group}
    found: dict[tuple[int, ...], list[Mapping[int, int]]] = {}
    for site in range(len(names)):
        members = of_site.get(site, (site,))
        shared = [name for name in names[members[0]] if all(name in names[m] for m in members)]
        found[members] = [{m: names[m].index(name) for m in members} for name in shared]
    return list(found.values())
