"""What a plan says: stages with their memory, time and disk, and what they add up to."""

from __future__ import annotations

import dataclasses
from typing import Any

from onnxq.runtime.memory_settings import MemorySettings

__all__ = ["Plan", "PlannedStage"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A part of a run: a pass, or a segment of its walk, or sites that it writes alike.

    Attributes:
        step: the pass by its key, or ``load``, ``check``, ``write``.
        part: which part of it; empty when it is one.
        count: how many such parts follow one another; memory is that of the largest, time and
            disk are those of all.
        memory: bytes of this process and its workers that the system cannot take back: the peak.
        resident: the same with the pages of files that are mapped, which it takes back where it
            must: what ``VmHWM`` shows where nothing else wants memory.
        seconds: wall time.
        disk: bytes it leaves on disk: finished weights that are too many for memory, the output.
        spilled: bytes of files that go when a part of it ends: activations, matrices.
    """

    step: str
    part: str = ""
    count: int = 1
    memory: int = 0
    resident: int = 0
    seconds: float = 0.0
    disk: int = 0
    spilled: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "seconds": round(self.seconds, 3)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take.

    Attributes:
        recipe: its name.
        stages: in the order of the run; those that cannot be foreseen are left out.
        unforeseen: sentences: which stages have no numbers, and why.
        assumptions: sentences: what was taken for granted.
        hints: sentences: what lowers the peak.
        settings: what is kept in memory and what on disk.
        workers: how many sites are solved at once.
    """

    recipe: str
    stages: tuple[PlannedStage, ...]
    unforeseen: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    settings: MemorySettings = dataclasses.field(default_factory=MemorySettings)
    workers: int = 1

    @property
    def peak(self) -> PlannedStage:
        """The stage that takes most memory."""
        return max(self.stages, key=lambda stage: (stage.memory, stage.resident))

    @property
    def memory(self) -> int:
        """Most bytes that the system cannot take back."""
        return max(stage.memory for stage in self.stages)

    @property
    def resident(self) -> int:
        """Peak resident memory."""
        return max(stage.resident for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk(self) -> int:
        """Bytes on disk at the most: what is left by all stages, and the largest files that go."""
        return sum(stage.disk for stage in self.stages) + max(s.spilled for s in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "recipe": self.recipe,
            "memory": self.memory,
            "resident": self.resident,
            "seconds": round(self.seconds, 1),
            "disk": self.disk,
            "peak": self.peak.to_dict(),
            "workers": self.workers,
            "settings": dataclasses.asdict(self.settings),
            "unforeseen": list(self.unforeseen),
            "assumptions": list(self.assumptions),
            "hints": list(self.hints),
            "stages": [stage.to_dict() for stage in self.stages],
        }
