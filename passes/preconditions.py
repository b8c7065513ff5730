"""What passes ask of a model before they begin, each said in one way."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.errors import UnsupportedGraph
from onnxq.graph import Site, find_sites, opset_of

__all__ = ["cut_refusal", "need_float_weight", "need_opset", "shared_refusal"]


def need_float_weight(model: ir.Model, advice: str) -> None:
    """Raise when layers are quantized and none is left to be.

    Args:
        model: only looked at.
        advice: what to do then, a sentence.

    Raises:
        UnsupportedGraph: names a layer that is quantized.
    """
    sites = [site for site in find_sites(model) if not site.is_embedding]
    done = [site for site in sites if site.already is not None]
    if done and not any(s.already is None and s.weight is not None for s in sites):
        raise UnsupportedGraph(
            f"The model is already quantized: {done[0].name!r} is {done[0].already}, and no "
            f"float weight is left. {advice}"
        )


def need_opset(model: ir.Model, minimum: int, what: str) -> None:
    """Raise when the model has an older opset than what is to be written in it.

    Args:
        model: only looked at.
        minimum: opset of the default domain.
        what: that needs it, the subject of a sentence with "needs".

    Raises:
        UnsupportedGraph: says which opset there is and which pass raises it.
    """
    if opset_of(model) < minimum:
        raise UnsupportedGraph(
            f"{what} needs opset {minimum}, and the model has {opset_of(model)}: put "
            f"convert_opset with minimum={minimum} earlier in the recipe."
        )


def cut_refusal(site: Site) -> str | None:
    """Why the weight of a layer cannot be cut into parts, as a clause; None when it can be read."""
    if site.already is not None:
        return f"it is already quantized ({site.already})"
    if site.refusal is not None or site.weight is None:
        return site.refusal or "it has no weight"
    if site.path:
        return "it is inside a body or function"
    if site.via:
        return f"its weight comes through {site.via[0].op_type}: fold constants first"
    return None


def shared_refusal(weight: ir.Value) -> str | None:
    """Why a weight that others read cannot be replaced by parts, as a clause; None when none do."""
    if len(weight.uses()) > 1 or weight.is_graph_output():
        return f"its weight {weight.name!r} is read elsewhere too: run untie_weights first"
    return None
