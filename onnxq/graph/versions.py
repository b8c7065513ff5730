"""Opset and IR versions that ONNX Runtime takes, and fitting a model to them.

Measured on ONNX Runtime 1.31.1: the standard domain up to opset 26, IR version up to 13.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph.walk import function_path, site_name, walk_bodies, walk_graphs, walk_nodes

__all__ = [
    "MAX_IR_VERSION",
    "MAX_OPSET",
    "fit_runtime",
    "freeze_default_inputs",
    "needed_ir_version",
    "operator_versions",
    "opset_of",
]

MAX_OPSET = 26
MAX_IR_VERSION = 13
_IR_OF_DTYPE = {
    ir.DataType.INT4: 10,
    ir.DataType.UINT4: 10,
    ir.DataType.FLOAT4E2M1: 11,
    ir.DataType.FLOAT8E8M0: 12,
    ir.DataType.INT2: 13,
    ir.DataType.UINT2: 13,
    ir.DataType.FLOAT6E2M3: 14,
    ir.DataType.FLOAT6E3M2: 14,
}


def opset_of(model: ir.Model) -> int:
    """The version of the standard operator set that the main graph imports (0 when none)."""
    return model.opset_imports.get("", 0)


def fit_runtime(model: ir.Model, *, convert: bool = True) -> None:
    """Bring opset imports and IR version, in place, to what ONNX Runtime takes.

    The IR version is raised to what the model uses and lowered when nothing needs more. Below IR 4
    every initializer had to be listed as an input too; those listings are removed.

    Args:
        model: changed in place.
        convert: lower an opset above `MAX_OPSET` when no node uses a definition newer than that.

    Raises:
        UnsupportedGraph: the opset or an element type is too new; says which nodes need it.
    """
    _plain_domain(model)
    if opset_of(model) > MAX_OPSET:
        _lower_opset(model, convert)
    if model.ir_version < 4:
        freeze_default_inputs(model)
    needed = needed_ir_version(model)
    if needed > MAX_IR_VERSION:
        raise UnsupportedGraph(
            f"The model uses element types of IR version {needed} (6-bit floats), and ONNX "
            f"Runtime takes IR version {MAX_IR_VERSION}. Cast them to another type on export."
        )
    model.ir_version = max(min(model.ir_version, MAX_IR_VERSION), needed)


def freeze_default_inputs(model: ir.Model) -> bool:
    """Make inputs that have a default value plain weights; True when there were any.

    Old exporters list every weight as an input ("keep_initializers_as_inputs"), and a runtime then
    must not treat it as constant.
    """
    graph = model.graph
    defaults = [value for value in graph.inputs if value.name in graph.initializers]
    for value in defaults:
        graph.inputs.remove(value)
    return bool(defaults)


@functools.cache
def _history() -> dict[str, tuple[int, ...]]:
    import onnx

    found: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema.since_version)
    return {name: tuple(sorted(versions)) for name, versions in found.items()}


def operator_versions(op_type: str) -> tuple[int, ...]:
    """The opsets at which a standard operator was defined anew, ascending."""
    return _history().get(op_type, ())


def _plain_domain(model: ir.Model) -> None:
    """Call the standard domain by its short name, and import every domain that is used."""
    _complete_imports("", model.graph, model.opset_imports)
    for function in model.functions.values():
        _complete_imports(function_path(function), function, function.opset_imports)


def _complete_imports(path: str, graph: ir.Graph | ir.Function, imports: dict[str, int]) -> None:
    if "ai.onnx" in imports:
        imports[""] = max(imports.pop("ai.onnx"), imports.get("", 0))
    for _, inner in walk_bodies(path, graph):
        for node in inner:
            if node.domain:
                imports.setdefault(node.domain, 1)


def _lower_opset(model: ir.Model, convert: bool) -> None:
    import onnx

    have = opset_of(model)
    lead = f"The model uses opset {have}, and ONNX Runtime takes at most {MAX_OPSET}"
    if not convert:
        raise UnsupportedGraph(
            f"{lead}. Export it with opset {MAX_OPSET} or lower, or load it with convert=True."
        )
    if have > onnx.defs.onnx_opset_version():
        raise UnsupportedGraph(
            f"{lead}; what changed in opset {have} is not known to onnx {onnx.__version__} "
            f"either. Export it with opset {MAX_OPSET} or lower."
        )
    newer = sorted(set(_newer_nodes(model, have)))
    if newer:
        more = f" and {len(newer) - 4} more" if len(newer) > 4 else ""
        raise UnsupportedGraph(
            f"{lead}. These nodes use definitions newer than that: {', '.join(newer[:4])}{more}. "
            f"Export the model with opset {MAX_OPSET} or lower."
        )
    for imports in [model.opset_imports, *(f.opset_imports for f in model.functions.values())]:
        if "" in imports:
            imports[""] = min(imports[""], MAX_OPSET)


def _newer_nodes(model: ir.Model, have: int) -> Iterator[str]:
    for path, node in walk_nodes(model):
        if node.domain == "" and any(
            MAX_OPSET < v <= have for v in operator_versions(node.op_type)
        ):
            yield f"{site_name(path, node)} ({node.op_type})"


def needed_ir_version(model: ir.Model) -> int:
    """The least IR version that can hold what the model uses."""
    import onnx

    table = onnx.helper.OP_SET_ID_VERSION_MAP
    needed = max(4, table.get(("ai.onnx", opset_of(model)), 4), 8 if model.functions else 4)
    for _, graph in walk_graphs(model):
        values = list(graph.inputs)
        if isinstance(graph, ir.Graph):
            values += graph.initializers.values()
        for node in graph:
            values += node.outputs
            if node.metadata_props:
                needed = max(needed, 10)
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    needed = max(needed, _IR_OF_DTYPE.get(attribute.as_tensor().dtype, 4))
        for value in values:
            if value.dtype is not None:
                needed = max(needed, _IR_OF_DTYPE.get(value.dtype, 4))
    return needed
