"""Staying below a bound on memory: what goes to disk, and how many sites are solved at once."""

from __future__ import annotations

from collections.abc import Iterator

from onnxq.errors import UsageError
from onnxq.planning.advice import said
from onnxq.planning.outline import Outline
from onnxq.planning.results import Plan
from onnxq.runtime.memory_settings import MemorySettings

__all__ = ["plan_within"]

MARGIN = 1.1
"""A plan must leave a tenth of the bound for what it does not see."""

_STEPS = (
    MemorySettings(),
    MemorySettings(scratch=64 << 20, activations=64 << 20),
    MemorySettings(scratch=0, activations=0, single=True),
    MemorySettings(scratch=0, activations=0, single=True, hessians_on_disk=True),
)
"""From what costs no time to what costs most."""


def plan_within(outline: Outline, bound: int, workers: int) -> Plan:
    """The first plan that fits: as many workers as asked, with ever more on disk; then fewer.

    Args:
        outline: of the run.
        bound: bytes that the system cannot take back, of this process and its workers.
        workers: how many are asked for.

    Raises:
        UsageError: something in the run cannot be foreseen, or nothing fits; the message says what
            would.
    """
    if outline.unforeseen:
        raise UsageError(
            f"--memory cannot be kept: {outline.unforeseen[0]} Run without --memory, or leave the "
            "pass out of the recipe."
        )
    tried = []
    for plan in _tries(outline, workers):
        if plan.memory * MARGIN <= bound:
            return plan
        tried.append(plan)
    least = min(tried, key=lambda plan: plan.memory)
    peak = least.peak
    part = f" ({peak.part})" if peak.part else ""
    hints = [hint for hint in least.hints if "--memory" not in hint]
    raise UsageError(
        " ".join(
            [
                f"This run does not fit {said(bound)}: {peak.step}{part} takes {said(peak.memory)} "
                "even with everything on disk that can be, and one worker. Give --memory "
                f"{_rounded(least.memory * MARGIN)}.",
                *hints,
            ]
        )
    )


def _tries(outline: Outline, workers: int) -> Iterator[Plan]:
    while True:
        for settings in _STEPS:
            yield outline.plan(settings, workers)
        if workers == 1:
            return
        workers //= 2


def _rounded(size: float) -> str:
    """The next size above that one writes without many digits."""
    step = 10_000_000 if size < 1e9 else 100_000_000
    count = -(-int(size) // step)
    return f"{count * step / 1e6:.0f}MB" if size < 1e9 else f"{count * step / 1e9:.1f}GB"
