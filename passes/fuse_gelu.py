"""Recognise a GELU that an exporter wrote out, and write it as one node.

Exact: ``x · ½ (1 + erf(x / √2))``; with tanh: ``x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))``
(Hendrycks, Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, section 2) → ``Gelu(x)``, in
every order in which the three factors are multiplied.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import onnx_ir as ir

from onnxq.graph.versions import opset_of
from onnxq.passes.base import Context, Pass, PassReport, Promise
from onnxq.passes.match import (
    Any,
    Either,
    Number,
    Op,
    Pattern,
    find,
    fuse_sites,
    read_elsewhere,
    replace,
)

__all__ = ["FuseGelu"]

_STANDARD_SINCE = 20
_X = Any("x")


def _product(factor: Pattern) -> Either:
    """``x · ½ · factor`` in every order; a division by 2 is a product with ½."""
    half = Number(0.5)
    two = Number(2.0)
    half_x = Either((Op("Mul", (_X, half)), Op("Div", (_X, two))))
    half_factor = Either((Op("Mul", (factor, half)), Op("Div", (factor, two))))
    product = Op("Mul", (_X, factor))
    return Either(
        (
            Op("Mul", (half_x, factor)),
            Op("Mul", (_X, half_factor)),
            Op("Mul", (product, half)),
            Op("Div", (product, two)),
        )
    )


def _one_plus(of: Pattern) -> Op:
    return Op("Add", (of, Number(1.0)))


def _erf() -> Either:
    root = math.sqrt(2.0)
    scaled = Either((Op("Div", (_X, Number(root))), Op("Mul", (_X, Number(1.0 / root)))))
    return _product(_one_plus(Op("Erf", (scaled,))))


def _tanh() -> Either:
    square = Either((Op("Mul", (_X, _X)), Op("Pow", (_X, Number(2.0)))))
    cube = Either((Op("Pow", (_X, Number(3.0))), Op("Mul", (square, _X))))
    small = Number(0.044715)
    summed = Op("Add", (_X, Op("Mul", (cube, small))))
    nested = Op("Mul", (_X, _one_plus(Op("Mul", (square, small)))))
    factored = Op("Mul", (_X, _one_plus(Op("Mul", (_X, Op("Mul", (_X, small)))))))
    inner = Either((summed, nested, factored))
    root = Number(math.sqrt(2.0 / math.pi))
    scaled_x = Op("Mul", (_X, root))
    distributed = Op("Mul", (scaled_x, _one_plus(Op("Mul", (Op("Mul", (_X, small)), _X)))))
    argument = Either((Op("Mul", (inner, root)), distributed))
    return _product(_one_plus(Op("Tanh", (argument,))))


_ERF = _erf()
_TANH = _tanh()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuseGelu(Pass):
    """Write a decomposed GELU as one node.

    Matches: GELU with erf or with tanh, in any order of its factors.
    Writes: ``Gelu`` from opset 20 on, before that ONNX Runtime's Gelu and FastGelu.
    Leaves: matches of which an inner value is a graph output or read elsewhere.
    """

    promise: ClassVar[Promise] = Promise.SAME_FUNCTION

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Fuse every site that can be; the report says why the others were left."""
        opset = opset_of(model)
        return fuse_sites(model, frozenset(["Mul", "Div"]), lambda node: _fuse(node, opset))


def _fuse(node: ir.Node, opset: int) -> ir.Node | str | None:
    found, exact = find(node, _ERF), True
    if found is None:
        found, exact = find(node, _TANH), False
    if found is None:
        return None
    reason = read_elsewhere(found)
    if reason is not None:
        return reason
    x = found.values["x"]
    if opset >= _STANDARD_SINCE:
        return replace(found, "Gelu", [x], {} if exact else {"approximate": "tanh"})
    return replace(found, "Gelu" if exact else "FastGelu", [x], {}, domain="com.microsoft")
