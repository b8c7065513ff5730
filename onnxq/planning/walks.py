"""What the walk of a solver takes, segment by segment: statistics, codes, and running on.

Alive in a segment are the activations of all samples (up to the bound, the rest in a file), the
Hessians whose sites are not all solved, and one after another: the sums of an activation with the
block of rows that is multiplied; what a site takes to be solved; the segment in the runtime, on
weights that are decoded for it. Workers solve sites of one segment at once, each in a process of
its own, with the rows and Hessian it was sent.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from onnxq.calibration.batches import Batch, batches_of, columns_of, key_of
from onnxq.calibration.course import Course
from onnxq.calibration.hessian import PANEL
from onnxq.calibration.segments import Segment
from onnxq.formats import Format
from onnxq.graph.sites import Site
from onnxq.graph.weights import is_weight, weight_tensor
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.planning.rates import Rates
from onnxq.planning.sizes import Sizes, Values, is_lazy
from onnxq.planning.weight_memory import Need, Weight, reading, solving
from onnxq.runtime.memory_settings import MemorySettings

__all__ = ["PlannedSegment", "PlannedWalk", "weight_of"]

_TASK = 0.02
"""Seconds to send a piece to a worker and back, besides its bytes."""
_MAPPED_FROM = 1 << 20
"""Arrays from this size go to workers of this machine through shared memory."""


@dataclasses.dataclass(frozen=True)
class PlannedSegment:
    """Sites that are known together.

    Attributes:
        label: what they are.
        need: memory beside what a pass has before: of all workers.
        seconds: of statistics and running on, which is one piece of work; and of its sites.
        serial: of statistics and running on.
        kept: bytes of codes.
        spilled: bytes of activations and matrices in files.
    """

    label: str
    need: Need
    seconds: float
    serial: float
    kept: int
    spilled: int


def weight_of(site: Site, mapped: bool) -> Weight:
    """The shape of the weight of a site."""
    tensor = weight_tensor(site.weight) if site.weight is not None else None
    columns = columns_of(site)
    size = 1
    for dim in site.shape:
        size *= dim
    lazy = site.weight is not None and is_lazy(site.weight)
    return Weight(
        rows=size // columns,
        columns=columns,
        itemsize=4 if tensor is None else max(1, int(tensor.dtype.itemsize)),
        is_lazy=lazy,
        is_mapped=mapped,
        groups=site.groups,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedWalk:
    """A walk before it is made.

    Attributes:
        course: its way.
        step: the pass.
        formats: by name of the site.
        sizes: of the samples.
        values: sizes of values.
        rates: of this machine.
        settings: what is kept in memory.
        workers: how many sites are solved at once.
        threads: how many samples run at once.
        is_mapped: whether weights are in files.
        idle: memory of a worker that does nothing.
    """

    course: Course
    step: QuantizeWeights
    formats: Mapping[str, Format]
    sizes: Sizes
    values: Values
    rates: Rates
    settings: MemorySettings
    workers: int
    threads: int
    is_mapped: bool
    idle: int

    def segments(self) -> Iterator[PlannedSegment]:
        """In the order of the walk."""
        last = len(self.course.segments) - 1
        for number, segment in enumerate(self.course.segments):
            yield self._segment(segment, is_last=number == last)

    def _segment(self, segment: Segment, *, is_last: bool) -> PlannedSegment:
        held, spilled = self._held(segment)
        at_once = min(self.threads, self.sizes.count)
        working = self.values.working(segment.nodes) * at_once
        need = Need(0, 0)
        serial = 0.0
        keys = {key_of(visit): visit for visit in segment.visits}
        drift, compares = "drift" in self._needs, self.step.flow == "asymmetric"
        kept = 0
        for batch in batches_of(keys, drift=drift, compares=compares):
            gathered, seconds = self._gathering(batch, segment, kept)
            kept = max(kept, self._matrices(batch))
            need = need.or_else(gathered)
            serial += seconds
        memory_kept, disk_kept = (0, kept) if self.settings.hessians_on_disk else (kept, 0)
        sites = [visit.site for visit in segment.visits]
        solved = self._solving(sites, kept).beside(memory_kept, disk_kept)
        need = need.or_else(solved)
        if not is_last:
            advanced, seconds = self._running(segment.nodes)
            need = need.or_else(advanced.beside(working))
            serial += seconds
        times = [self._site_seconds(site) for site in sites]
        return PlannedSegment(
            label=_label([weight_of(site, self.is_mapped) for site in sites]),
            need=need.beside(held),
            seconds=serial + _makespan(times, self.workers),
            serial=serial,
            kept=sum(self._code_bytes(site) for site in sites),
            spilled=spilled + disk_kept,
        )

    @property
    def _needs(self) -> tuple[str, ...]:
        return ("hessian", "drift") if self.step.solver == "gptaq" else ("hessian",)

    def _held(self, segment: Segment) -> tuple[int, int]:
        """Bytes of activations of all samples in memory, and in the file."""
        networks = 2 if self.step.flow == "asymmetric" else 1
        one = sum(self.values.nbytes(value) for value in segment.alive)
        after = sum(self.values.nbytes(v) for v in segment.gives)
        total = int(max(one, after) * self.sizes.whole * networks)
        return min(total, self.settings.activations), max(0, total - self.settings.activations)

    def _matrices(self, batch: Batch) -> int:
        count = len(self._needs)
        sizes = [v.reading.groups * columns_of(v.copy) ** 2 for v in batch.visits.values()]
        return 8 * count * (max(sizes) if self.settings.single else sum(sizes))

    def _gathering(self, batch: Batch, segment: Segment, kept: int) -> tuple[Need, float]:
        """Sums, the block of rows and the product of it; a run of the segment where it must."""
        widths = [v.reading.groups * columns_of(v.copy) for v in batch.visits.values()]
        widest, matrices = max(widths), self._matrices(batch)
        rows = min(batch.rows, self.sizes.tokens) if len(widths) else 0
        block = 4 * batch.rows * sum(widths) * (rows / max(1, batch.rows))
        columns = max(columns_of(visit.copy) for visit in batch.visits.values())
        panel = PANEL if columns > 2 * PANEL else columns
        product = 2 * 4 * columns * panel  # the last one lives until the next one is made
        memory = int(block + product)
        on_disk = self.settings.hessians_on_disk
        need = Need(memory, memory).beside(*((0, matrices) if on_disk else (matrices, 0)))
        rows_of = [self.values.positions(v.site.node) for v in batch.visits.values()]
        each = sum(n * w**2 / 2 for n, w in zip(rows_of, widths, strict=True))
        flops = self.sizes.whole * each
        flushes = -(-self.sizes.tokens // batch.rows)
        seconds = flops * self.rates.multiply + flushes * 16 * widest**2 * self.rates.copy
        alive = {value.name for value in segment.alive}
        if any(visit.input.name not in alive for visit in batch.visits.values()):
            run, more = self._running(segment.nodes)
            times = len(widths) if self.settings.single else 1
            need, seconds = need.or_else(run.beside(memory + matrices)), seconds + more * times
        return need, seconds

    def _solving(self, sites: Iterable[Site], matrices: int) -> Need:
        """The largest of the sites, or as many of them as there are workers."""
        needs = []
        for site in sites:
            weight = weight_of(site, self.is_mapped)
            work = solving(weight, self.step.solver, self.formats[site.name])
            needs.append(reading(weight).or_else(Need(work, work)))
        if not needs:
            return Need(0, 0)
        needs.sort(key=lambda need: need.memory, reverse=True)
        if self.workers == 1 or len(needs) < 2:
            return needs[0]
        busy = needs[: self.workers]
        sent = max(needs, key=lambda need: need.memory).memory // 4
        return Need(
            sum(need.memory + self.idle for need in busy) + sent + matrices,
            sum(need.resident + self.idle for need in busy) + sent + matrices,
        )

    def _running(self, nodes: Iterable[ir.Node]) -> tuple[Need, float]:
        """Opening a segment in the runtime, and running all samples through it."""
        over = self.rates.overhead
        nodes = list(nodes)
        opened, stored, decoded = 0.0, 0, 0
        for node in nodes:
            for value in node.inputs:
                if value is None or not is_weight(value):
                    continue
                tensor = weight_tensor(value)
                count = tensor.nbytes
                factor = over.opened16 if tensor.dtype == ir.DataType.FLOAT16 else over.opened32
                opened += count * (over.looked_up if node.op_type == "Gather" else factor)
                stored += count
                if node.op_type != "Gather":
                    decoded = max(decoded, tensor.size)
        memory = int(max(opened, stored + 14 * decoded))
        seconds = 2 * opened * self.rates.copy
        seconds += self.sizes.whole * self.values.products(nodes) * self.rates.multiply
        return Need(memory, memory), seconds

    def _site_seconds(self, site: Site) -> float:
        weight, fmt = weight_of(site, self.is_mapped), self.formats[site.name]
        fixed, slope = self.rates.solve(
            self.step.solver, fmt, self.step.solver_options, refit=self.step.refit_scales
        )
        seconds = weight.size * (fixed + slope * weight.columns)
        seconds += weight.groups * weight.columns**3 * self.rates.eliminate
        if self.workers > 1:
            sent = 4 * weight.size + 8 * weight.columns**2
            seconds += _TASK + (4 if sent > _MAPPED_FROM else 2) * sent * self.rates.copy
        return seconds

    def _code_bytes(self, site: Site) -> int:
        weight, fmt = weight_of(site, self.is_mapped), self.formats[site.name]
        return int(weight.size * fmt.bits_per_weight((weight.rows, weight.columns)) / 8)


def _makespan(times: Iterable[float], workers: int) -> float:
    """When the last piece is done, the pieces given in their order to whoever is free."""
    free = [0.0] * max(1, workers)
    for seconds in times:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free)


def _label(weights: Iterable[Weight]) -> str:
    shapes = Counter(f"{weight.rows}×{weight.columns}" for weight in weights)
    parts = [f"{count} of {shape}" if count > 1 else shape for shape, count in shapes.items()]
    return " and ".join(parts) or "nothing, and run on"
