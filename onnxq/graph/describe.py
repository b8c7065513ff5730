"""What a model is, as plain data: the content of ``onnxq inspect``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from onnxq.graph.attention import AttentionBlock
from onnxq.graph.mlp import MlpBlock
from onnxq.graph.residual import ResidualStream
from onnxq.graph.sites import Site
from onnxq.graph.stage import stage_of
from onnxq.graph.topology import Topology
from onnxq.graph.walk import walk_nodes
from onnxq.graph.weights import walk_weights, weight_tensor

__all__ = ["describe"]


def describe(model: ir.Model) -> dict[str, Any]:
    """Describe a model as a dictionary that ``json.dumps`` takes.

    Keys:
        ir_version, producer, opsets (domain to version, the standard domain as ``"ai.onnx"``),
        stage, functions (names); inputs and outputs (``name``, ``dtype``, ``shape``, where an
        axis is an int, a name, or None); parameters (elements of all weights but integers of 32
        and 64 bits, strings and booleans, which are shapes and indices), weight_bytes,
        weights_by_dtype; nodes (their number), operators (type to count, ``domain::type`` outside
        the standard domain); sites, attention, mlps, norms (counts by kind), residual.

    No weight data is read.
    """
    topology = Topology(model)
    return {
        "ir_version": int(model.ir_version),
        "producer": " ".join(p for p in (model.producer_name, model.producer_version) if p),
        "opsets": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "stage": stage_of(model).name,
        "functions": [f"{f.domain}::{f.name}" for f in model.functions.values()],
        "inputs": [_value(value) for value in _real_inputs(model.graph)],
        "outputs": [_value(value) for value in model.graph.outputs],
        **_sizes(model),
        "nodes": sum(1 for _ in walk_nodes(model)),
        "operators": _operators(model),
        "sites": [_site(site, topology) for site in topology.sites],
        "norms": dict(Counter(norm.kind for norm in topology.norms)),
        "attention": [_attention(block) for block in topology.attention],
        "mlps": [_mlp(block) for block in topology.mlps],
        "residual": [_residual(stream) for stream in topology.residual],
    }


def _real_inputs(graph: ir.Graph) -> Iterable[ir.Value]:
    """Inputs a caller must give: those with a default value are left out."""
    return (value for value in graph.inputs if value.const_value is None)


def _value(value: ir.Value) -> dict[str, Any]:
    return {
        "name": value.name,
        "dtype": value.dtype.name.lower() if value.dtype is not None else None,
        "shape": None if value.shape is None else [_dim(dim) for dim in value.shape],
    }


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value


_NOT_PARAMETERS = (
    ir.DataType.INT64,
    ir.DataType.INT32,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
    ir.DataType.BOOL,
    ir.DataType.STRING,
)


def _sizes(model: ir.Model) -> dict[str, Any]:
    parameters = total = 0
    by_dtype: dict[str, int] = {}
    for _, value in walk_weights(model):
        tensor = weight_tensor(value)
        nbytes = 0 if tensor.dtype == ir.DataType.STRING else int(tensor.nbytes)
        total += nbytes
        if tensor.dtype not in _NOT_PARAMETERS:
            parameters += int(tensor.size)
        name = tensor.dtype.name.lower()
        by_dtype[name] = by_dtype.get(name, 0) + nbytes
    return {"parameters": parameters, "weight_bytes": total, "weights_by_dtype": by_dtype}


def _operators(model: ir.Model) -> dict[str, int]:
    counts = Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        for _, node in walk_nodes(model)
    )
    return dict(counts.most_common())


def _site(site: Site, topology: Topology) -> dict[str, Any]:
    norm = topology.feeding_norm(site)
    shared = topology.shared(site)
    readable = site.refusal is None and site.weight is not None
    return {
        "name": site.name,
        "kind": site.kind,
        "weight": None if site.weight is None else site.weight.name,
        "dtype": None if site.weight is None else weight_tensor(site.weight).dtype.name.lower(),
        "shape": list(site.shape),
        "in_axis": site.in_axis if readable else None,
        "out_axis": site.out_axis if readable else None,
        "groups": site.groups,
        "via": [node.op_type for node in site.via],
        "bias": None if site.bias is None else site.bias.name,
        "norm": None if norm is None else norm.name,
        "siblings": [other.name for other in topology.siblings(site)],
        "shared_with": [other.name for other in shared.sites],
        "orientations_agree": shared.orientations_agree,
        "already": site.already,
        "refusal": site.refusal,
    }


def _name(site: Site | None) -> str | None:
    return None if site is None else site.name


def _attention(block: AttentionBlock) -> dict[str, Any]:
    return {
        "name": block.name,
        "kind": block.kind,
        "q": _name(block.q),
        "k": _name(block.k),
        "v": _name(block.v),
        "o": _name(block.o),
        "heads": block.heads,
        "kv_heads": block.kv_heads,
        "head_dim": block.head_dim,
        "unknown": block.unknown,
    }


def _mlp(block: MlpBlock) -> dict[str, Any]:
    return {
        "gate": _name(block.gate),
        "up": block.up.name,
        "down": block.down.name,
        "activation": block.activation,
    }


def _residual(stream: ResidualStream) -> dict[str, Any]:
    return {
        "width": stream.width,
        "adds": len(stream.adds),
        "writers": [site.name for site in stream.writers],
        "norms": [norm.name for norm in stream.norms],
        "norm_writers": [norm.name for norm in stream.norm_writers],
        "others": [node.name or node.op_type for node in stream.others],
    }
