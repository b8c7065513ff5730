"""Where TensorRT wants Q/DQ pairs, and which operators it has: rules about neighbours.

Each function reads a model and yields what breaks its rule; the sentences of the rules and their
sources are in `onnxq.export.tensorrt_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxq.export.tensorrt_codes import Finding, finding
from onnxq.export.tensorrt_reading import WEIGHTED, Coded, Reading, is_standard
from onnxq.graph.weight_source import stored_weight

__all__ = [
    "activation_per_tensor",
    "both_inputs",
    "concat_scales",
    "int8_in_and_out",
    "no_kernel",
    "output_in_float",
    "residual",
]

_ACTIVATIONS = frozenset(
    [
        "BatchNormalization",
        "Clip",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Swish",
        "Tanh",
    ]
)
"""Fused into the weighted operator before them, which then has a float value to work on."""

_QUANTIZABLE = frozenset(
    [
        "Add",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "LpPool",
        "Max",
        "Min",
        "Mul",
        "Sub",
        "Sum",
    ]
)
"""Operators without a weight that have an INT8 kernel: int8 in, int8 out."""

_FUSED = frozenset(["Clip", "LeakyRelu", "Relu"])
_POOLS = frozenset(["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def activation_per_tensor(reading: Reading) -> Iterator[Finding]:
    """Activations with more than one scale."""
    for coded in reading.coded:
        shape = coded.scale_shape
        if coded.of_weight or reading.is_dynamic(coded):
            continue
        if shape is not None and np.prod(shape) != 1:
            yield finding(
                coded,
                f"it rounds an activation with scales {list(shape)}",
                "give activations one scale for the whole tensor",
                coded.scale,
            )


def both_inputs(reading: Reading) -> Iterator[Finding]:
    """A weighted operator with one operand in INT8 or FP8 and the other in float."""
    for site in reading.sites:
        if site.kind not in WEIGHTED or len(site.node.inputs) < 2:
            continue
        first, second = (reading.rounded(value) for value in site.node.inputs[:2])
        one = first or second
        if one is None or (first is not None and second is not None):
            continue
        index = 0 if first is None else 1
        alone = one.of_weight and _runs_weight_only(one, site.kind, reading.runtime)
        if alone and not reading.is_cast(site.node.inputs[1 - index], one):
            continue
        other = site.node.inputs[index]
        what = "its weight is" if one.of_weight else "one of its inputs is"
        yield Finding(
            node=site.node,
            name=site.name,
            tensor=(other.name or "") if other is not None else "",
            found=f"{what} {_kind(one)}, and input {index} is float",
            remedy="quantize both (insert_qdq with target=tensorrt), or neither",
        )


def _runs_weight_only(coded: Coded, kind: str, runtime: str) -> bool:
    """Whether there is a GEMM of float activations with weights in such codes."""
    if kind not in ("MatMul", "Gemm"):
        return False
    if coded.type is ir.DataType.INT4:
        return True
    alone = coded.type in (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
    return runtime == "tensorrt-rtx" and alone and len(coded.scale_shape or ()) < 2


def output_in_float(reading: Reading) -> Iterator[Finding]:
    """A Q/DQ pair between a weighted operator and the activation function behind it."""
    for coded in reading.coded:
        producer = coded.data.producer()
        if not coded.quantizes or producer is None or not is_standard(producer, *WEIGHTED):
            continue
        if len(coded.data.uses()) != 1 or coded.data.is_graph_output():
            continue
        for node, _ in _behind(reading, coded):
            if is_standard(node, *_ACTIVATIONS):
                yield finding(
                    coded,
                    f"it stands between {producer.op_type} and {node.op_type} "
                    f"{reading.name(node)!r}, which would be one kernel",
                    f"put the pair behind the {node.op_type}",
                )
                break


def _behind(reading: Reading, coded: Coded) -> Iterator[tuple[ir.Node, int]]:
    """Who reads the rounded value of a QuantizeLinear."""
    for node, index in reading.readers(coded.output, casts=False):
        found = reading.of(node)
        if found is not None and not found.quantizes and index == 0:
            yield from reading.readers(found.output)


def residual(reading: Reading) -> Iterator[Finding]:
    """An Add behind a quantized convolution whose other branch is not rounded, or both are."""
    for name, node in reading.nodes:
        if not is_standard(node, "Add") or any(stored_weight(v) is not None for v in node.inputs):
            continue
        fused = [_is_convolution(reading, value) for value in node.inputs]
        rounded = [reading.rounded(value) for value in node.inputs]
        if any(fused):
            index = fused.index(False) if False in fused else 1
            if not any(rounded):
                yield _skip(node, name, index, "is float, so that the convolution writes float")
        elif all(rounded):
            for index, coded in enumerate(rounded):
                q = None if coded is None else reading.quantizer(coded)
                if q is not None and _is_convolution(reading, q.data):
                    yield _skip(
                        node,
                        name,
                        index,
                        "is the output of a convolution, rounded: the Add is not fused into it",
                        remedy="round the skip branch only, and let the convolution's go in float",
                    )
                    break


def _skip(
    node: ir.Node,
    name: str,
    index: int,
    found: str,
    remedy: str = "put a Q/DQ pair on the skip branch of the Add",
) -> Finding:
    value = node.inputs[index]
    tensor = "" if value is None else value.name or ""
    return Finding(
        node=node, name=name, tensor=tensor, found=f"its input {index} {found}", remedy=remedy
    )


def _is_convolution(reading: Reading, value: ir.Value | None) -> bool:
    """Whether a value is the output, read once, of a convolution of quantized operands."""
    producer = None if value is None else value.producer()
    if value is None or producer is None or not is_standard(producer, *_CONVOLUTIONS):
        return False
    return len(value.uses()) == 1 and reading.is_quantized(producer)


def concat_scales(reading: Reading) -> Iterator[Finding]:
    """A Concat of rounded values with different scales, or of some that are not rounded."""
    for name, node in reading.nodes:
        if not is_standard(node, "Concat"):
            continue
        rounded = [reading.rounded(value) for value in node.inputs]
        known = [coded for coded in rounded if coded is not None and not coded.of_weight]
        if not known:
            continue
        scales = {float(c.scales.reshape(-1)[0]) for c in known if c.scales is not None}
        found = None
        if len(known) < len(rounded):
            found = f"{len(rounded) - len(known)} of its {len(rounded)} inputs are float"
        elif len(scales) > 1 or len({c.type for c in known}) > 1:
            found = f"its inputs have different scales ({min(scales):g} to {max(scales):g})"
        if found is not None:
            yield Finding(
                node=node,
                name=name,
                tensor=node.outputs[0].name or "",
                found=found,
                remedy="round what the Concat gives instead of its inputs, or share one scale",
            )


def int8_in_and_out(reading: Reading) -> Iterator[Finding]:
    """Pooling of rounded values whose result is not rounded."""
    for name, node in reading.nodes:
        if not is_standard(node, *_POOLS) or reading.rounded(node.inputs[0]) is None:
            continue
        if not _is_rounded_again(reading, node.outputs[0]):
            yield Finding(
                node=node,
                name=name,
                tensor=node.outputs[0].name or "",
                found=f"it reads int8 and gives float: {node.op_type} has int8 kernels that write "
                "int8 only",
                remedy="put a Q/DQ pair behind it too, or take away the one before it",
            )


def _is_rounded_again(reading: Reading, value: ir.Value) -> bool:
    """Whether everybody who reads a value rounds it."""
    readers = list(reading.readers(value))
    return (
        bool(readers)
        and not reading.is_output(value)
        and all((c := reading.of(node)) is not None and c.quantizes for node, _ in readers)
    )


def no_kernel(reading: Reading) -> Iterator[Finding]:
    """A rounded activation that no operator with kernels for codes reads."""
    for coded in reading.coded:
        if coded.quantizes or coded.of_weight:
            continue
        readers = list(reading.readers(coded.output))
        if any(_takes_codes(reading, node) for node, _ in readers):
            continue
        who = ", ".join(dict.fromkeys(node.op_type for node, _ in readers)) or "nobody"
        if not readers and reading.is_output(coded.output):
            who = "nobody but an output of the model"
        yield finding(
            coded,
            f"its value is read by {who}, without a kernel for {_kind(coded)}",
            "take away this Q/DQ pair: it costs time and accuracy, and gains nothing",
        )


def _takes_codes(reading: Reading, node: ir.Node) -> bool:
    """Whether an operator has a kernel that reads codes (whether it is used is asked elsewhere)."""
    if is_standard(node, "Concat", *_FUSED):
        return any(_takes_codes(reading, reader) for reader, _ in reading.readers(node.outputs[0]))
    if is_standard(node, *WEIGHTED, *_QUANTIZABLE):
        return True
    return reading.of(node) is not None


def _kind(coded: Coded) -> str:
    return "codes" if coded.type is None else coded.type.name
