"""How standard operators changed from opset 7 to 26 where a node must change with them.

Each rule turns a node of the definition before its opset into one of that opset, in place, with
the same outputs for the same inputs. The source is the ONNX operator changelog (docs/Changelog.md
of the ONNX repository). Definitions that only widen element types need no rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxq.graph.weights import add_weight, is_weight, read_weight

__all__ = ["RULES", "Rule"]

Owner: TypeAlias = ir.Graph | ir.Function
_NO_KERNEL_AT_22 = (
    *("Bernoulli", "GlobalLpPool", "MaxRoiPool", "Multinomial", "RandomNormal"),
    *("RandomNormalLike", "RandomUniform", "RandomUniformLike", "RoiAlign"),
)
"""Found by opening a session per operator and opset, ONNX Runtime 1.31.1, CPU."""
_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"]


def _anything(node: ir.Node) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Rule:
    """One change of one operator.

    Attributes:
        apply: edits the node, which is in the given graph.
        why_not: the reason why a node cannot be converted, or None.
        becomes: whether the operator gets another name, whose own rules then follow.
    """

    apply: Callable[[ir.Node, Owner], None]
    why_not: Callable[[ir.Node], str | None] = _anything
    becomes: bool = False


def _constant(graph: Owner, node: ir.Node, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    dtype = ir.DataType.from_numpy(array.dtype)
    return add_weight(graph, f"{node.name}_{name}", shape=array.shape, dtype=dtype, compute=array)


def _set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _integers_to_input(name: str, index: int) -> Callable[[ir.Node, Owner], None]:
    """An integer attribute becomes an int64 input; absent stays absent."""

    def apply(node: ir.Node, graph: Owner) -> None:
        attribute = node.attributes.pop(name, None)
        if attribute is not None:
            array = np.array(attribute.value, dtype=np.int64).reshape(-1)
            _set_input(node, index, _constant(graph, node, name, array))

    return apply


def _slice_10(node: ir.Node, graph: Owner) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        _integers_to_input(name, index)(node, graph)


def _drop(*names: str) -> Callable[[ir.Node, Owner], None]:
    def apply(node: ir.Node, graph: Owner) -> None:
        for name in names:
            node.attributes.pop(name, None)

    return apply


def _refuse(reason: str) -> Rule:
    return Rule(_drop(), lambda node: reason)


def _references(*names: str) -> Callable[[ir.Node], str | None]:
    """A function's attribute parameter cannot become an input."""

    def why_not(node: ir.Node) -> str | None:
        for name in names:
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.is_ref():
                return f"its attribute {name!r} is a parameter of the function it is in"
        return None

    return why_not


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())


def _element_type(node: ir.Node) -> np.dtype[Any] | None:
    for value in (*node.inputs[:1], *node.outputs[:1]):
        if value is not None and value.dtype is not None:
            return np.dtype(value.dtype.numpy())
    return None


def _clip_11(node: ir.Node, graph: Owner) -> None:
    dtype = _element_type(node) or np.dtype(np.float32)
    for index, name in ((1, "min"), (2, "max")):
        attribute = node.attributes.pop(name, None)
        if attribute is not None:
            bound = np.array(attribute.value, dtype=dtype)
            _set_input(node, index, _constant(graph, node, name, bound))


def _pad_11(node: ir.Node, graph: Owner) -> None:
    fill = _number(node, "value", 0.0)
    node.attributes.pop("value", None)
    _integers_to_input("pads", 1)(node, graph)
    if fill != 0.0:
        dtype = _element_type(node) or np.dtype(np.float32)
        _set_input(node, 2, _constant(graph, node, "value", np.array(fill, dtype=dtype)))


def _upsample_9(node: ir.Node, graph: Owner) -> None:
    scales = np.array(node.attributes.pop("scales").value, dtype=np.float32)
    _set_input(node, 1, _constant(graph, node, "scales", scales))


def _rename(op_type: str) -> Callable[[ir.Node, Owner], None]:
    def apply(node: ir.Node, graph: Owner) -> None:
        node.op_type = op_type

    return apply


def _resize_11(node: ir.Node, graph: Owner) -> None:
    """Resize-10 has asymmetric coordinates; nearest means floor enlarging and ceil shrinking.

    The specification leaves the rounding open; this is what ONNX Runtime computes.
    """
    scales = node.inputs[1]
    if _text(node, "mode", "nearest") == "nearest":
        rounding = "ceil" if _shrinks(scales) == {True} else "floor"
        node.attributes.add(ir.AttrString("nearest_mode", rounding))
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
    _set_input(node, 1, _constant(graph, node, "roi", np.zeros(0, dtype=np.float32)))
    _set_input(node, 2, scales)


def _shrinks(scales: ir.Value | None) -> set[bool]:
    """Whether axes that change size become smaller; empty when the scales are computed.

    Computed scales are taken to enlarge, as in every detector that computes them.
    """
    if scales is None or not is_weight(scales):
        return set()
    return {bool(scale < 1) for scale in read_weight(scales).reshape(-1) if scale != 1}


def _mixed_scales(node: ir.Node) -> str | None:
    if _text(node, "mode", "nearest") == "nearest" and len(_shrinks(node.inputs[1])) > 1:
        return "it enlarges one axis and shrinks another, which rounded differently before 11"
    return None


