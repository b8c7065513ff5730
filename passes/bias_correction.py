"""Take the mean of the rounding error of a layer out of its bias.

With Ŵ = W + E the output of a layer moves by E·x, on average by E·E[x]: a constant for each output
channel, which the bias can absorb. Behind ReLU, where E[x] is large, that is most of the error.
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019),
section 4.2, with E[x] measured instead of derived.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import Site
from onnxq.passes.base import Samples
from onnxq.passes.int8_weights import Int8Weights
from onnxq.runtime import open_session

__all__ = ["bias_corrections", "mean_error"]

Array = np.ndarray[Any, Any]

_INPUTS_AT_ONCE = 16
"""Activations fetched in one run: bounds the memory of a run, whatever the model."""


def bias_corrections(
    model: ir.Model, sites: Sequence[Site], weights: Int8Weights, samples: Samples, count: int
) -> dict[str, Array]:
    """What to subtract from the bias of each site, float32 [channels], by site name.

    Args:
        model: the float model; left as it is.
        sites: sites of its main graph; those without a bias of their own are passed over.
        weights: how weights are rounded.
        samples: model inputs by name.
        count: how many of them to run, spread evenly over all there are.
    """
    able = [site for site in sites if site.bias is not None and _is_plain(site)]
    total = sum(1 for _ in samples)
    spread = max(1, total // max(count, 1))
    chosen = list(itertools.islice(iter(samples), 0, spread * count, spread))
    found: dict[str, Array] = {}
    for start in range(0, len(able), _INPUTS_AT_ONCE):
        part = able[start : start + _INPUTS_AT_ONCE]
        means = _means(model, part, chosen)
        for site in part:
            if site.weight is not None:
                error = weights.rounding_error(site.weight, site.out_axis)
                found[site.name] = mean_error(site, error, means[site.name])
    return found


def mean_error(site: Site, error: Array, mean: Array) -> Array:
    """``E·E[x]``, float32 [channels], for the error of the stored weight and the mean input.

    Args:
        site: tells which axes are which; alpha of a Gemm is taken in.
        error: Ŵ − W in the layout of the stored weight.
        mean: [input channels].
    """
    if site.kind in ("MatMul", "Gemm"):
        matrix = np.moveaxis(error, (site.in_axis, site.out_axis), (0, 1)).reshape(mean.size, -1)
        alpha = site.node.attributes.get_float("alpha", 1.0) if site.kind == "Gemm" else 1.0
        return np.asarray(alpha * (mean @ matrix), dtype=np.float32)
    channels = error.reshape(*error.shape[:2], -1).sum(axis=2)
    grouped = channels.reshape(site.groups, -1, channels.shape[1])
    shift: Array = np.einsum("goi,gi->go", grouped, mean.reshape(site.groups, -1))
    return shift.reshape(-1).astype(np.float32)


def _is_plain(site: Site) -> bool:
    """Whether the channels of the input are where the operator usually has them."""
    if site.kind == "Gemm":
        return not site.node.attributes.get("transA")
    return site.kind in ("MatMul", "Conv")


def _means(
    model: ir.Model, sites: Sequence[Site], samples: Sequence[Mapping[str, Array]]
) -> dict[str, Array]:
    """Mean of the input of each site by channel, float64 [input channels]."""
    given = {value.name for value in model.graph.inputs}
    names = {site.name: site.input.name or "" for site in sites if site.input is not None}
    inner = list(dict.fromkeys(name for name in names.values() if name not in given))
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    with open_session(model, extra_outputs=inner) as session:
        for sample in samples:
            arrays = {**sample, **session.run(sample, inner)} if inner else dict(sample)
            for site in sites:
                array = np.asarray(arrays[names[site.name]])
                axis = 1 if site.kind == "Conv" else array.ndim - 1
                others = tuple(i for i in range(array.ndim) if i != axis)
                total = array.sum(axis=others, dtype=np.float64)
                sums[site.name] = sums.get(site.name, 0.0) + total
                counts[site.name] = counts.get(site.name, 0) + array.size // total.size
    return {name: total / max(counts[name], 1) for name, total in sums.items()}
