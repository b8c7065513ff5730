"""Which of the quantized places cost the accuracy: searches over sets, whatever a loss is.

Nothing here knows of models: a loss is a function of the set of places that are *quantized* (or
the set that is *restored*), and a place is a name. Each search says how sure it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

__all__ = ["Parting", "Restored", "parting_place", "single_effects", "smallest_restored"]

Loss = Callable[[frozenset[str]], float]
"""The loss with these places restored to float, all others quantized."""

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parting:
    """Where two models part.

    Attributes:
        place: the first place whose replacement takes the loss over the threshold.
        number: how many places come before it.
        before: the loss with all places before it from the candidate, the rest from the reference.
        after: the loss with it as well.
        threshold: what the loss must not exceed.
    """

    place: str
    number: int
    before: float
    after: float
    threshold: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A set of places to restore to float.

    Attributes:
        places: in the order of their own effect, the greatest first.
        loss: with these restored.
        is_minimal: none of them can be left out: always tried.
        is_smallest: no smaller set reaches the loss: every one was tried. When False, only sets
            that a place was left out of were.
        runs: losses measured.
    """

    places: tuple[str, ...]
    loss: float
    is_minimal: bool
    is_smallest: bool
    runs: int


def parting_place(
    order: Sequence[str], loss: Loss, threshold: float, progress: Progress | None = None
) -> Parting | None:
    """Binary search for the first place whose replacement takes the loss over a threshold.

    With places 0 to k−1 from the candidate the loss is l(k). The search keeps l(low) ≤ threshold <
    l(high), so it ends at a place where the loss does cross the threshold: the first one when l
    never falls again, one of several crossings when errors cancel.

    Args:
        order: all places in graph order.
        loss: of the places restored.
        threshold: what the loss must not exceed.
        progress: called with ("parting place", measured, to measure).

    Returns:
        None when the loss of the whole candidate does not exceed the threshold. Number 0 with
        ``before`` over the threshold when the reference itself does.
    """
    everything = frozenset(order)
    steps = math.ceil(math.log2(len(order) or 1)) + 2
    done = itertools.count(1)

    def prefix(count: int) -> float:
        found = loss(everything - set(order[:count]))
        if progress is not None:
            progress("parting place", next(done), steps)
        return found

    low, high = 0, len(order)
    before, after = prefix(0), prefix(len(order))
    if not order or not after > threshold:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        found = prefix(middle)
        if found > threshold:
            high, after = middle, found
        else:
            low, before = middle, found
    return Parting(
        place=order[high - 1], number=high - 1, before=before, after=after, threshold=threshold
    )


def single_effects(
    places: Collection[str], loss: Loss, progress: Progress | None = None
) -> dict[str, float]:
    """How much of the loss goes when one place alone is restored; the greatest effect first.

    Args:
        places: to try, each on its own.
        loss: of the places restored.
        progress: called with ("effect of each place", done, total).
    """
    base = loss(frozenset())
    found = {}
    for number, name in enumerate(places, start=1):
        alone = loss(frozenset([name]))
        found[name] = 0.0 if alone == base else base - alone  # both may be infinite
        if progress is not None:
            progress("effect of each place", number, len(places))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def smallest_restored(
    effects: Mapping[str, float],
    loss: Loss,
    max_loss: float,
    *,
    trials: int = 64,
    progress: Progress | None = None,
) -> Restored | None:
    """A smallest set of places that takes the loss to ``max_loss`` when they are restored.

    First the shortest row of places, by their single effects, that is enough (by bisection); then
    each is left out again, the least effect first, until none can be; last, when there are few
    enough, every smaller set is tried. The last step is what makes it certain: effects add up
    only roughly, and a set of places that help together and not alone is not seen before it.

    Args:
        effects: of `single_effects`, the greatest first.
        loss: of the places restored.
        max_loss: to reach.
        trials: smaller sets to try at most.
        progress: called with ("smallest set", measured, 0).

    Returns:
        None when the loss exceeds ``max_loss`` even with everything restored.
    """
    measured: dict[frozenset[str], float] = {}

    def known(restored: Collection[str]) -> float:
        chosen = frozenset(restored)
        if chosen not in measured:
            measured[chosen] = loss(chosen)
            if progress is not None:
                progress("smallest set", len(measured), 0)
        return measured[chosen]

    order = list(effects)
    if known(order) > max_loss:
        return None
    chosen = _without_spare(_shortest_prefix(order, known, max_loss), known, max_loss)
    better, is_smallest = _smaller(order, len(chosen), known, max_loss, trials)
    chosen = better or chosen
    return Restored(
        places=tuple(chosen),
        loss=known(chosen),
        is_minimal=True,
        is_smallest=is_smallest,
        runs=len(measured),
    )


def _shortest_prefix(
    order: Sequence[str], known: Callable[[Collection[str]], float], max_loss: float
) -> list[str]:
    low, high = -1, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if known(order[:middle]) <= max_loss:
            high = middle
        else:
            low = middle
    return list(order[:high])


def _without_spare(
    chosen: list[str], known: Callable[[Collection[str]], float], max_loss: float
) -> list[str]:
    """Leave out what is not needed, until nothing can be."""
    while True:
        for name in reversed(chosen):
            rest = [other for other in chosen if other != name]
            if known(rest) <= max_loss:
                chosen = rest
                break
        else:
            return chosen


def _smaller(
    order: Sequence[str],
    size: int,
    known: Callable[[Collection[str]], float],
    max_loss: float,
    trials: int,
) -> tuple[list[str] | None, bool]:
    """A set of fewer places that is enough, or None; and whether all smaller ones were tried."""
    left = trials
    for fewer in range(size):
        if math.comb(len(order), fewer) > left:
            return None, False
        for tried in itertools.combinations(order, fewer):
            left -= 1
            if known(tried) <= max_loss:
                return list(tried), True
    return None, True
