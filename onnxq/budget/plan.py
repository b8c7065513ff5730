"""From menus and a budget to a mix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from onnxq.budget.allocate import Allocation, allocate, joined, smallest
from onnxq.budget.menu import Option, SiteMenu
from onnxq.budget.request import Request
from onnxq.errors import BudgetError

__all__ = [
    "Problem",
    "Solution",
    "fastest_mix",
    "option_of",
    "retimed",
    "smallest_mix",
    "solution_of",
    "solve",
]

_GRAIN = 10**9
"""Parts of the allowed loss that a loss is counted in, rounded up."""
_APART, _FACTOR = 0.1, 4.0
"""How much faster than float the operators of a mix must be to tell how fast they all are, and the
most that this may change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What there is to choose from.

    Attributes:
        menus: of every site, in the order of the graph, with losses.
        groups: names of sites that must share a format.
        shared: names of sites whose weight is that of a site before them: their bytes are counted
            there.
        fixed_bytes: of the files beside the weights of these sites.
        sure_bytes: of those, what is no guess: other weights.
        fixed_ms: of a run beside these sites; None when not measured.
        float_ms: of a run of the float model.
        loss_name: of the loss and its unit.
        measure: how sensitivity was found.
    """

    menus: tuple[SiteMenu, ...]
    groups: tuple[tuple[str, ...], ...] = ()
    shared: frozenset[str] = frozenset()
    fixed_bytes: int = 0
    sure_bytes: int = 0
    fixed_ms: float | None = None
    float_ms: float | None = None
    loss_name: str = ""
    measure: str = ""

    def nbytes(self, menu: SiteMenu, option: Option) -> int:
        """Bytes that an option adds to the files."""
        return 0 if menu.site in self.shared else option.nbytes

    @property
    def counted_weights(self) -> int:
        """Weights of the sites that count in a budget of bits."""
        return sum(m.weights for m in self.menus if m.counted and m.site not in self.shared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """A mix.

    Attributes:
        formats: by name of the site.
        nbytes: of the weights of these sites.
        counted_bytes: of those that count in a budget of bits.
        loss: predicted.
        bound: no mix within the budget has less predicted loss; of ``max_loss``: less bytes.
        latency_ms: predicted; None when not measured.
    """

    formats: Mapping[str, str]
    nbytes: int
    counted_bytes: int
    loss: float
    bound: float
    latency_ms: float | None


def solve(problem: Problem, request: Request, *, allowed_loss: float | None = None) -> Solution:
    """The best mix within a budget.

    Args:
        problem: what there is to choose from.
        request: what was asked; its sizes are as this problem predicts them.
        allowed_loss: with ``max_loss``: the largest sum of losses.

    Raises:
        BudgetError: the budget is below what is possible; the sentence says the least.
    """
    shared = _joined(problem)
    _check_shared(problem, shared)
    losses = [[_loss(problem, option) for option in options] for options in shared]
    sizes = [[_use(problem, option, counted=False) for option in options] for options in shared]
    if allowed_loss is not None:
        found = _smallest_under(losses, sizes, allowed_loss)
    else:
        uses, limits = _resources(problem, request, shared)
        found = allocate(losses, uses, limits)
    formats = {
        problem.menus[site].site: problem.menus[site].formats[at]
        for options, choice in zip(shared, found.choice, strict=True)
        for site, at in options[choice].items()
    }
    return solution_of(problem, formats, found.bound)


def smallest_mix(problem: Problem) -> int:
    """Bytes of the files in the smallest mix."""
    sizes = [
        [[_use(problem, option, counted=False)] for option in options]
        for options in _joined(problem)
    ]
    return smallest(sizes) + problem.fixed_bytes


def fastest_mix(problem: Problem) -> float:
    """Milliseconds of a run of the fastest mix, rounded up as those of a budget are."""
    times = [
        [[_nanoseconds(problem, option)] for option in options] for options in _joined(problem)
    ]
    return (smallest(times) + 1) / 1e6 + (problem.fixed_ms or 0.0)


def retimed(problem: Problem, solution: Solution, mix_ms: float, float_ms: float) -> Problem:
    """The problem as a run of a mix and one of the float model, measured in turn, correct it.

    An operator alone is faster than among others, and less so on a busy machine: the two times give
    the rest of a run and one factor for all operators.
    """
    fixed = problem.fixed_ms or 0.0
    mixed = (solution.latency_ms or 0.0) - fixed
    exact = (problem.float_ms or 0.0) - fixed
    factor = 1.0
    if abs(exact - mixed) > _APART * exact:
        factor = min(max((float_ms - mix_ms) / (exact - mixed), 1 / _FACTOR), _FACTOR)
    menus = tuple(
        dataclasses.replace(
            menu,
            options=tuple(
                dataclasses.replace(option, latency_us=factor * (option.latency_us or 0.0))
                for option in menu.options
            ),
        )
        for menu in problem.menus
    )
    fixed = max(0.0, mix_ms - factor * mixed)
    return dataclasses.replace(
        problem, menus=menus, fixed_ms=fixed, float_ms=fixed + factor * exact
    )


def _joined(problem: Problem) -> list[list[Mapping[int, int]]]:
    """Options of sites that must share a format as one; see `onnxq.budget.allocate.joined`."""
    return joined(
        [menu.formats for menu in problem.menus],
        [[_place(problem, name) for name in group] for group in problem.groups],
    )


def _place(problem: Problem, name: str) -> int:
    return next(at for at, menu in enumerate(problem.menus) if menu.site == name)


def _check_shared(problem: Problem, shared: Sequence[Sequence[Mapping[int, int]]]) -> None:
    if all(shared):
        return
    for group in problem.groups:
        menus = [problem.menus[_place(problem, name)] for name in group]
        if not set.intersection(*(set(menu.formats) for menu in menus)):
            raise BudgetError(
                f"The sites {', '.join(group[:4])} must share a format, and their menus have none "
                "in common: allow one for all of them, or drop them from 'together' of the policy."
            )


def _loss(problem: Problem, option: Mapping[int, int]) -> float:
    return sum(problem.menus[site].options[at].loss for site, at in option.items())


def _use(problem: Problem, option: Mapping[int, int], *, counted: bool) -> int:
    menus = problem.menus
    return sum(
        problem.nbytes(menus[site], menus[site].options[at])
        for site, at in option.items()
        if menus[site].counted or not counted
    )


def _nanoseconds(problem: Problem, option: Mapping[int, int]) -> int:
    return sum(
        math.ceil(1e3 * (problem.menus[site].options[at].latency_us or 0.0))
        for site, at in option.items()
    )


def _resources(
    problem: Problem, request: Request, shared: Sequence[Sequence[Mapping[int, int]]]
) -> tuple[list[list[list[int]]], list[int]]:
    """Uses of every option of every group, and the budgets, for what was asked."""
    columns: list[list[list[int]]] = []
    limits: list[int] = []
    if request.bits is not None:
        columns.append([[_use(problem, o, counted=True) for o in options] for options in shared])
        limits.append(math.floor(request.bits * problem.counted_weights / 8))
        _check(columns[-1], limits[-1], 8 / max(problem.counted_weights, 1), 0, "bits per weight")
    if request.size is not None:
        columns.append([[_use(problem, o, counted=False) for o in options] for options in shared])
        limits.append(request.size - problem.fixed_bytes)
        _check(columns[-1], limits[-1], 1, problem.fixed_bytes, "bytes")
    if request.latency_ms is not None:
        columns.append([[_nanoseconds(problem, o) for o in options] for options in shared])
        rest = problem.fixed_ms or 0.0
        limits.append(math.floor(1e6 * (request.latency_ms - rest)))
        _check(columns[-1], limits[-1], 1e-6, rest, "ms")
    uses = [
        [[column[group][at] for column in columns] for at in range(len(options))]
        for group, options in enumerate(shared)
    ]
    return uses, limits


def _check(uses: list[list[int]], limit: int, scale: float, fixed: float, unit: str) -> None:
    least = smallest([[[use] for use in options] for options in uses])
    if least <= limit:
        return
    behind = f", of which {fixed:.6g} are not of these weights" if fixed else ""
    raise BudgetError(
        f"The budget is {limit * scale + fixed:.6g} {unit}, and the smallest mix of this menu "
        f"takes {least * scale + fixed:.6g}{behind}: give more, or allow smaller formats (--menu, "
        "--policy)."
    )


def _smallest_under(
    losses: list[list[float]], sizes: list[list[int]], allowed: float
) -> Allocation:
    """The fewest bytes whose losses stay under a sum; losses are counted in whole grains."""
    grains = [[[math.ceil(loss / allowed * _GRAIN)] for loss in options] for options in losses]
    least = smallest(grains)
    if least > _GRAIN:
        raise BudgetError(
            f"The loss allowed is {allowed:.4g}, and the best mix of this menu is predicted to "
            f"lose {least / _GRAIN * allowed:.4g}: allow more, or larger formats (--menu with "
            "float)."
        )
    return allocate([[float(size) for size in options] for options in sizes], grains, [_GRAIN])


def solution_of(problem: Problem, formats: Mapping[str, str], bound: float) -> Solution:
    """A mix given by name of the site, with what it takes and is predicted to lose."""
    chosen = [(menu, option_of(menu, formats[menu.site])) for menu in problem.menus]
    times = [option.latency_us for _, option in chosen]
    latency = None
    if problem.fixed_ms is not None:
        latency = problem.fixed_ms + sum(time or 0.0 for time in times) / 1e3
    return Solution(
        formats=dict(formats),
        nbytes=sum(problem.nbytes(menu, option) for menu, option in chosen),
        counted_bytes=sum(problem.nbytes(m, option) for m, option in chosen if m.counted),
        loss=sum(option.loss for _, option in chosen),
        bound=bound,
        latency_ms=latency,
    )


def option_of(menu: SiteMenu, fmt: str) -> Option:
    """The option of this format."""
    return next(option for option in menu.options if option.format == fmt)