def _softmax_13(node: ir.Node, graph: Owner) -> None:
    """Up to opset 12 all axes from ``axis`` on were normalized together, as one flat row."""
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None else int(attribute.as_int())
    given, result = node.inputs[0], node.outputs[0]
    rank = next((v.shape.rank() for v in (given, result) if v is not None and v.shape), None)
    if axis == -1 or (rank is not None and axis % rank == rank - 1):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    shape = ir.node("Shape", [given], name=f"{node.name}_shape")
    flat = ir.node("Flatten", [given], {"axis": axis}, name=f"{node.name}_flatten")
    back = ir.node("Reshape", [None, shape.outputs[0]], name=f"{node.name}_unflatten")
    for made, suffix in ((shape, "shape"), (flat, "flat")):
        made.outputs[0].name = f"{result.name}_{suffix}"
    graph.insert_before(node, [shape, flat])
    graph.insert_after(node, back)
    _replace_output(node, back, graph)
    back.replace_input_with(0, node.outputs[0])
    node.replace_input_with(0, flat.outputs[0])
    node.attributes["axis"] = ir.AttrInt64("axis", -1)


def _replace_output(node: ir.Node, last: ir.Node, graph: Owner) -> None:
    """Let ``last`` give what ``node`` gave, under the same name."""
    old, new = node.outputs[0], last.outputs[0]
    name = old.name
    new.type, new.shape = old.type, old.shape
    old.shape = None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}_flat_result", name


def _split_18(node: ir.Node, graph: Owner) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _dft_20(node: ir.Node, graph: Owner) -> None:
    attribute = node.attributes.pop("axis", None)
    axis = np.array(1 if attribute is None else attribute.value, dtype=np.int64)
    _set_input(node, 2, _constant(graph, node, "axis", axis))


def _grid_sample_20(node: ir.Node, graph: Owner) -> None:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = _text(node, "mode", "bilinear")
    node.attributes["mode"] = ir.AttrString("mode", names.get(mode, mode))


def _roi_align_16(node: ir.Node, graph: Owner) -> None:
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "output_half_pixel"))


def _extra_outputs(reason: str) -> Callable[[ir.Node], str | None]:
    def why_not(node: ir.Node) -> str | None:
        extra = node.outputs[1:]
        used = any(value.uses() or value.is_graph_output() for value in extra)
        return reason if used else None

    return why_not


def _drop_outputs(node: ir.Node, graph: Owner) -> None:
    node.resize_outputs(1)


def _spatial(node: ir.Node) -> str | None:
    if _number(node, "spatial", 1) == 0:
        return "spatial=0 was removed at opset 9"
    return _extra_outputs("training outputs changed at opset 14")(node)


def _attention_24(node: ir.Node) -> str | None:
    if _number(node, "qk_matmul_output_mode", 0) != 0:
        return "the values of qk_matmul_output_mode changed at opset 24"
    return None


def _axes(op_types: Sequence[str], version: int) -> dict[tuple[str, int], Rule]:
    rule = Rule(_integers_to_input("axes", 1), _references("axes"))
    return {(op_type, version): rule for op_type in op_types}


RULES: dict[tuple[str, int], Rule] = {
    ("Attention", 24): Rule(_drop(), _attention_24),
    ("BatchNormalization", 9): Rule(_drop("spatial"), _spatial),
    ("BatchNormalization", 14): Rule(_drop_outputs, _extra_outputs("it is in training mode")),
    ("Clip", 11): Rule(_clip_11, _references("min", "max")),
    ("DFT", 20): Rule(_dft_20, _references("axis")),
    ("Dropout", 10): Rule(_drop(), _extra_outputs("the type of its mask changed at opset 10")),
    ("Dropout", 12): Rule(_drop("ratio")),
    ("GridSample", 20): Rule(_grid_sample_20),
    ("GroupNormalization", 21): _refuse("its scale changed from per group to per channel"),
    ("Hardmax", 13): Rule(_softmax_13, _references("axis")),
    ("LogSoftmax", 13): Rule(_softmax_13, _references("axis")),
    ("Softmax", 13): Rule(_softmax_13, _references("axis")),
    ("Pad", 11): Rule(_pad_11, _references("pads", "value")),
    ("Resize", 11): Rule(_resize_11, _mixed_scales),
    ("RoiAlign", 16): Rule(_roi_align_16),
    ("Scan", 9): _refuse("its batch axis was removed at opset 9"),
    ("Scatter", 11): Rule(_rename("ScatterElements"), becomes=True),
    ("Slice", 10): Rule(_slice_10, _references("starts", "ends", "axes")),
    ("Split", 13): Rule(_integers_to_input("split", 1), _references("split")),
    ("Split", 18): Rule(_split_18),
    ("TopK", 10): Rule(_integers_to_input("k", 1), _references("k")),
    ("Upsample", 9): Rule(_upsample_9, _references("scales")),
    ("Upsample", 10): Rule(_rename("Resize"), becomes=True),
    **{
        (op_type, 22): _refuse("ONNX Runtime has no kernel for it from opset 22 on")
        for op_type in _NO_KERNEL_AT_22
    },
    **_axes(["ReduceSum", "Squeeze", "Unsqueeze"], 13),
    **_axes([f"Reduce{kind}" for kind in _REDUCTIONS], 18),
}
"""What to do with a node of that operator when the model passes that opset."""
