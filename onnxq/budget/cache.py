"""Losses of options, kept by the content they follow from: a second budget costs seconds."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.calibration.samples import samples_hash
from onnxq.graph.content_hash import content_hash
from onnxq.runtime.cache import cache_folder, write_whole
from onnxq.runtime.work_folder import hash_of

__all__ = ["LossCache", "fingerprint"]

_VERSION = 2
"""Of the code that measures: raised when losses would come out otherwise."""

Losses = dict[str, dict[str, float]]


def fingerprint(
    model: ir.Model, samples: Iterable[Mapping[str, np.ndarray]] | None, about: Mapping[str, Any]
) -> str:
    """A hash of a model's graph and weights, of samples, and of anything else.

    Args:
        model: its weights are read one at a time.
        samples: inputs by name; None for none.
        about: plain values: the measure, the options of the solver, ...
    """
    version = importlib.metadata.version("onnxq")
    return hash_of(_VERSION, version, content_hash(model), samples_hash(samples), about)[:32]


class LossCache:
    """Losses by site and format under one fingerprint, a file in the user's cache."""

    def __init__(self, key: str, folder: Path | None = None) -> None:
        """Open what is there; nothing is written before `keep`."""
        self.path = (folder or cache_folder() / "budget") / f"losses-{key}.json"

    def known(self) -> Losses:
        """What was kept; empty when nothing was."""
        if not self.path.exists():
            return {}
        found: Losses = json.loads(self.path.read_text())
        return found

    def keep(self, losses: Mapping[str, Mapping[str, float]]) -> None:
        """Add losses; a killed run leaves no half of them."""
        merged = self.known()
        for site, options in losses.items():
            merged.setdefault(site, {}).update(options)
        write_whole(self.path, json.dumps(merged))
