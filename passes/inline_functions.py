"""Replace calls of model functions by their bodies, so that passes see one graph.

A function can hold no initializers and is shared by all its callers, so a weight in it cannot be
quantized for one caller. Inlining copies the body to each call; weights are shared, not copied.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxq.errors import UnsupportedGraph
from onnxq.graph.walk import OPERATOR_DOMAIN, function_path, site_name, walk_nodes
from onnxq.passes.base import Context, Pass, PassReport, Promise, SiteReport

__all__ = ["InlineFunctions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InlineFunctions(Pass):
    """Inline every call of a model function.

    Matches: nodes that call a function the model defines.
    Writes: the nodes of its body, renamed to be unique.
    Leaves: functions of the domains in ``keep``: they are the meaning of an operator that a
        runtime may have a kernel for.

    Attributes:
        keep: domains whose functions stay. Without ``onnxq`` the promise is the same function:
            kernels of onnxq's operators then no longer run, and round otherwise.
    """

    promise: ClassVar[Promise] = Promise.SAME_BITS
    keep: tuple[str, ...] = (OPERATOR_DOMAIN, "com.microsoft", "ai.onnx.ml")

    def __post_init__(self) -> None:
        """Promise what holds for the domains that are inlined."""
        if OPERATOR_DOMAIN not in self.keep:
            object.__setattr__(self, "promise", Promise.SAME_FUNCTION)

    def call(self, model: ir.Model, context: Context) -> PassReport:
        """Inline in place.

        Raises:
            UnsupportedGraph: functions call each other in a circle, or import another opset
                than the model.
        """
        sites = []
        for path, node in walk_nodes(model):
            function = model.functions.get(node.op_identifier())
            if function is None:
                continue
            kept = function.domain in self.keep
            reason = f"functions of {function.domain!r} are kept" if kept else None
            sites.append(SiteReport(site=site_name(path, node), reason=reason))
        wanted = [f for f in model.functions.values() if f.domain not in self.keep]
        if not wanted:
            return PassReport(modified=False, sites=tuple(sites))
        try:
            common.InlinePass(criteria=lambda function: function.domain not in self.keep)(model)
        except (ValueError, ir.passes.PassError, ir.passes.InvariantError) as error:
            names = ", ".join(function_path(function) for function in wanted[:3])
            raise UnsupportedGraph(
                f"The functions {names} cannot be inlined: {error}. Export the model without "
                "functions, or name their domain in inline_functions.keep."
            ) from error
        return PassReport(modified=True, sites=tuple(sites))
