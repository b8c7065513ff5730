"""Layers decoded from formats, each solved once and kept: any mix is put together in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.calibration.site_statistics import walk_sites
from onnxq.calibration.token_weights import parse_token_weights
from onnxq.formats import parse_format
from onnxq.graph import load
from onnxq.graph.orientation import from_rows, to_rows
from onnxq.graph.sites import Site, find_sites
from onnxq.graph.weights import replace_weight, weight_tensor
from onnxq.passes.weight_layout import weight_of
from onnxq.solvers.gptq import gptq
from onnxq.solvers.statistics import Statistics

__all__ = ["Library"]

Array = np.ndarray[Any, Any]


class Library:
    """Decoded weights of one model by site and format, in files, as float16.

    By GPTQ on the statistics of the float model (one-shot), so that no layer depends on another.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        samples: Callable[[], Iterable[Mapping[str, Array]]],
    ) -> None:
        """Keep files in ``folder``; statistics are gathered when the first one is missing."""
        self._folder, self._path, self._samples = folder, model, samples
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, mix: Mapping[str, str]) -> ir.Model:
        """The float model with the decoded weights of a mix, by name of the site."""
        model = load(self._path)
        for site in find_sites(model):
            if site.name in mix and site.weight is not None:
                rows = self._decoded(site, mix[site.name])
                _replace(site.weight, from_rows(site, rows).reshape(site.shape))
        return model

    def _decoded(self, site: Site, name: str) -> Array:
        path = self._folder / f"{_plain(site)}.{name}.npy"
        if not path.exists():
            rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
            fmt = parse_format(name)
            decoded = fmt.decode(gptq(rows, fmt, Statistics(hessian=self._hessian(site))))
            np.save(path, decoded.astype(np.float16))
        stored: Array = np.load(path).astype(np.float32)
        return stored

    def _hessian(self, site: Site) -> Array:
        path = self._folder / f"{_plain(site)}.H.npy"
        if not path.exists():
            self._gather()
        found: Array = np.load(path)
        return found

    def _gather(self) -> None:
        """Write the statistics of every MatMul."""
        model = load(self._path)
        sites = [s for s in find_sites(model) if s.kind == "MatMul" and s.refusal is None]

        def write(site: Site, statistics: tuple[Statistics, ...]) -> None:
            hessian = statistics[0].hessian.astype(np.float32)
            np.save(self._folder / f"{_plain(site)}.H.npy", hessian)

        walk_sites(
            model,
            self._samples(),
            sites,
            write,
            flow="one_shot",
            token_weights=parse_token_weights("auto"),
        )


def _replace(weight: ir.Value, new: Array) -> None:
    stored = np.ascontiguousarray(new)
    replace_weight(weight, shape=stored.shape, dtype=ir.DataType.FLOAT, compute=lambda: stored)


def _plain(site: Site) -> str:
    return site.name.strip("/").replace("/", ".")
