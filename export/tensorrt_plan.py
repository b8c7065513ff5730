"""What an engine of TensorRT-RTX really runs, read from the engine itself.

A plan of TensorRT-RTX holds the compiled graph as text, for the part of the work that is left to
the user's GPU: every tensor with its type, every product with its operands, named after the node
of ONNX. So it can be seen without a GPU whether a site became an integer kernel, and `onnxq check`
is held to it. The text is no documented interface: where it cannot be read, nothing is said.
"""

from __future__ import annotations

import dataclasses
import re

from onnxq.export.target import Execution

__all__ = ["Product", "products_of"]

_LINE = re.compile(rb"^ *(\w+)=\{ ?(.*)$", re.M)
_NAME = re.compile(r'\bname="?([^" ]+)"?')
_TYPE = re.compile(r"\btype=(\w+)")
_INPUTS = re.compile(r"\binput(?:_args)?=\{([^}]*)\}")
_LAYERS = re.compile(rb'layers="([^"]*)"')
_LAYER = re.compile(rb"ONNX Layer: ([^\]]+)\]")
_QUOTED = re.compile(r'"([^"]+)"')
_PRODUCTS = frozenset({"fully_connected", "corrltn", "convolution", "deconv", "corrltn_bwd_data"})
_CODES = {
    "int8": "INT8",
    "int4": "INT4",
    "fp8_e4m3": "FP8",
    "fp4_e2m1": "FP4",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """One GEMM or convolution of an engine.

    Attributes:
        name: of the node of ONNX.
        operands: types of its first two operands.
        codes: types of codes that a kernel dequantizes as it multiplies; empty for one that does
            not.
    """

    name: str
    operands: tuple[str, ...]
    codes: tuple[str, ...] = ()

    @property
    def execution(self) -> Execution:
        """What runs."""
        if all(kind in _CODES for kind in self.operands):
            integer = all(kind == "int8" for kind in self.operands)
            return Execution.INTEGER if integer else Execution.LOW_BIT
        if len(self.codes) > 1:
            return Execution.DEQUANTIZED
        return Execution.LOW_BIT if self.codes else Execution.FLOAT

    def agrees(self, said: Execution) -> bool:
        """Whether it runs as was said; what is dequantized may be so inside its kernel."""
        if said is Execution.DEQUANTIZED:
            return not any(kind in _CODES for kind in self.operands)
        return self.execution is said


def products_of(plan: bytes) -> dict[str, Product]:
    """The products of an engine that was built for one compute capability, by name of their node.

    Empty where the plan holds no text that is understood. The graph comes first; what is fused into
    a kernel of its own stands there as ``runtime_fusion`` with what goes in and the nodes it is
    made of, and is spelt out in a graph behind, for any accelerator.
    """
    found: dict[str, Product] = {}
    codes: dict[str, tuple[str, ...]] = {}
    tensors: dict[str, str] = {}
    is_fused = False
    for match in _LINE.finditer(plan):
        kind, text = match[1].decode("latin-1"), match[2].decode("latin-1")
        if kind == "accelerators":
            is_fused, tensors = text.startswith("*"), {}
        elif kind in ("tensor", "sub_tensor"):
            name, type_ = _NAME.search(text), _TYPE.search(text)
            if name and type_:
                tensors.setdefault(name[1], type_[1])
        elif kind == "runtime_fusion":
            given = tuple(tensors.get(name, "") for name in _inputs(text))
            layers = _LAYERS.search(plan, match.start())
            for layer in _LAYER.findall(layers[1]) if layers else ():
                codes[layer.decode("latin-1")] = tuple(_CODES[t] for t in given if t in _CODES)
        elif kind in _PRODUCTS and (name := _NAME.search(text)):
            operands = tuple(tensors.get(given, "") for given in _inputs(text)[:2])
            if "" not in operands:
                inner = codes.get(name[1], ()) if is_fused else ()
                found[name[1]] = Product(name=name[1], operands=operands, codes=inner)
    return found


def _inputs(text: str) -> list[str]:
    found = _INPUTS.search(text)
    return _QUOTED.findall(found[1]) if found else []
