"""Repeat the large channels of an activation, each copy with a share of the value.

A channel whose peak is n times too large for a common range is read as n channels of x_j / n with
the same weights::

    Σ_j w_j x_j  =  Σ_j Σ_{i ≤ n_j} w_j (x_j / n_j),        x' = Gather(x / n, index)

so the range of x' is that of the channels that were not repeated, and unlike smoothing no weight
grows. The division is folded into what gives x (see `onnxq.passes.migration`); the Gather costs a
copy of the activation, and the product as many more columns as there are copies. FlattenQuant
(Zhang et al., arXiv:2402.17985) takes large values apart as the model runs, min(x, T) and the rest;
here it is whole channels, ahead of time, which is linear and so exact for every x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.calibration.channel_profile import ChannelProfile, profile_channels
from onnxq.calibration.samples import Samples
from onnxq.errors import RecipeError
from onnxq.graph.names import unique_value_name
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, read_weight, replace_weight, weight_tensor
from onnxq.passes.base import Context, PassReport, SiteReport
from onnxq.passes.float_transform import FloatTransform
from onnxq.passes.match import home_of
from onnxq.passes.migration import Migration, find_migrations, scale_channels
from onnxq.passes.site_patterns import recipe_refusal
from onnxq.passes.smoothing_choice import input_name

__all__ = ["FlattenChannels", "copies_of"]

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

_KINDS = frozenset(["MatMul", "Gemm"])
_COPIES = "onnxq.copies"
"""Key of the metadata of a Gather that repeats channels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlattenChannels(FloatTransform):
    """Bring down the range of an activation by repeating its large channels.

    Matches: MatMul and Gemm whose input comes from a norm or another layer that can be divided.
    Writes: a Gather of the activation, weights with repeated rows, producers divided.
    Leaves: what `smooth_activations` leaves; convolutions; shared weights; activations without
    channels beyond the threshold, or with too many of them.

    Attributes:
        percentile: channels whose peak is beyond this percentile of the peaks are repeated, so
            often that they come within it.
        growth: at most how many copies there may be, as a share of the channels; the threshold is
            raised until they are that few.
        multiple: the number of columns is filled up to a multiple of this, for kernels and groups,
            with more copies of the largest channels; 1 fills up nothing.
        through_cache: see `smooth_activations`.
        sites: name patterns of the sites to look at.
        exclude: name patterns of sites whose activation stays as it is.
        samples: at most how many calibration samples are looked at, the first ones.
    """

    percentile: float = 99.0
    growth: float = 0.25
    multiple: int = 16
    through_cache: bool = False
    sites: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    samples: int = 128

    moves_outliers: ClassVar[bool] = True
    reads_activations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what no model could be run with."""
        if not 0.0 < self.percentile < 100.0:
            raise RecipeError(f"percentile is {self.percentile}: it lies between 0 and 100.")
        if self.growth <= 0 or self.multiple < 1 or self.samples < 1:
            raise RecipeError("growth must be above 0, multiple and samples at least 1.")

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Measure every activation that can be divided, then repeat channels.

        Raises:
            CalibrationError: there are no samples, or they do not fit the model.
        """
        given = context.needed_samples(
            "flatten_channels repeats channels that calibration data show to be large, and the "
            "recipe was run without: give calibration samples."
        )
        found = find_migrations(model, through_cache=self.through_cache, wants=self._unwanted)
        samples = Samples.of(given, limit=self.samples)
        axes = {input_name(site): m.axis(site) for m in found.found for site in m.readers}
        profiles = profile_channels(model, axes, samples)
        reports = [SiteReport(site=name, reason=reason) for name, reason in found.refused.items()]
        modified, moved = False, list[str]()
        for migration in found.found:
            counts = self._counts(migration, profiles)
            if isinstance(counts, str):
                reports += [SiteReport(site=s.name, reason=counts) for s in migration.readers]
                continue
            modified = True
            moved += migration.caches
            scale_channels(model, migration, counts.astype(np.float64))
            for value in dict.fromkeys(site.input for site in migration.readers):
                readers = [site for site in migration.readers if site.input is value]
                columns = _repeat(model, readers, migration.channels(readers[0]), counts)
                note = f"{len(migration.channels(readers[0]))} channels read as {columns}"
                reports += [SiteReport(site=site.name, note=note) for site in readers]
        return PassReport(
            modified=modified, sites=tuple(reports), moved_outputs=tuple(dict.fromkeys(moved))
        )

    def _unwanted(self, site: Site) -> str | None:
        reason = recipe_refusal(site.name, sites=self.sites, exclude=self.exclude)
        if reason is not None:
            return reason
        if site.kind not in _KINDS or site.weight_index != 1 or len(site.shape) != 2:
            return f"{site.kind} cannot take repeated channels: only MatMul and Gemm from the left"
        if site.kind == "Gemm" and site.node.attributes.get_int("transA"):
            return "it transposes its input"
        if site.via:
            return f"its weight comes through {site.via[0].op_type}: fold constants first"
        producer = None if site.input is None else site.input.producer()
        if producer is not None and _COPIES in producer.metadata_props:
            return "its channels are repeated already"
        return None

    def _counts(self, migration: Migration, profiles: Mapping[str, ChannelProfile]) -> Counts | str:
        """How often each channel is to be read, or why all stay as they are."""
        peaks = np.max(
            [migration.pool(s, profiles[input_name(s)].peak) for s in migration.readers], axis=0
        )
        channels = [np.sort(migration.channels(site)) for site in migration.readers]
        if any(not np.array_equal(ids, np.arange(migration.count)) for ids in channels):
            return "some of its channels share a factor or have none"
        counts = copies_of(peaks, self.percentile, growth=self.growth, multiple=self.multiple)
        return "no channel is much larger than the others" if counts is None else counts


