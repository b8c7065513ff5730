"""Int8 weights and int32 biases as integer kernels take them: symmetric, one scale per channel.

For channel c of a weight W, s_c = max|W_c| / 127 and q = round(W / s_c) in [-127, 127]. The code
-128 is never used: it would make the range lopsided, and x86 kernels without VNNI add pairs of
products in 16 bits, where it is the first to saturate. A bias b that is added to the int32
accumulator of a kernel is stored as round(b / (s_x · s_c)).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import add_weight, read_weight
from onnxq.graph.scratch import Scratch
from onnxq.numerics.powers import power_of_two_above
from onnxq.solvers.preserve_sums import preserve_sums

__all__ = ["Int8Weight", "Int8Weights", "drop_unused", "encode_int8", "int32_bias", "scale_floor"]

Array = np.ndarray[Any, Any]

_BIAS_LIMIT = float(1 << 30)
"""Largest bias code: half the int32 range, so that the products still have room beside it."""

_TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """One stored int8 copy of a weight.

    Attributes:
        codes: int8 initializer, in the layout of the weight (transposed when that was asked).
        scales: float32 initializer, [channels] or [] for one scale.
        scale: the content of ``scales``.
        error: ‖W − Ŵ‖ / ‖W‖.
        bits: stored bits per weight.
        nbytes: bytes of codes and scales.
    """

    codes: ir.Value
    scales: ir.Value
    scale: Array
    error: float
    bits: float
    nbytes: int


def encode_int8(
    weight: Array,
    axis: int,
    *,
    bits: int = 8,
    per_channel: bool = True,
    floor: Array | None = None,
    keep_sums: bool = False,
    power_of_two: bool = False,
) -> tuple[Array, Array, float]:
    """Round a weight to symmetric codes.

    Args:
        weight: float32, any shape.
        axis: the axis of output channels.
        bits: 8, or 7 for kernels whose 16-bit pair sums would saturate.
        per_channel: one scale per output channel; otherwise one in all.
        floor: smallest allowed scale, [channels] or []; see `scale_floor`.
        keep_sums: make rounding errors of each kernel and channel cancel; see
            `onnxq.solvers.preserve_sums`.
        power_of_two: take the next power of two for each scale.

    Returns:
        int8 codes of the shape of ``weight`` in ±(2^(bits-1) − 1), float32 scales of shape
        [channels] or [], and the relative error ‖W − Ŵ‖ / ‖W‖ (0 for a zero weight).
    """
    limit = (1 << (bits - 1)) - 1
    rows = np.moveaxis(weight, axis, 0)
    matrix = rows.reshape(rows.shape[0], -1)
    peak = np.abs(matrix).max(axis=1, initial=0.0)
    scale = (peak if per_channel else peak.max(initial=0.0)) / np.float32(limit)
    if floor is not None:
        scale = np.maximum(scale, floor)
    scale = np.where(scale < _TINY, 1.0, scale).astype(np.float32)
    if power_of_two:
        scale = power_of_two_above(scale)
    exact = matrix / scale.reshape(-1, 1)
    codes = np.clip(np.rint(exact), -limit, limit).astype(np.int8)
    if keep_sums:
        kernel = math.prod(weight.shape[2:])
        codes = preserve_sums(exact, codes, kernel=kernel, limit=limit)
    norm = float(np.linalg.norm(exact * scale.reshape(-1, 1)))
    error = float(np.linalg.norm((exact - codes) * scale.reshape(-1, 1))) / norm if norm else 0.0
    stored = np.ascontiguousarray(np.moveaxis(codes.reshape(rows.shape), 0, axis))
    return stored, scale, error


def scale_floor(bias: Array, input_scale: float) -> Array:
    """The smallest weight scale, [channels], with which a bias still fits into int32.

    A channel whose weights are almost zero has an almost zero scale, and round(b / (s_x · s_c))
    would overflow. Its weights are rounded coarser instead: with |x| ≤ 255·s_x that moves the
    output by at most 2^-23·|b| per input, which is the float32 rounding of the bias itself.
    """
    return (np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT)).astype(np.float32)


def int32_bias(bias: Array, input_scale: float, weight_scale: Array) -> tuple[Array, Array]:
    """Codes (int32, [channels]) and scales (float32, [channels]) of a bias.

    The scale is the float32 product s_x · s_c, which integer kernels take for granted.
    """
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    scale = np.broadcast_to(np.maximum(scale, np.float32(_TINY)), bias.shape)
    codes = np.rint(bias.astype(np.float64) / scale)
    limit = np.iinfo(np.int32).max
    return np.clip(codes, -limit, limit).astype(np.int32), np.ascontiguousarray(scale)


class Int8Weights:
    """Writes int8 copies of weights, each once: one object per run of a pass."""

    def __init__(
        self,
        scratch: Scratch,
        *,
        bits: int = 8,
        per_channel: bool = True,
        keep_sums: bool = False,
        power_of_two: bool = False,
    ) -> None:
        """Codes go to ``scratch``; the rest is as in `encode_int8`."""
        self._scratch = scratch
        self._settings: dict[str, Any] = {
            "bits": bits,
            "per_channel": per_channel,
            "keep_sums": keep_sums,
            "power_of_two": power_of_two,
        }
        self._written: dict[tuple[object, ...], Int8Weight] = {}

    def rounding_error(self, weight: ir.Value, axis: int) -> Array:
        """Ŵ − W of a weight as it would be written, in its layout; nothing is written."""
        array = read_weight(weight).astype(np.float32, copy=False)
        codes, scale, _ = encode_int8(array, axis, **self._settings)
        shape = [1] * array.ndim
        shape[axis] = scale.size
        return np.asarray(codes * scale.reshape(shape) - array)

    def fresh(self) -> Int8Weights:
        """One with the same settings that has written nothing."""
        return Int8Weights(Scratch(), **self._settings)

    def write(
        self,
        graph: ir.Graph | ir.Function,
        weight: ir.Value,
        axis: int,
        *,
        factor: float = 1.0,
        transpose: bool = False,
        floor: Array | None = None,
    ) -> Int8Weight:
        """The int8 copy of ``factor · weight``, added to ``graph`` unless it is there already.

        Args:
            graph: where the codes and scales are added.
            weight: a float weight.
            axis: its output axis, before transposing.
            factor: multiplies the weight (alpha of a Gemm).
            transpose: store the transpose of a 2-D weight.
            floor: smallest scales; a copy with other floors is another copy.
        """
        if not self._settings["per_channel"]:
            floor = None if floor is None else floor.max(initial=0.0)
        floor_key = None if floor is None else floor.tobytes()
        key = (graph, weight, axis, factor, transpose, floor_key)
        if key not in self._written:
            self._written[key] = self._encode(graph, weight, axis, factor, transpose, floor)
        return self._written[key]

    def _encode(
        self,
        graph: ir.Graph | ir.Function,
        weight: ir.Value,
        axis: int,
        factor: float,
        transpose: bool,
        floor: Array | None,
    ) -> Int8Weight:
        array = read_weight(weight).astype(np.float32, copy=False)
        if factor != 1.0:
            array = array * np.float32(factor)
        if transpose:
            array, axis = np.ascontiguousarray(array.T), 1 - axis
        codes, scale, error = encode_int8(array, axis, floor=floor, **self._settings)
        kept = self._scratch.keep(codes, ir.DataType.INT8)
        coded = add_weight(
            graph,
            f"{weight.name}_int8",
            shape=codes.shape,
            dtype=ir.DataType.INT8,
            compute=kept.numpy,
        )
        scales = add_weight(
            graph,
            f"{weight.name}_scale",
            shape=scale.shape,
            dtype=ir.DataType.FLOAT,
            compute=np.asarray(scale),
        )
        nbytes = codes.nbytes + scale.nbytes
        return Int8Weight(coded, scales, scale, error, 8.0 * nbytes / codes.size, nbytes)


def drop_unused(values: Iterable[ir.Value]) -> None:
    """Remove the initializers and Constant nodes among ``values`` that nobody reads any more."""
    for value in dict.fromkeys(values):
        if value.uses() or value.is_graph_output():
            continue
        producer = value.producer()
        if producer is not None:
            if producer.graph is not None and producer.op_type == "Constant":
                producer.graph.remove(producer, safe=True)
        elif value.graph is not None and value.is_initializer():
            value.graph.initializers.pop(value.name or "", None)
