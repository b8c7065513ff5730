"""From what each part of a run takes alone to what the run takes at that moment.

The C library keeps freed pieces of less than 32 MB, up to 64 MB at the end of its heap (glibc's
dynamic M_MMAP_THRESHOLD and M_TRIM_THRESHOLD): as much of what earlier parts took is still there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from onnxq.planning.results import PlannedStage
from onnxq.planning.weight_memory import NOTHING, Need

__all__ = ["Entry", "ledger"]


_HEAP = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One part of a pass.

    Attributes:
        step: the pass, by its key.
        part: which part of it.
        need: bytes beside what the run has kept before.
        seconds: it takes.
        disk: bytes it leaves on disk beside the scratch file.
        spilled: bytes of files that go when it ends.
        scratch: bytes of finished weights that it leaves, in memory while there is room.
    """

    step: str
    part: str = ""
    need: Need = NOTHING
    seconds: float = 0.0
    disk: int = 0
    spilled: int = 0
    scratch: int = 0


def ledger(entries: Iterable[Entry], base: Need, bound: int) -> list[PlannedStage]:
    """Stages in their order; parts of a pass that are alike, wherever they are in it, are one.

    Args:
        entries: in the order of the run.
        base: what is taken all the time.
        bound: bytes of finished weights that each pass keeps in memory.
    """
    stages: dict[tuple[str, str], PlannedStage] = {}
    kept: dict[str, int] = {}
    freed = 0
    for entry in entries:
        before = sum(min(bound, size) for step, size in kept.items() if step != entry.step)
        total = kept.get(entry.step, 0) + entry.scratch
        written = max(0, total - bound) - max(0, kept.get(entry.step, 0) - bound)
        kept[entry.step] = total
        kept_here = before + min(bound, total) + min(freed, _HEAP)
        need = entry.need.beside(base.memory + kept_here, base.resident - base.memory)
        freed = max(freed, entry.need.memory)
        key = entry.step, entry.part
        old = stages.get(key, PlannedStage(step=entry.step, part=entry.part, count=0))
        stages[key] = PlannedStage(
            step=entry.step,
            part=entry.part,
            count=old.count + 1,
            memory=max(old.memory, need.memory),
            resident=max(old.resident, need.resident),
            seconds=old.seconds + entry.seconds,
            disk=old.disk + entry.disk + written,
            spilled=max(old.spilled, entry.spilled),
        )
    return list(stages.values())