def copies_of(
    peaks: npt.NDArray[np.float64], percentile: float, *, growth: float, multiple: int
) -> Counts | None:
    """How often each channel has to be read for all to have a like peak.

    Args:
        peaks: max|x_j|, [channels].
        percentile: of the peaks, which the shares are to come within.
        growth: the greatest number of copies, as a share of the channels.
        multiple: what the number of columns is to be a multiple of.

    Returns:
        int64 [channels], 1 for channels that are not repeated; None when no channel is.
    """
    threshold = float(np.percentile(peaks, percentile, method="lower"))
    if threshold <= 0.0:
        return None
    room = max(1, int(growth * len(peaks)))
    threshold = max(threshold, float(peaks.max()) / (room + 1))
    while True:
        counts: Counts = np.maximum(np.ceil(peaks / threshold * (1 - 1e-6)), 1).astype(np.int64)
        if counts.sum() - len(peaks) <= room:
            break
        threshold *= 1.05
    if counts.max() == 1:
        return None
    while counts.sum() % multiple:
        counts[np.argmax(peaks / counts)] += 1
    return counts


def _repeat(model: ir.Model, readers: Sequence[Site], ids: Counts, counts: Counts) -> int:
    """Gather the channels of one activation for all its readers; returns their new number."""
    index = np.repeat(np.arange(len(ids)), counts[ids])
    value, node = readers[0].input, readers[0].node
    graph = node.graph
    if value is None or graph is None:
        raise ValueError(f"site {readers[0].name!r} reads nothing")
    where = add_weight(
        home_of(model, node), f"{value.name}_channels", shape=[len(index)],
        dtype=ir.DataType.INT64, compute=index,
    )  # fmt: skip
    gather = ir.node("Gather", [value, where], {"axis": -1})
    gather.metadata_props[_COPIES] = str(len(index) - len(ids))
    output = gather.outputs[0]
    output.name = unique_value_name(graph, f"{value.name}_flat")
    gather.name = output.name
    output.type = value.type
    if value.shape is not None:
        output.shape = ir.Shape([*tuple(value.shape)[:-1], len(index)])
    first = next(other for other in graph if other in {site.node for site in readers})
    graph.insert_before(first, gather)
    for site in readers:
        at = next(i for i, v in enumerate(site.node.inputs) if v is value and i != 1)
        site.node.replace_input_with(at, output)
        if site.weight is not None:
            _repeat_weight(site.weight, site.in_axis, index, counts[ids])
    return len(index)


def _repeat_weight(weight: ir.Value, axis: int, index: Counts, counts: Counts) -> None:
    """Repeat the columns of a reader, which were multiplied by ``counts`` with the others."""
    tensor = weight_tensor(weight)
    stored = ir.Value(name=weight.name, const_value=tensor)
    shape = [int(size) for size in tensor.shape.numpy()]
    by = np.ones(len(shape), dtype=np.int64)
    by[axis] = len(index)
    shape[axis] = len(index)

    def compute() -> Array:
        array = read_weight(stored).take(index, axis=axis)
        np.divide(array, counts[index].reshape(by), out=array, casting="unsafe", dtype=np.float64)
        return np.ascontiguousarray(array)

    replace_weight(weight, shape=shape, dtype=tensor.dtype, compute=compute)
