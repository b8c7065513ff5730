"""Check what a pass promised, by running the model before and after it on the same inputs.

Let y be the outputs before and y' after, both with the runtime's graph optimizations off.

- ``SAME_BITS``: y' = y, bit for bit.
- ``SAME_FUNCTION``: max|y' − y| ≤ 10 · δ, where δ is what the runtime's own graph optimizations
  change on the same model and inputs (at least 1e-5 of max|y|): the honest baseline of two correct
  evaluations of one function in float32.
- ``CLOSE``: y' is finite wherever y is, and ‖y' − y‖ < ‖y‖: closer than an output of zeros.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.errors import BrokenPromise
from onnxq.graph.stage import clone_model
from onnxq.passes.base import Promise
from onnxq.runtime import open_session

_FLOOR = 1e-5
_SLACK = 10.0
_BLOCK = 1 << 20
"""Entries in float64 at a time: the logits of one window of a language model are 25 million."""

Outputs = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Kept:
    """A promise that was checked and kept.

    Attributes:
        promise: what was promised.
        max_error: max|y' − y| over all float outputs.
        sqnr_db: 10·log10(‖y‖² / ‖y' − y‖²) over all float outputs; inf when identical.
        samples: number of inputs it was checked on.
    """

    promise: Promise
    max_error: float
    sqnr_db: float
    samples: int


class PromiseKeeper:
    """Holds the outputs of the model so far and compares each new state of it with them."""

    def __init__(self, model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Run ``model`` once on every sample; later checks compare with these outputs."""
        self._samples = samples
        self._noise: float | None = None
        self._before = clone_model(model)
        self._outputs = self._run(model)

    def check(
        self, who: str, promise: Promise, model: ir.Model, *, moved: Collection[str] = ()
    ) -> Kept:
        """Compare ``model`` with the state before, then make it the new state.

        Outputs in ``moved`` are not compared: see `PassReport.moved_outputs`.

        Raises:
            BrokenPromise: naming the pass, the output and by how much.
        """
        after = self._run(model)
        old, new = _without(self._outputs, moved), _without(after, moved)
        if promise is Promise.SAME_BITS:
            _same_bits(who, old, new)
        else:
            _comparable(who, old, new)
        error, db = _distance(old, new)
        if promise is Promise.SAME_FUNCTION:
            bound = self._bound(moved)
            if not error <= bound:
                raise BrokenPromise(
                    f"{who} promised the same function, but an output moved by {error:.3g} where "
                    f"float rounding explains {bound:.3g} (SQNR {db:.1f} dB). Please report the "
                    "model; leave the pass out of the recipe to go on without it."
                )
        if promise is Promise.CLOSE and not db > 0.0:
            raise BrokenPromise(
                f"{who} left outputs no closer to the original than zeros (SQNR {db:.1f} dB): "
                "use more bits, smaller groups, or exclude the sites that do not quantize."
            )
        self._outputs, self._before, self._noise = after, clone_model(model), None
        return Kept(promise, error, db, len(self._samples))

    def _run(self, model: ir.Model, *, optimize: bool = False) -> Outputs:
        with open_session(model, optimize=optimize) as session:
            return [session.run(sample) for sample in self._samples]

    def _bound(self, moved: Collection[str]) -> float:
        before = _without(self._outputs, moved)
        if self._noise is None:
            again = self._run(self._before, optimize=True)
            self._noise, _ = _distance(before, _without(again, moved))
        largest = max((float(np.max(np.abs(a), initial=0.0)) for a in _floats(before)), default=0.0)
        return _SLACK * max(self._noise, _FLOOR * largest)


def _without(outputs: Outputs, names: Collection[str]) -> Outputs:
    """The outputs but those named."""
    return [{key: a for key, a in sample.items() if key not in names} for sample in outputs]


def _floats(outputs: Outputs) -> list[np.ndarray]:
    return [a for sample in outputs for a in sample.values() if a.dtype.kind in "fV"]


def _same_bits(who: str, before: Outputs, after: Outputs) -> None:
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        for name, array in old.items():
            same = array.dtype == new[name].dtype and array.shape == new[name].shape
            if not same or array.tobytes() != new[name].tobytes():
                raise BrokenPromise(
                    f"{who} promised the same bits, but output {name!r} differs on sample {index}. "
                    "Please report the model; leave the pass out of the recipe to go on without it."
                )


def _comparable(who: str, before: Outputs, after: Outputs) -> None:
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        for name, array in old.items():
            if array.dtype != new[name].dtype or array.shape != new[name].shape:
                raise BrokenPromise(
                    f"{who} changed output {name!r} from {array.dtype}{array.shape} to "
                    f"{new[name].dtype}{new[name].shape} on sample {index}."
                )
            if array.dtype.kind in "fV" and any(
                np.any(np.isfinite(a) & ~np.isfinite(b)) for a, b in _blocks(array, new[name])
            ):
                raise BrokenPromise(
                    f"{who} made output {name!r} NaN or infinite on sample {index}, where it was "
                    "finite before: exclude the site that overflows, or use another format."
                )


def _distance(before: Outputs, after: Outputs) -> tuple[float, float]:
    """Largest absolute difference and SQNR in dB over all finite float entries."""
    largest, noise, signal = 0.0, 0.0, 0.0
    for old, new in zip(_floats(before), _floats(after), strict=True):
        for a, b in _blocks(old, new):
            finite = np.isfinite(a)
            if not finite.all():
                a, b = a[finite], b[finite]
            difference = b - a
            largest = max(largest, float(np.max(np.abs(difference), initial=0.0)))
            noise += float(difference @ difference)
            signal += float(a @ a)
    if noise == 0.0:
        return largest, math.inf
    return largest, 10.0 * math.log10(signal / noise) if signal else -math.inf


def _blocks(old: np.ndarray, new: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two arrays of one shape, a block of entries at a time in float64."""
    first, second = old.reshape(-1), new.reshape(-1)
    for start in range(0, first.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        yield first[part].astype(np.float64), second[part].astype(np.float64)
