"""Feed-forward blocks: two projections with a nonlinearity between, plain or gated.

Plain: ``down(act(up(x)))``. Gated (Shazeer 2020, "GLU variants improve Transformer"):
``down(act(gate(x)) * up(x))``, with gate and up as two sites or as one fused projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from onnxq.graph.flow import VIEWS, Flow, SiteIndex
from onnxq.graph.sites import Site
from onnxq.graph.weight_source import scalar, stored_weight

__all__ = ["MlpBlock", "find_mlps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpBlock:
    """One feed-forward block.

    Attributes:
        gate: the projection that goes through the nonlinearity of a gated block; None when the
            block is plain; the same site as ``up`` when one weight gives both.
        up: the first projection.
        down: the last projection.
        activation: ``"GELU"``, ``"SiLU"``, ``"ReLU"``, ``"QuickGELU"``, or the operators
            joined by ``+``.
    """

    gate: Site | None
    up: Site
    down: Site
    activation: str

    @property
    def is_gated(self) -> bool:
        """Whether the block multiplies two projections."""
        return self.gate is not None


_LINEAR = frozenset(
    [
        "MatMul",
        "Gemm",
        "FusedMatMul",
        "FusedGemm",
        "FusedMatMulActivation",
        "GemmFastGelu",
        "MatMulNBits",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QLinearMatMul",
        "QGemm",
    ]
)
_NONLINEAR = {
    "Gelu": "GELU",
    "FastGelu": "GELU",
    "BiasGelu": "GELU",
    "QuickGelu": "GELU",
    "Erf": "GELU",
    "Tanh": "Tanh",
    "Sigmoid": "Sigmoid",
    "Swish": "SiLU",
    "HardSwish": "HardSwish",
    "HardSigmoid": "HardSigmoid",
    "Relu": "ReLU",
    "LeakyRelu": "LeakyReLU",
    "Elu": "ELU",
    "Selu": "SELU",
    "Celu": "CELU",
    "Mish": "Mish",
    "Softplus": "Softplus",
    "Clip": "Clip",
    "PRelu": "PReLU",
}
_ARITHMETIC = frozenset(
    ["Mul", "Add", "Sub", "Div", "Pow", "Where", "Neg", "Exp", "Max", "Min", "Split", "Slice"]
)
_OVER = VIEWS | _ARITHMETIC | frozenset(_NONLINEAR)

Jump = Callable[[ir.Value], ir.Value | None]


def find_mlps(index: SiteIndex, through_norm: Jump) -> list[MlpBlock]:
    """List the feed-forward blocks in the order of their last projection.

    Args:
        index: the sites.
        through_norm: gives the input of the norm that computed a value; None for other values.
    """
    blocks = []
    for site in index.sites:
        if site.kind in _LINEAR and site.input is not None:
            block = _ending_in(site, index, through_norm)
            if block is not None:
                blocks.append(block)
    return blocks


def _ending_in(down: Site, index: SiteIndex, jump: Jump) -> MlpBlock | None:
    flow = index.back(down.input, _OVER, jump=jump)
    if flow.ends or not 1 <= len(flow.sites) <= 2 or down in flow.sites:
        return None
    if any(site.kind not in _LINEAR for site in flow.sites):
        return None
    if len(flow.sites) == 1:
        return _from_one(down, flow)
    product = _product(flow, index, jump)
    if product is None:
        return None
    first, second = product
    # The gate is the arm with the nonlinearity; when neither or both have one, the left.
    gate, up = (first, second) if _acts(first) or not _acts(second) else (second, first)
    return MlpBlock(
        gate=gate.sites[0],
        up=up.sites[0],
        down=down,
        activation=_activation(gate) or "none",
    )


def _from_one(down: Site, flow: Flow) -> MlpBlock | None:
    activation = _activation(flow)
    site = flow.sites[0]
    if activation is None:
        return None
    gate = site if flow.crosses(["Split", "Slice"]) and flow.crosses(["Mul"]) else None
    return MlpBlock(gate=gate, up=site, down=down, activation=activation)


def _product(flow: Flow, index: SiteIndex, jump: Jump) -> tuple[Flow, Flow] | None:
    """The two arms of the Mul that joins the two sites, each with one of them."""
    for node in flow.nodes:
        if node.op_type != "Mul" or any(stored_weight(value) is not None for value in node.inputs):
            continue
        first, second = (index.back(value, _OVER, jump=jump) for value in node.inputs)
        if len(first.sites) == 1 and len(second.sites) == 1 and first.sites != second.sites:
            return first, second
    return None


def _acts(flow: Flow) -> bool:
    return flow.crosses(_NONLINEAR)


def _activation(flow: Flow) -> str | None:
    """A common name for the nonlinear operators of a walk; None when it is linear."""
    names = dict.fromkeys(_NONLINEAR[n.op_type] for n in flow.nodes if n.op_type in _NONLINEAR)
    if not names:
        return None
    if list(names) == ["Sigmoid"]:
        return _sigmoid_unit(flow)
    if list(names) == ["Tanh"] and flow.crosses(["Pow", "Mul"]) and flow.crosses(["Add"]):
        return "GELU"
    return "+".join(names)


def _sigmoid_unit(flow: Flow) -> str:
    """SiLU for x * sigmoid(x), QuickGELU for x * sigmoid(c x), else Sigmoid."""
    for node in flow.nodes:
        if node.op_type != "Sigmoid":
            continue
        before = {node.inputs[0]: 1.0}
        scaled = node.inputs[0].producer() if node.inputs[0] is not None else None
        if scaled is not None and scaled.op_type == "Mul":
            for index in (0, 1):
                factor = scalar(scaled.inputs[index])
                if factor is not None:
                    before[scaled.inputs[1 - index]] = factor
        for user in node.outputs[0].consumers():
            factors = [before[value] for value in user.inputs if value in before]
            if user.op_type == "Mul" and factors:
                return "SiLU" if factors[0] == 1.0 else "QuickGELU"
    return "Sigmoid"
