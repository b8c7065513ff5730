"""What a run keeps in memory and what on disk: it costs time, and changes no bit of the result."""

from __future__ import annotations

import dataclasses

__all__ = ["MemorySettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Bounds within one pass.

    Attributes:
        scratch: bytes of finished weights in memory before the others go to a temporary file.
        activations: bytes of activations of all samples in memory between two segments of a walk;
            the rest goes to a temporary file. A file of this size stays in the system's cache
            where there is memory, and the heap fragments less without it.
        single: gather the Hessian of one activation at a time, where several would fit the bound
            on matrices; a segment then runs once for each of them.
        hessians_on_disk: Hessians are files that are mapped: the system takes their pages back
            when others need memory.
    """

    scratch: int = 256 << 20
    activations: int = 512 << 20
    single: bool = False
    hessians_on_disk: bool = False
