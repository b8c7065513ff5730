"""Convert a model to a later opset without changing what it computes.

Conversion is done here on onnx_ir and not by ``onnx.version_converter``, because that one
goes through protobuf with every weight, drops functions and metadata, and does not
take nodes of other domains in bodies. The rules (`onnxq.graph.upgrade`) follow the operator
changelog of the ONNX specification (docs/Changelog.md); operators without a rule are checked
against the schemas of both versions, and whatever is not provably the same is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.upgrade import RULES
from onnxq.graph.versions import MAX_OPSET, needed_ir_version, operator_versions, opset_of
from onnxq.graph.walk import (
    function_path,
    site_name,
    walk_bodies,
    walk_nodes,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["ensure_opset", "infer_shapes"]

_OLDEST_CONVERTED = 7
_LAYER_NORM_SINCE = 17
_RMS_NORM = "SimplifiedLayerNormalization"


def ensure_opset(model: ir.Model, minimum: int) -> bool:
    """Convert the model, in place, so that it imports at least opset ``minimum``.

    Bodies and functions are converted too; nodes of other domains (com.microsoft, ...) are left
    alone. Nothing is changed when a node cannot be converted.

    Args:
        model: converted in place; weights are not read.
        minimum: the standard opset that a pass needs, at most `MAX_OPSET`.

    Returns:
        Whether the model was changed.

    Raises:
        UnsupportedGraph: names the first nodes that have no equivalent at that opset.
    """
    if minimum > MAX_OPSET:
        raise UnsupportedGraph(
            f"Opset {minimum} is asked for, and ONNX Runtime takes at most {MAX_OPSET}."
        )
    todo = [
        (path, graph, have) for path, graph, have in _graphs_with_opset(model) if have < minimum
    ]
    if opset_of(model) >= minimum and not todo:
        return False
    _refuse_unconvertible(todo, minimum)
    if any(have < 13 for _, _, have in todo):
        infer_shapes(model)
    for _, graph, have in todo:
        for node in tuple(graph):
            if node.domain == "":
                _convert(node, graph, have, minimum)
    model.opset_imports[""] = max(minimum, opset_of(model))
    for function in model.functions.values():
        if "" in function.opset_imports:
            function.opset_imports[""] = max(minimum, function.opset_imports[""])
    model.ir_version = max(model.ir_version, needed_ir_version(model))
    return True


def infer_shapes(model: ir.Model) -> None:
    """Fill in shapes and element types where ONNX can infer them; keep the model as is if not.

    Shape inference sees no weights above a kilobyte, so it is quick at any model size.
    """
    from onnx.shape_inference import InferenceError
    from onnx_ir.passes.common import ShapeInferencePass

    # ONNX Runtime's RMS norm in the standard domain has no inference, and would stop it there.
    simplified = [
        node
        for _, node in walk_nodes(model)
        if node.op_type == _RMS_NORM and node.domain == "" and opset_of(model) >= _LAYER_NORM_SINCE
    ]
    for node in simplified:
        node.op_type = "LayerNormalization"
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    except (InferenceError, ir.passes.PassError, RuntimeError, ValueError):
        # A hint only: every rule works without shapes or refuses by itself.
        return
    finally:
        for node in simplified:
            node.op_type = _RMS_NORM


def _graphs_with_opset(
    model: ir.Model,
) -> Iterator[tuple[str, ir.Graph | ir.Function, int]]:
    """Every graph with the standard opset that rules it; none imported means no such nodes."""
    for path, graph in walk_bodies("", model.graph):
        yield path, graph, opset_of(model) or MAX_OPSET
    for function in model.functions.values():
        have = function.opset_imports.get("", MAX_OPSET)
        for path, graph in walk_bodies(function_path(function), function):
            yield path, graph, have


def _refuse_unconvertible(
    todo: list[tuple[str, ir.Graph | ir.Function, int]], minimum: int
) -> None:
    refusals = [
        f"{site_name(path, node)} ({node.op_type}): {reason}"
        for path, graph, have in todo
        for node in graph
        if node.domain == "" and (reason := _why_not(node, have, minimum)) is not None
    ]
    if refusals:
        more = f" and {len(refusals) - 3} more" if len(refusals) > 3 else ""
        raise UnsupportedGraph(
            f"The model is at opset {todo[0][2]} and cannot be converted to opset {minimum}: "
            f"{'; '.join(refusals[:3])}{more}. Export it again with opset {minimum}."
        )


def _why_not(node: ir.Node, have: int, minimum: int) -> str | None:
    """Why a node has no equivalent at a later opset, or None."""
    if have < _OLDEST_CONVERTED:
        return f"opsets below {_OLDEST_CONVERTED} broadcast differently"
    converted = False
    malformed = _malformed(node, have)
    if malformed is not None:
        return malformed
    for version in operator_versions(node.op_type):
        if not have < version <= minimum:
            continue
        rule = RULES.get((node.op_type, version))
        if rule is not None:
            reason, converted = rule.why_not(node), True
        else:
            # Behind a rule the node has another structure than the one we see here.
            reason = None if converted else _changed_structure(node, version)
        if reason is not None or (rule is not None and rule.becomes):
            return reason
    return None


def _malformed(node: ir.Node, have: int) -> str | None:
    """What in a node of a standard operator is not as the definition it claims to follow."""
    import onnx

    if not any(version <= have for version in operator_versions(node.op_type)):
        return None
    schema = onnx.defs.get_schema(node.op_type, have, "")
    if len(node.inputs) < schema.min_input or len(node.outputs) < schema.min_output:
        return "it has fewer inputs or outputs than the operator"
    for name, attribute in node.attributes.items():
        kind: Any = schema.attributes[name].type if name in schema.attributes else attribute.type
        if int(kind) != int(attribute.type):
            return f"its attribute {name!r} is not of the type that the operator has"
    for name, wanted in schema.attributes.items():
        if wanted.required and name not in node.attributes:
            return f"its attribute {name!r} is missing"
    return None


def _changed_structure(node: ir.Node, version: int) -> str | None:
    """What a new definition of the operator took away that this node uses, or None."""
    import onnx

    new = onnx.defs.get_schema(node.op_type, version, "")
    old = onnx.defs.get_schema(node.op_type, version - 1, "")
    if new.deprecated:
        return f"the operator was removed at opset {version}"
    for name in node.attributes:
        if name not in new.attributes:
            return f"its attribute {name!r} was removed at opset {version}"
    for name, attribute in new.attributes.items():
        if name in node.attributes:
            continue
        if attribute.required:
            return f"opset {version} wants the attribute {name!r}"
        before = old.attributes.get(name)
        if before is not None and _default(before) != _default(attribute):
            return f"the default of its attribute {name!r} changed at opset {version}"
    used = sum(1 for value in node.inputs if value is not None)
    if used < new.min_input or len(node.outputs) > new.max_output:
        return f"its inputs or outputs changed at opset {version}"
    return None


def _default(attribute: onnx.defs.OpSchema.Attribute) -> bytes:
    return bytes(attribute.default_value.SerializeToString(deterministic=True))


def _convert(node: ir.Node, graph: ir.Graph | ir.Function, have: int, minimum: int) -> None:
    """Apply every rule from one opset to the other; `_why_not` has found nothing against it."""
    for version in operator_versions(node.op_type):
        rule = RULES.get((node.op_type, version))
        if rule is not None and have < version <= minimum:
            rule.apply(node, graph)
            if rule.becomes:
                _convert(node, graph, version, minimum)
                return
