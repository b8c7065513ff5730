"""The state of a walk over segments: live activations of all samples, and weights to put in."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxq.calibration.activations import ActivationStore, Held
from onnxq.calibration.batches import Batch, Key, batches_of, columns_of, key_of
from onnxq.calibration.hessian import Moments
from onnxq.calibration.row_weights import RowWeights
from onnxq.calibration.sample_pool import SamplePool
from onnxq.calibration.segment_model import NewWeight, open_segment
from onnxq.calibration.segments import Segment, Visit
from onnxq.calibration.wiring import Wiring, values_read
from onnxq.errors import CalibrationError
from onnxq.graph.sites import Site
from onnxq.numerics.threads import blas_threads
from onnxq.runtime import Session
from onnxq.runtime.memory_settings import MemorySettings
from onnxq.solvers.statistics import Statistics

__all__ = ["Flow", "KnownSites", "SegmentWalk", "SolveSites"]

Flow = Literal["sequential", "one_shot", "asymmetric"]
Arrays = dict[str, np.ndarray]
SolveSites = Callable[
    [Sequence[tuple[Site, tuple[Statistics, ...]]]], Sequence[np.ndarray | NewWeight | None]
]
"""Solves sites whose statistics are there at once; without statistics, a site that is known."""
KnownSites = Callable[[Sequence[Sequence[Site]]], Collection[Site]]
"""Of the sites, segment by segment, those whose weight is known without statistics."""


@dataclasses.dataclass(kw_only=True, eq=False)
class SegmentWalk:
    """One walk; see `onnxq.calibration.site_statistics.walk_sites` for the fields."""

    model: ir.Model
    store: ActivationStore
    solve: SolveSites
    known: KnownSites
    flow: Flow
    rows: RowWeights
    wants_drift: bool
    wants_mean: bool
    memory: MemorySettings
    pool: SamplePool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Begin without samples."""
        self._now: list[dict[str, Held]] = []
        self._float: list[dict[str, Held]] = []
        """Values of the float network, where they differ from those of the quantized one."""
        self._drifted: set[str] = set()
        self._replaced: dict[Site, NewWeight] = {}
        self._kept: dict[Key, tuple[Statistics, ...]] = {}
        self._readers: Counter[Key] = Counter()
        self._open: Counter[Key] = Counter()
        """Sites that are still to be solved, by what they read."""
        self._known: Collection[Site] = ()
        self._seen: set[Key] = set()

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self._now)

    @property
    def _compares(self) -> bool:
        """Whether a statistic needs the activations of both networks."""
        return self.wants_drift or (self.wants_mean and self.flow == "asymmetric")

    def load(self, samples: Iterable[tuple[Arrays, np.ndarray | None]], wiring: Wiring) -> None:
        """Keep what the network reads of each sample."""
        used = {value.name for value in wiring.alive(0)}
        for inputs, given in samples:
            self.rows.add(inputs, given)
            held = {n: self.store.hold(array) for n, array in inputs.items() if n in used}
            self._now.append(held)
            self._float.append({})
        self.rows.weigh([None] * self.count)

    def run(
        self,
        segments: Sequence[Segment],
        pool: SamplePool,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        """Visit every site of every segment; nothing is run once all that is left is known."""
        self.pool = pool
        visits = [visit for segment in segments for visit in segment.visits]
        self._known = self.known([[visit.site for visit in one.visits] for one in segments])
        self._readers.update(key_of(visit) for visit in visits)
        self._open.update(key_of(visit) for visit in visits if visit.site not in self._known)
        for number, segment in enumerate(segments):
            if progress is not None:
                progress(segment.label, number, len(segments))
            if self._open.total():
                self._attend(segment)
            self._solve(segment)
            if number + 1 < len(segments) and self._open.total():
                self._advance(segment)
        if progress is not None and segments:
            progress(segments[-1].label, len(segments), len(segments))

    def _attend(self, segment: Segment) -> None:
        """Token weights by the attention of the layer that begins in this segment, if one does."""
        received = self.rows.layer(segment.nodes)
        if received is None:
            return
        with received.open(self._boundary(segment), self.pool.inner) as session:

            def attention(index: int) -> np.ndarray | None:
                result = session.run(self._feeds(index, session, twin=False))
                return received.sum(result, self.rows.masks[index])

            self.rows.weigh(list(self.pool.each(attention)))

    def _solve(self, segment: Segment) -> None:
        """Gather what the sites of the segment ask for, as much at once as fits, and solve them."""
        waiting = list(segment.visits)
        keys: dict[Key, Visit] = {}
        for visit in waiting:
            if key_of(visit) not in self._seen:
                keys.setdefault(key_of(visit), visit)
        self._seen.update(keys)
        # batches are those of a walk in which nothing is known: how rows are summed, to the last
        # bit, depends on what is gathered together
        for batch in batches_of(keys, drift=self.wants_drift, compares=self._compares):
            wanted = any(self._open[key] for key in batch.visits)
            alone = [(key,) for key in batch.visits]
            for part in alone if self.memory.single else [tuple(batch.visits)]:
                if wanted:
                    self._gather(segment, batch, part)
                self._visit_ready(waiting)
        self._visit_ready(waiting)

    def _visit_ready(self, waiting: list[Visit]) -> None:
        """Solve the first of the sites, as far as their statistics are there; they wait no more."""
        ready = []
        while waiting and (waiting[0].site in self._known or key_of(waiting[0]) in self._kept):
            ready.append(waiting.pop(0))
        self._visit(ready)

    def _gather(self, segment: Segment, batch: Batch, keys: Sequence[Key]) -> None:
        """Sum the moments of some activations of a batch over all samples."""
        at_once = self.pool.threads
        has_room = at_once > 1 and at_once * batch.rows <= batch.fitting
        moments = {
            key: Moments(
                *key,
                drift=self.wants_drift,
                mean=self.wants_mean,
                float_mean=self.wants_mean and self.flow == "asymmetric",
                rows=batch.rows,
                pool=self.pool.pool,
                ahead=at_once if has_room else 0,
                on_disk=self.memory.hessians_on_disk,
            )
            for key in keys
        }
        alive = {value.name for value in segment.alive}
        inputs = {visit.input.name or "": visit.input for visit in batch.visits.values()}
        inner = [value for name, value in inputs.items() if name not in alive]
        names = list(dict.fromkeys(name for name, _ in keys if name not in alive))
        with blas_threads(1 if has_room else self.pool.threads):
            for index, (values, twins) in enumerate(self._observed(segment, inner, names)):
                for (name, _), moment in moments.items():
                    if name in alive:
                        x = self._now[index][name].read()
                        held = self._float[index].get(name) if self._compares else None
                        twin = None if held is None else held.read()
                    else:
                        x, twin = values[name], twins.get(name)
                    moment.add(index, x, twin, self.rows.of(index))
            for key, moment in moments.items():
                self._kept[key] = moment.result()

    def _observed(
        self, segment: Segment, inner: Sequence[ir.Value], names: Sequence[str]
    ) -> Iterator[tuple[Arrays, Arrays]]:
        """For each sample: ``names``, of the ``inner`` values of the segment, and their twins.

        The segment runs on its float weights, and is fused alike whatever is asked for.
        """
        if not names:
            yield from (({}, {}) for _ in range(self.count))
            return
        moved = self._spread(segment, ()) if self._compares else set()
        twins = [name for name in names if name in moved]
        boundary = self._boundary(segment)
        with open_segment(self.model, boundary, inner, {}, self.pool.inner) as session:

            def observed(index: int) -> tuple[Arrays, Arrays]:
                values = session.run(self._feeds(index, session, twin=False), names)
                other = session.run(self._feeds(index, session, twin=True), twins) if twins else {}
                return values, other

            yield from self.pool.each(observed)

    def _visit(self, visits: Sequence[Visit]) -> None:
        """Solve these sites."""
        if not visits:
            return
        known = [visit.site in self._known for visit in visits]
        jobs = [
            (visit.site, () if done else self._kept[key_of(visit)])
            for visit, done in zip(visits, known, strict=True)
        ]
        solved = self.solve(jobs)
        for visit, done, new in zip(visits, known, solved, strict=True):
            key = key_of(visit)
            self._readers[key] -= 1
            self._open[key] -= not done
            if not self._readers[key]:
                self._kept.pop(key, None)
            if new is not None and self.flow != "one_shot":
                self._replaced[visit.copy] = _checked(visit, new)

    def _advance(self, segment: Segment) -> None:
        """Run the segment on its new weights; what lives on takes the place of what it read."""
        drifted = self._spread(segment, tuple(self._replaced))
        twins = [v for v in segment.gives if v.name in drifted and self.flow == "asymmetric"]
        boundary = self._boundary(segment)
        with contextlib.ExitStack() as opened:
            sessions = [
                opened.enter_context(
                    open_segment(self.model, boundary, values, weights, self.pool.inner)
                )
                if values
                else None
                for values, weights in ((segment.gives, self._replaced), (twins, {}))
            ]
            del boundary

            def both(index: int) -> list[Arrays]:
                return [
                    {} if session is None else session.run(self._feeds(index, session, twin=twin))
                    for session, twin in zip(sessions, (False, True), strict=True)
                ]

            for index, (new, other) in enumerate(self.pool.each(both)):
                self._now[index] = self._after(segment, self._now[index], new)
                self._float[index] = self._after(segment, self._float[index], other)
        self._replaced = {}
        self._drifted = drifted

    def _after(self, segment: Segment, before: Mapping[str, Held], new: Arrays) -> dict[str, Held]:
        """Values alive behind the segment: new ones, which are used up, and those that live on."""
        kept = {name: held for name, held in before.items() if name in segment.passes}
        for name in list(new):
            kept[name] = self.store.hold(new.pop(name))
        return kept

    def _feeds(self, index: int, session: Session, *, twin: bool) -> Arrays:
        now, other = self._now[index], self._float[index] if twin else {}
        return {spec.name: other.get(spec.name, now[spec.name]).read() for spec in session.inputs}

    def _boundary(self, segment: Segment) -> dict[ir.Value, np.ndarray]:
        first = self._now[0]
        return {value: first[value.name or ""].read() for value in segment.alive}

    def _spread(self, segment: Segment, replaced: Sequence[Site]) -> set[str]:
        """Names of values that differ between the networks, those of the segment included."""
        drifted = set(self._drifted)
        changed = {site.node for site in replaced}
        for node in segment.nodes:
            if node in changed or any(value.name in drifted for value in values_read(node)):
                drifted.update(value.name or "" for value in node.outputs if value.name)
        return drifted


def _checked(visit: Visit, new: np.ndarray | NewWeight) -> NewWeight:
    """What a solver gave for a site, of the shape and type it must have."""
    solved = new if isinstance(new, NewWeight) else NewWeight(new)
    rows = solved.rows()
    size = int(np.prod(visit.site.shape))
    wanted = (size // columns_of(visit.copy), columns_of(visit.copy))
    if rows.shape != wanted or not np.isfinite(rows).all():
        raise CalibrationError(
            f"The solver gave site {visit.site.name!r} a weight of shape {list(rows.shape)}, "
            f"and finite numbers of shape {list(wanted)} were expected: this is a fault of the "
            "solver; leave the site out, or choose another one."
        )
    return solved
