"""Problems of sites that are solved together, each made when its turn comes.

The float rows of a weight are four bytes a number: those of gate and up projections of a large
decoder, made all at once, would be the largest thing in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self, overload

from onnxq.passes.site_solving import SiteProblem

__all__ = ["SiteProblems"]


class SiteProblems(Sequence[SiteProblem]):
    """A sequence that holds no problem: whoever reads an item gets a new one."""

    def __init__(self, makers: Sequence[Callable[[], SiteProblem]]) -> None:
        """Take one function for each problem."""
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    @overload
    def __getitem__(self, at: int) -> SiteProblem: ...

    @overload
    def __getitem__(self, at: slice) -> Self: ...

    def __getitem__(self, at: int | slice) -> SiteProblem | Self:
        if isinstance(at, slice):
            return type(self)(self._makers[at])
        return self._makers[at]()
