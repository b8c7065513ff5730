"""What each runtime needs around an operator before it runs it in int8: tables, not code.

Every row was checked by reading the graph that the runtime writes after its optimizations
(ONNX Runtime 1.31, CPU provider), or taken from the vendor's rules (TensorRT developer guide,
"Working with quantized types").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from onnxq.errors import RecipeError

__all__ = ["TARGETS", "ActivationType", "Target", "target_of"]

ActivationType = Literal["uint8", "int8"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where one runtime wants QuantizeLinear and DequantizeLinear.

    Attributes:
        name: the name a recipe gives.
        kinds: operators with a constant weight that have an int8 kernel.
        writes_int8: those of ``kinds`` whose kernel also writes int8, so that without a
            quantized output it is not used at all.
        absorbed: activations that disappear into the QuantizeLinear behind such a kernel, as
            long as the range of the quantized values is within theirs.
        integer_ops: operators without a weight that have an int8 kernel; they are quantized when
            every input already is and what they compute is wanted in int8.
        pass_through: operators that only move values: int8 in, the same int8 out.
        activation: type of activation codes.
        symmetric: whether the zero point of activations must be 0.
        integer_bias: whether the bias must be int32 with scale s_x·s_w.
        skip_inputs: whether the skip input of a residual Add is quantized, so that the Add fuses
            into the Conv on the other branch.
        requantizes: operators that the runtime quantizes on its own, with one scale for the whole
            weight, when they read a DequantizeLinear: those left in float must be shielded.
        refusals: kinds that are left in float, each with the reason.
    """

    name: str
    kinds: frozenset[str]
    writes_int8: frozenset[str]
    absorbed: frozenset[str]
    integer_ops: frozenset[str]
    pass_through: frozenset[str]
    activation: ActivationType
    symmetric: bool
    integer_bias: bool
    skip_inputs: bool
    requantizes: frozenset[str]
    refusals: Mapping[str, str]


_ONNXRUNTIME_CPU = Target(
    name="onnxruntime-cpu",
    # Conv → QLinearConv, MatMul → MatMulIntegerToFloat or QLinearMatMul, Gemm → QGemm.
    kinds=frozenset({"Conv", "MatMul", "Gemm"}),
    writes_int8=frozenset({"Conv"}),
    absorbed=frozenset({"Relu", "Clip"}),
    # QLinearAdd, QLinearMul, QLinearConcat, ...; Resize, Pad and ReduceMean have no such kernel.
    integer_ops=frozenset(
        {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}
    ),
    pass_through=frozenset(
        [
            "MaxPool",
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Slice",
            "Gather",
            "Expand",
            "DepthToSpace",
        ]
    ),
    activation="uint8",
    symmetric=False,
    # A float bias behind MatMul becomes a float Gemm before int8 kernels are looked for.
    integer_bias=True,
    skip_inputs=False,
    # core/optimizer/qdq_transformer/weight_bias_quantization.cc
    requantizes=frozenset({"Conv", "ConvTranspose", "Gemm"}),
    refusals=MappingProxyType(
        {"ConvTranspose": "ONNX Runtime has no int8 ConvTranspose on the CPU"}
    ),
)

_TENSORRT = Target(
    name="tensorrt",
    kinds=frozenset({"Conv", "MatMul", "Gemm", "ConvTranspose"}),
    # TensorRT fuses Q of the next layer backwards by itself; one more Q here only costs accuracy.
    writes_int8=frozenset(),
    absorbed=frozenset(),
    integer_ops=frozenset(),
    pass_through=frozenset(),
    activation="int8",
    symmetric=True,
    integer_bias=False,
    skip_inputs=True,
    requantizes=frozenset(),
    refusals=MappingProxyType({}),
)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {target.name: target for target in (_ONNXRUNTIME_CPU, _TENSORRT)}
)


def target_of(name: str) -> Target:
    """The rules of a runtime by name.

    Raises:
        RecipeError: there are no rules under that name.
    """
    if name not in TARGETS:
        raise RecipeError(
            f"There are no QDQ placement rules for target {name!r}: choose one of "
            f"{', '.join(sorted(TARGETS))}."
        )
    return TARGETS[name]
