"""Which activations of a segment are gathered together, and how many rows are multiplied at once.

The rows of one product decide how a sum is rounded, so they must not depend on how much memory a
run may take: batches are bounded by constants, and a run that has less memory gathers the
activations of a batch one after another, with the rows of the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from onnxq.calibration.hessian import BLOCK_ROWS
from onnxq.calibration.readings import Reading
from onnxq.calibration.segments import Visit
from onnxq.graph.sites import Site

__all__ = ["Batch", "Key", "batches_of", "columns_of", "key_of"]

Key = tuple[str, Reading]
"""An activation by its name, and how a site reads it."""

_MATRIX_BYTES = 512 << 20
"""Matrices gathered together, unless one alone is larger."""
_BLOCK_BYTES = 128 << 20
"""Rows waiting to be multiplied, of all activations gathered at once."""
_LEAST_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Batch:
    """Activations gathered together.

    Attributes:
        visits: a site that reads each of them, by key.
        rows: of each that are multiplied at once.
        fitting: rows of each that may wait.
    """

    visits: Mapping[Key, Visit]
    rows: int
    fitting: int


def batches_of(visits: Mapping[Key, Visit], *, drift: bool, compares: bool) -> Iterator[Batch]:
    """Keys whose matrices fit the bound together; at least one at a time.

    Args:
        visits: a site for each key, in execution order.
        drift: whether the drift is gathered as well as the Hessian.
        compares: whether rows of two networks wait to be multiplied.
    """
    batch: dict[Key, Visit] = {}
    size = 0
    for key, visit in visits.items():
        cost = 8 * (2 if drift else 1) * visit.reading.groups * columns_of(visit.copy) ** 2
        if batch and size + cost > _MATRIX_BYTES:
            yield _batch(batch, compares)
            batch, size = {}, 0
        batch[key] = visit
        size += cost
    if batch:
        yield _batch(batch, compares)


def _batch(visits: Mapping[Key, Visit], compares: bool) -> Batch:
    width = sum(visit.reading.groups * columns_of(visit.copy) for visit in visits.values())
    fitting = _BLOCK_BYTES // (4 * width * (2 if compares else 1))
    return Batch(visits, min(BLOCK_ROWS, max(_LEAST_ROWS, fitting)), fitting)


def key_of(visit: Visit) -> Key:
    """What a site reads, and how."""
    return visit.input.name or "", visit.reading


def columns_of(site: Site) -> int:
    """Columns of the canonical weight."""
    if site.kind in ("Conv", "ConvTranspose"):
        return int(np.prod(site.shape)) // site.shape[site.out_axis]
    return site.shape[site.in_axis]
