"""Blocks that an earlier run has learned, by the hash of all that their parameters follow from.

What a block learns follows from the model and the samples, from how it is learned, from the formats
of its own sites, and from those of the blocks before it, whose outputs it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from onnxq.runtime.run_log import note
from onnxq.runtime.work_folder import WorkFolder, hash_of

__all__ = ["FinishedBlocks"]


class FinishedBlocks:
    """The blocks of one walk, visited in order.

    Attributes:
        found: how many were learned before.
    """

    def __init__(
        self,
        work: WorkFolder | None = None,
        origin: object = "",
        formats: Mapping[str, object] | None = None,
    ) -> None:
        """Look nothing up yet.

        Args:
            work: where finished blocks are kept; None keeps nothing.
            origin: plain values that decide what is learned: model, samples, pass, options.
            formats: of sites by name, where they differ from site to site.
        """
        self._work, self._key = work, hash_of(origin)
        self._formats = {name: str(fmt) for name, fmt in (formats or {}).items()}
        self.found = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """How many blocks were not learned again; nothing when none was."""
        return (f"{self.found} blocks were learned in an earlier run",) if self.found else ()

    def enter(self, name: str, sites: Sequence[str]) -> None:
        """Go on to a block, whose sites these are."""
        self._key = hash_of(self._key, name, [(site, self._formats.get(site)) for site in sites])

    def read(self, parameters: Sequence[torch.Tensor]) -> Mapping[str, Any] | None:
        """Fill the parameters of this block; what was kept beside them, or None when not there."""
        piece = None if self._work is None else self._work.read(self._key)
        if piece is None:
            return None
        with torch.no_grad():
            for number, parameter in enumerate(parameters):
                parameter.copy_(torch.from_numpy(piece.arrays[str(number)]))
        self.found += 1
        note("block found", block=piece.about["name"])
        return piece.about

    def keep(self, parameters: Sequence[torch.Tensor], about: Mapping[str, Any]) -> None:
        """Keep what this block has learned.

        Raises:
            WorkFolderError: no space, or no permission.
        """
        if self._work is not None:
            arrays = {str(n): np.asarray(p.detach()) for n, p in enumerate(parameters)}
            self._work.keep(self._key, about, arrays)
