"""The graph: loading, saving, lazy weights, topology, stages. onnx_ir only."""

from __future__ import annotations

from onnxq.graph.check import check_graph
from onnxq.graph.reading import load
from onnxq.graph.stage import Stage, clone_model, mark_stage, require_stage, stage_of
from onnxq.graph.walk import site_name, walk_graphs, walk_nodes
from onnxq.graph.weights import (
    add_weight,
    check_finite,
    is_weight,
    non_finite,
    read_weight,
    replace_weight,
    unique_value_name,
    walk_weights,
    weight_tensor,
)
from onnxq.graph.writing import save

__all__ = [
    "Stage",
    "add_weight",
    "check_finite",
    "check_graph",
    "clone_model",
    "is_weight",
    "load",
    "mark_stage",
    "non_finite",
    "read_weight",
    "replace_weight",
    "require_stage",
    "save",
    "site_name",
    "stage_of",
    "unique_value_name",
    "walk_graphs",
    "walk_nodes",
    "walk_weights",
    "weight_tensor",
]
