"""What `quantize_weights` takes: the walk of its solver, then every site that is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxq.calibration.course import Course, course_of
from onnxq.calibration.token_weights import parse_token_weights
from onnxq.formats import Format
from onnxq.graph.sites import Site, find_sites
from onnxq.numerics.threads import default_threads
from onnxq.passes.learned_rounding import find_solver
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.weight_forms import site_refusal, written_form
from onnxq.planning.ledger import Entry
from onnxq.planning.rates import Rates
from onnxq.planning.sizes import Sizes
from onnxq.planning.walks import PlannedSegment, PlannedWalk, weight_of
from onnxq.planning.weight_memory import writing
from onnxq.runtime.memory_settings import MemorySettings

__all__ = ["Quantizing", "entries_of"]


Walk = Callable[[MemorySettings, int], list[PlannedSegment]]


@dataclasses.dataclass(frozen=True)
class Quantizing:
    """The pass before it is run.

    Attributes:
        entries: its parts, for given settings and workers.
        written: bytes of all weights of the model once it is done.
        segments: of its walk, for given settings and workers; none where it makes none.
    """

    entries: Callable[[MemorySettings, int], list[Entry]]
    written: int
    segments: Walk


def entries_of(
    model: ir.Model, step: QuantizeWeights, sizes: Sizes, rates: Rates, is_mapped: bool
) -> Quantizing | str:
    """Plan the pass; or why it cannot be planned.

    Args:
        model: as the pass will find it, without content.
        step: the pass, with names of sites for roles.
        sizes: of the samples.
        rates: of this machine.
        is_mapped: whether weights are in files.
    """
    needs = find_solver(step.solver).needs
    if "block" in needs:
        return f"its solver {step.solver} learns whole blocks by gradients, until it is satisfied"
    found = find_sites(model)
    formats, plain, solved = step.division(found)
    sites = [
        site for site in found if site_refusal(site, formats.get(site.name), step.write) is None
    ]
    walk: Walk = _no_walk
    if needs and solved:
        weights = parse_token_weights(step.token_weights)
        course = course_of(model, solved, cut=step.cut, token_weights=weights)
        walk = _walker(course, step, formats, sizes, rates, is_mapped)
        plain = [*plain, *(site for site in solved if site.name in course.unreachable)]
    names = {site.name for site in plain} if needs else {site.name for site in sites}

    def entries(settings: MemorySettings, workers: int) -> list[Entry]:
        walked = [
            Entry(
                step=step.key(),
                part=f"solve {segment.label}",
                need=segment.need,
                seconds=segment.seconds,
                spilled=segment.spilled,
                scratch=segment.kept,
            )
            for segment in walk(settings, workers)
        ]
        return [*walked, *_written(sites, step, formats, names, rates, is_mapped)]

    return Quantizing(entries, _bytes_after(model, sites, formats), walk)


def _no_walk(settings: MemorySettings, workers: int) -> list[PlannedSegment]:
    del settings, workers
    return []


def _walker(
    course: Course,
    step: QuantizeWeights,
    formats: Mapping[str, Format],
    sizes: Sizes,
    rates: Rates,
    is_mapped: bool,
) -> Walk:
    limited = dataclasses.replace(sizes, samples=sizes.samples[: step.samples])
    values = limited.bound(course.model)

    def walk(settings: MemorySettings, workers: int) -> list[PlannedSegment]:
        planned = PlannedWalk(
            course=course,
            step=step,
            formats=formats,
            sizes=limited,
            values=values,
            rates=rates,
            settings=settings,
            workers=workers,
            threads=default_threads(),
            is_mapped=is_mapped,
            idle=int(rates.overhead.idle),
        )
        return list(planned.segments())

    return walk


def _written(
    sites: Sequence[Site],
    step: QuantizeWeights,
    formats: Mapping[str, Format],
    plain: set[str],
    rates: Rates,
    is_mapped: bool,
) -> list[Entry]:
    """Every site as it is written, tables last, weights that are shared once."""
    tables = {(id(site.weight), formats[site.name]) for site in sites if site.kind == "Gather"}
    search = {} if step.search is None else {"search": step.search}
    seen: set[tuple[int, str, str]] = set()
    entries = []
    for site in sorted(sites, key=lambda site: site.kind == "Gather"):
        fmt = formats[site.name]
        form = written_form(site, fmt, step.write, is_tied=(id(site.weight), fmt) in tables)
        key = (id(site.weight), str(fmt), "blocks" if form in ("gather", "matmul_nbits") else form)
        if key in seen:
            continue
        seen.add(key)
        weight = weight_of(site, is_mapped)
        is_plain = site.name in plain and step.search in (None, "minmax", "mse")
        nbytes = int(weight.size * fmt.bits_per_weight((weight.rows, weight.columns)) / 8)
        seconds = 6 * weight.nbytes * rates.copy + nbytes * rates.store
        if site.name in plain:
            seconds += weight.size * rates.round_nearest(fmt, search)
        seconds += weight.size * rates.rotate * weight.is_lazy
        entries.append(
            Entry(
                step=step.key(),
                part=f"write {weight.rows}×{weight.columns} as {fmt}",
                need=writing(weight, form, fmt, is_plain=is_plain),
                seconds=seconds,
                scratch=nbytes,
            )
        )
    return entries


def _bytes_after(model: ir.Model, sites: Sequence[Site], formats: Mapping[str, Format]) -> int:
    """Bytes of the weights of the model once these sites are stored in their formats."""
    stored = {}
    for site in sites:
        weight = weight_of(site, mapped=True)
        bits = formats[site.name].bits_per_weight((weight.rows, weight.columns))
        stored[id(site.weight), str(formats[site.name])] = int(weight.size * bits / 8)
    replaced = {id(site.weight) for site in sites}
    rest = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None and id(value) not in replaced
    )
    return rest + sum(stored.values())
