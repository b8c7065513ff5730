"""One model that is the reference at some places and the candidate at the others, as it is told.

At every place where two forms of a model differ (`onnxq.evaluate.differences`) both ways of
computing are kept, and an ``If`` takes one of them by a boolean input of its own::

    x ── MatMul(W) ── y      becomes      x ── If(use) ─ then: MatMulNBits(codes, scales) ── y
                                                       └ else: MatMul(W)

ONNX Runtime computes only the branch that is taken. So the effect of any set of places is one run
of one session, and hundreds of sets cost what hundreds of runs cost. Its graph optimizations are
off, for it fuses otherwise inside bodies: with all places from the candidate the outputs are bit
for bit those of the candidate without optimizations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxq.errors import UnsupportedGraph
from onnxq.evaluate.differences import Cone, Difference, find_differences
from onnxq.evaluate.feeds import feeds_of
from onnxq.graph import is_weight, weight_tensor
from onnxq.graph.opset import ensure_opset
from onnxq.graph.stage import clone_model
from onnxq.runtime import Session, open_session

__all__ = ["Hybrid", "switched_model"]

_SWITCH = "onnxq.use_candidate"


class Hybrid:
    """Two forms of one model in one session. A context manager.

    Attributes:
        places: the places where the two differ and that can be switched, in graph order, and
            whether each is a site (a weight that acts as a linear map).
        fixed: the places that stay as in the reference, each with its reason.
    """

    def __init__(
        self, reference: ir.Model, candidate: ir.Model, *, threads: int | None = None
    ) -> None:
        """Find where the models differ, and load both ways of every place.

        Raises:
            UnsupportedGraph: the models do not differ anywhere, or ONNX Runtime does not take the
                model with both ways.
        """
        reference, candidate = _same_opset(reference, candidate)
        model, self._flags, places = switched_model(reference, candidate)
        self.fixed = {one.name: one.reason for one in places.values() if one.reason}
        self.places = {name: places[name].is_site for name in self._flags}
        if not self.places:
            raise UnsupportedGraph(_nothing_to_switch(self.fixed))
        self._session = open_session(model, threads=threads, optimize=False)

    @property
    def session(self) -> Session:
        """The session, whose outputs are those of both models."""
        return self._session

    def run(
        self,
        sample: Mapping[str, np.ndarray[Any, Any]],
        chosen: Collection[str],
        outputs: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run once with the candidate's way at the ``chosen`` places, by name.

        Raises:
            CalibrationError: the sample lacks an input.
            OnnxqError: the runtime failed.
        """
        flags = {flag: np.array(name in chosen) for name, flag in self._flags.items()}
        return self._session.run(feeds_of(self._session, {**sample, **flags}, 0), outputs)

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def __enter__(self) -> Hybrid:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the session."""
        self.close()


def _nothing_to_switch(fixed: Mapping[str, str]) -> str:
    if not fixed:
        return (
            "The two models differ nowhere: the same operators on the same constants. Give a float "
            "model and a quantized form of it."
        )
    name, reason = next(iter(fixed.items()))
    return (
        f"The two models differ in {len(fixed)} places, none of which can be switched: {name!r}, "
        f"because {reason}. Give two forms of one model, with the names of values kept."
    )


def _same_opset(first: ir.Model, second: ir.Model) -> tuple[ir.Model, ir.Model]:
    """Both models at the higher opset of the two."""
    wanted = max(model.opset_imports.get("", 0) for model in (first, second))
    raised = []
    for model in (first, second):
        if model.opset_imports.get("", 0) < wanted:
            model = clone_model(model)
            ensure_opset(model, wanted)
        raised.append(model)
    return raised[0], raised[1]


def switched_model(
    reference: ir.Model, candidate: ir.Model
) -> tuple[ir.Model, dict[str, str], dict[str, Difference]]:
    """The reference with a switch at every place where the candidate computes otherwise.

    Args:
        reference: left as it is.
        candidate: left as it is; its weights are shared and not copied.

    Returns:
        The model, the name of its boolean input for each place that can be switched, and all
        places by name.
    """
    model = clone_model(reference)
    found = {one.name: one for one in find_differences(model, candidate)}
    for domain, version in candidate.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    for key, function in candidate.functions.items():
        model.functions.setdefault(key, function.clone())
    flags = {}
    writer = _Writer()
    for number, one in enumerate(one for one in found.values() if one.reason is None):
        flags[one.name] = f"{_SWITCH}.{number}"
        flag = ir.Value(
            name=flags[one.name], type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])
        )
        model.graph.inputs.append(flag)
        writer.add(one, flag)
    writer.write()
    model.graph.sort()
    RemoveUnusedNodesPass()(model)
    return model, flags, found


class _Writer:
    """Puts an If in the place of values: first their names and readers, then the branches."""

    def __init__(self) -> None:
        self._switched: dict[ir.Value, ir.Value] = {}
        self._work: list[tuple[Difference, ir.Value, Cone, Cone]] = []

    def add(self, place: Difference, flag: ir.Value) -> None:
        """Note the values that are to be switched, and give their readers the switched ones."""
        for ours, theirs in place.pairs:
            old = ours.root
            new = ir.Value(name=old.name, type=old.type, shape=old.shape)
            old.name = f"{new.name}.reference"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            self._switched[old] = new
            self._work.append((place, flag, ours, theirs))

    def write(self) -> None:
        """Write all branches."""
        for number, (place, flag, ours, theirs) in enumerate(self._work):
            chosen = self._branch(theirs, place, f"candidate.{number}")
            kept = self._branch(ours, None, f"reference.{number}")
            node = ir.Node(
                "",
                "If",
                [flag],
                {
                    "then_branch": ir.AttrGraph("then_branch", chosen),
                    "else_branch": ir.AttrGraph("else_branch", kept),
                },
                outputs=[self._switched[ours.root]],
                name=f"{_SWITCH}.if.{number}",
            )
            place.graph.append(node)

    def _branch(self, cone: Cone, place: Difference | None, tag: str) -> ir.Graph:
        """A copy of a cone as a body; of the candidate's, ``place`` says where it goes."""
        values: dict[ir.Value, ir.Value] = {}
        weights: dict[ir.Value, ir.Value] = {}
        nodes = []
        for node in cone.nodes:
            inputs = []
            for value in node.inputs:
                if value is None or value in values:
                    inputs.append(None if value is None else values[value])
                elif place is not None and is_weight(value):
                    inputs.append(weights.setdefault(value, _weight(value, tag)))
                else:
                    inputs.append(self._outside(value, place))
            for value in node.outputs:
                copy = ir.Value(name=f"{value.name}.{tag}", type=value.type, shape=value.shape)
                values[value] = copy
            nodes.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    inputs,
                    list(node.attributes.values()),
                    overload=node.overload,
                    outputs=[values[value] for value in node.outputs],
                    name=f"{node.name}.{tag}",
                )
            )
        return ir.Graph(
            [], [values[cone.root]], nodes=nodes, initializers=list(weights.values()), name=tag
        )

    def _outside(self, value: ir.Value, place: Difference | None) -> ir.Value:
        """What stands for a value that a cone reads and does not compute."""
        if place is None:
            return value
        found = place.visible[value.name or ""]
        return self._switched.get(found, found)


def _weight(value: ir.Value, tag: str) -> ir.Value:
    """A constant of the candidate as one of the branch: ONNX Runtime fuses with no other."""
    tensor = weight_tensor(value)
    return ir.Value(
        name=f"{value.name}.{tag}",
        const_value=tensor,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape([int(size) for size in tensor.shape.numpy()]),
    )
