"""Activations as unsigned codes found while a model runs: one range for all of it, or one per row.

Per tensor it is the operator DynamicQuantizeLinear. Per row (token), symmetric::

    s = max(max x, −min x) / 127        codes = round(x / s) + 128        x ≈ s·(codes − 128)

The codes are unsigned with a zero point of 128 because x86 kernels multiply unsigned by signed:
ONNX Runtime 1.31 takes 30 times as long for signed activations. They are those of
`onnxq.passes.fake_quantization` with 8 bits, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.graph import add_weight, unique_value_name

__all__ = ["Codes", "DynamicActivations"]

_AXES_AS_INPUT = 18
_LIMIT = 127.0
_ZERO = 128

Home = ir.Graph | ir.Function


@dataclasses.dataclass(frozen=True)
class Codes:
    """A quantized activation.

    Attributes:
        codes: uint8, of the shape of the activation.
        scale: float32, a scalar, or one for each row with the other axes of size 1.
        zero: uint8 scalar.
    """

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value


class DynamicActivations:
    """Quantizes each activation of a model once, behind what computes it."""

    def __init__(self, homes: dict[ir.Node | ir.Value, Home], opset: int, *, rows: bool) -> None:
        """Write into the graphs of ``homes``.

        Args:
            homes: the graph or function of each node and input; new nodes are added to it.
            opset: of the model.
            rows: one scale for each row, and not one in all.
        """
        self._homes = homes
        self._opset = opset
        self._rows = rows
        self._written: dict[tuple[ir.Value, tuple[int, ...]], Codes] = {}
        self._constants: dict[tuple[Home, str], ir.Value] = {}

    def codes(self, value: ir.Value, axes: tuple[int, ...] = (-1,)) -> Codes:
        """The codes of ``value``, whose rows run along ``axes``."""
        key = (value, axes if self._rows else ())
        if key not in self._written:
            self._written[key] = self._by_row(value, axes) if self._rows else self._whole(value)
        return self._written[key]

    def _whole(self, value: ir.Value) -> Codes:
        kinds = {"codes": ir.DataType.UINT8, "scale": ir.DataType.FLOAT, "zero": ir.DataType.UINT8}
        last = value.producer()
        outputs = self._behind(value, last, "DynamicQuantizeLinear", [value], kinds)
        outputs[0].shape = value.shape
        return Codes(*outputs)

    def _by_row(self, value: ir.Value, axes: tuple[int, ...]) -> Codes:
        home = self._home(value)
        last = value.producer()

        def step(op: str, inputs: Sequence[ir.Value], label: str, **attributes: Any) -> ir.Value:
            nonlocal last
            kind = ir.DataType.UINT8 if label == "codes" else ir.DataType.FLOAT
            made = self._behind(value, last, op, inputs, {label: kind}, attributes)[0]
            last = made.producer()
            return made

        along: dict[str, Any] = {"keepdims": 1}
        read = [value]
        if self._opset < _AXES_AS_INPUT:
            along["axes"] = list(axes)
        else:
            label = "_".join(map(str, axes)).replace("-", "m")
            read.append(self._constant(home, f"axes_{label}", np.array(axes, np.int64)))
        most = step("ReduceMax", read, "most", **along)
        least = step("ReduceMin", read, "least", **along)
        peak = step("Max", [most, step("Neg", [least], "below")], "peak")
        limit = self._constant(home, "int8_limit", np.float32(_LIMIT))
        tiny = self._constant(home, "least_scale", np.finfo(np.float32).tiny)
        scale = step("Max", [step("Div", [peak, limit], "step"), tiny], "scale")
        exact = step("Div", [value, scale], "exact")
        one = self._constant(home, "unit_scale", np.float32(1))
        zero = self._constant(home, "middle_code", np.uint8(_ZERO))
        codes = step("QuantizeLinear", [exact, one, zero], "codes")
        exact.shape = codes.shape = value.shape
        return Codes(codes, scale, zero)

    def _behind(
        self,
        value: ir.Value,
        last: ir.Node | None,
        op: str,
        inputs: Sequence[ir.Value],
        outputs: Mapping[str, ir.DataType],
        attributes: Mapping[str, Any] | None = None,
    ) -> Sequence[ir.Value]:
        """A node behind ``last``, or at the beginning when None; gives its outputs."""
        home, base = self._home(value), f"{value.name}_dynamic"
        made = ir.node(op, inputs, attributes, num_outputs=len(outputs))
        made.name = unique_value_name(home, f"{base}_{next(iter(outputs))}_{op}")
        for output, (label, kind) in zip(made.outputs, outputs.items(), strict=True):
            output.name = unique_value_name(home, f"{base}_{label}")
            output.dtype = kind
        if last is not None:
            home.insert_after(last, made)
        else:
            home.insert_before(self._first(home), made)
        self._homes[made] = home
        return made.outputs

    def _first(self, home: Home) -> ir.Node:
        """The first node that is no Constant, which a function holds its weights in."""
        return next(node for node in home if node.op_type != "Constant")

    def _home(self, value: ir.Value) -> Home:
        producer = value.producer()
        return self._homes[producer if producer is not None else value]

    def _constant(self, home: Home, name: str, array: Any) -> ir.Value:
        key = (home, name)
        if key not in self._constants:
            array = np.asarray(array)
            self._constants[key] = add_weight(
                home,
                name,
                shape=array.shape,
                dtype=ir.DataType.from_numpy(array.dtype),
                compute=array,
            )
        return self._constants[key]
