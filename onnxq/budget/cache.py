"""Losses of options, kept by the content they follow from: a second budget costs seconds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph.walk import walk_nodes
from onnxq.graph.weights import read_weight, walk_weights
from onnxq.runtime.cache import cache_folder

__all__ = ["LossCache", "fingerprint"]

_VERSION = 1
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
    digest = hashlib.sha256(f"{_VERSION} {importlib.metadata.version('onnxq')}".encode())
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for path, node in walk_nodes(model):
        names = [None if value is None else value.name for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        plain = sorted(
            (name, str(a.value))
            for name, a in node.attributes.items()
            if a.type not in (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH)
        )
        digest.update(repr((path, node.domain, node.op_type, names, outputs, plain)).encode())
    for path, value in walk_weights(model):
        array = np.ascontiguousarray(read_weight(value))
        digest.update(repr((path, value.name, array.shape, array.dtype.name)).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    for sample in samples or ():
        for name in sorted(sample):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(sample[name]).tobytes())
    return digest.hexdigest()[:32]


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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(merged))
        unfinished.replace(self.path)
