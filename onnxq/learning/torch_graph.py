"""A sub-graph of a model as a differentiable torch function.

Converters exist and do not take these models. onnx2torch 1.5.15 finds a converter by the exact
version of an operator's schema and its newest are of opset 16: MatMul, Reshape and Cast end at
opset 13, the reductions with axes as an input (opset 18) are missing, so is every quantizer, RMS
norm, rotary embedding and attention, and it knows no domain but ONNX's own; onnx2pytorch 0.6.0
knows none either and requires torchvision. Both make modules whose weights are parameters of
their own, whereas learning a transform needs weights that are *functions* of the parameters. So
the operators are a table of this room, `onnxq.learning.operators`, compared with ONNX Runtime on
the node tests of ONNX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass

from onnxq.errors import UnsupportedGraph, UsageError, nearest_word
from onnxq.graph.stage import clone_model
from onnxq.graph.walk import bodies
from onnxq.graph.weights import is_weight, read_weight, weight_tensor
from onnxq.learning.operators import Call, operator_of
from onnxq.learning.operators.types import tensor_of

__all__ = ["TorchGraph"]

Tap = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """One node: what computes it, the names it reads and gives, the names not read any more."""

    call: Call
    compute: Callable[..., object]
    reads: tuple[str | None, ...]
    gives: tuple[str, ...]
    done: tuple[str, ...]


class TorchGraph:
    """The nodes between named values of a model, run by torch.

    Every node is a torch operation, so gradients flow to the feeds, to the weights that are
    passed in, and through the taps. Round and the quantizers pass them straight through, inside
    their range.

    Attributes:
        inputs: names of the values to feed.
        outputs: names of the values that are returned.
        weights: weights read by these nodes by name (initializers and Constants), without
            gradient; a change in place changes what is computed.
        values: names of all values that a tap may replace: inputs and computed values.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        compute: torch.dtype | None = None,
    ) -> None:
        """Cut the nodes out and read their weights; the model is left as it is.

        Args:
            model: any model; its nodes are called by name, functions are inlined.
            inputs: names of values of the main graph that will be fed; everything the outputs
                need besides them must be weights.
            outputs: names of values of the main graph to compute.
            compute: the type that takes the place of float16, bfloat16, float32 and float64 in
                weights, feeds and casts; None keeps each. ``torch.float64`` for checks of
                gradients, ``torch.float32`` to learn on a float16 model.

        Raises:
            UnsupportedGraph: an operator is not in the table; a value is needed that is neither
                among the inputs nor a weight; a type torch does not have.
            UsageError: no value of the main graph has the name given.
        """
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._compute = compute
        flat = _inlined(model)
        named = _values(flat.graph)
        for name in (*inputs, *outputs):
            if name not in named:
                raise UsageError(_unknown(name, named))
        nodes, weights = _needed(named, self.inputs, self.outputs)
        self.weights: dict[str, torch.Tensor] = {
            value.name or "": tensor_of(read_weight(value), weight_tensor(value).dtype, compute)
            for value in weights
        }
        self._steps = _steps(flat, nodes, self.outputs, compute)
        self.values = frozenset(self.inputs) | {
            name for step in self._steps for name in step.gives if name
        }

    def __call__(
        self,
        feeds: Mapping[str, torch.Tensor],
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        taps: Mapping[str, Tap] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the outputs.

        Args:
            feeds: a tensor per name in ``inputs``.
            weights: take the place of stored weights of these names, in any shape that the nodes
                accept; cast to the type of the stored ones, gradients flow through.
            taps: per name of a value, a function whose result takes the value's place as soon as
                it is fed or computed, for all its readers and as an output.

        Returns:
            A tensor per name in ``outputs``.

        Raises:
            UsageError: a feed is missing, or a name in weights or taps is unknown.
            UnsupportedGraph: torch cannot compute a node on these shapes or types.
        """
        taps = taps or {}
        self._check(feeds, weights or {}, taps)
        alive: dict[str, torch.Tensor] = dict(self.weights)
        for name, tensor in (weights or {}).items():
            alive[name] = tensor.to(self.weights[name].dtype)
        for name in self.inputs:
            fed = feeds[name]
            if self._compute is not None and fed.is_floating_point():
                fed = fed.to(self._compute)
            alive[name] = taps[name](fed) if name in taps else fed
        for step in self._steps:
            results = _run(step, alive)
            for name, result in zip(step.gives, results, strict=False):
                if name and result is not None:
                    alive[name] = taps[name](result) if name in taps else result
            for name in step.done:
                del alive[name]
        return {name: alive[name] for name in self.outputs}

    def _check(
        self,
        feeds: Mapping[str, torch.Tensor],
        weights: Mapping[str, torch.Tensor],
        taps: Mapping[str, Tap],
    ) -> None:
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise UsageError(
                f"The input {missing[0]!r} is not fed. Feed: {', '.join(self.inputs)}."
            )
        for what, given, known in (("weight", weights, self.weights), ("value", taps, self.values)):
            for name in given:
                if name not in known:
                    near = nearest_word(name, known)
                    hint = f" Did you mean {near!r}?" if near else ""
                    raise UsageError(f"The sub-graph has no {what} named {name!r}.{hint}")


def _inlined(model: ir.Model) -> ir.Model:
    """The model without calls of functions; operators of the table are kept as they are."""
    if not model.functions:
        return model
    copy = clone_model(model)
    InlinePass()(copy)
    return copy


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {value.name: value for value in graph.inputs if value.name}
    found |= dict(graph.initializers)
    found |= {value.name: value for node in graph for value in node.outputs if value.name}
    return found


def _unknown(name: str, named: Mapping[str, ir.Value]) -> str:
    near = nearest_word(name, named)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"The main graph has no value named {name!r}.{hint} Take the names from the model."


def _needed(
    named: Mapping[str, ir.Value], inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that give the outputs, each after those it reads, and the weights they read."""
    fed = {named[name] for name in inputs}
    order: dict[ir.Node, None] = {}
    weights: dict[ir.Value, None] = {}
    stack: list[tuple[ir.Node, Iterator[ir.Value | None]]] = []
    open_nodes: set[ir.Node] = set()

    def visit(value: ir.Value | None, reader: ir.Node | None) -> None:
        if value is None or value in fed or not value.name:
            return
        if is_weight(value):
            weights[value] = None
            return
        node = value.producer()
        if node is None:
            raise UnsupportedGraph(_unfed(value, reader, inputs))
        if node not in open_nodes:
            _check_known(node)
            open_nodes.add(node)
            stack.append((node, iter(node.inputs)))

    for name in outputs:
        visit(named[name], None)
        while stack:
            node, rest = stack[-1]
            following = next((value for value in rest if value is not None), None)
            if following is None:
                order[node] = None
                stack.pop()
            else:
                visit(following, node)
    return list(order), list(weights)


def _unfed(value: ir.Value, reader: ir.Node | None, inputs: Sequence[str]) -> str:
    where = f", read by node {reader.name!r} ({reader.op_type})" if reader is not None else ""
    return (
        f"The outputs need {value.name!r}{where}, which is an input of the model and not among the "
        f"inputs of the sub-graph ({', '.join(inputs) or 'none'}). Add it to the inputs, or choose "
        "inputs that lie after it."
    )


def _check_known(node: ir.Node) -> None:
    if operator_of(node) is not None and not any(bodies(node)):
        return
    graph = node.graph
    opset = graph.opset_imports.get(node.domain) if graph is not None else None
    what = f"{node.op_type} (domain {node.domain or 'ai.onnx'!r}, opset {opset})"
    if any(bodies(node)):
        raise UnsupportedGraph(
            f"{what} at node {node.name!r} has graphs inside, which are not run in torch. Choose "
            "inputs that lie after it, or fold it away first (pass fold_constants)."
        )
    raise UnsupportedGraph(
        f"{what} at node {node.name!r} is not among the operators that run in torch. Choose inputs "
        "and outputs that leave this node out, or rewrite it in standard operators first."
    )


def _steps(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    outputs: Sequence[str],
    compute: torch.dtype | None,
) -> list[_Step]:
    """The nodes ready to run; each names what nobody reads after it."""
    last: dict[str, int] = {}
    for at, node in enumerate(nodes):
        for value in (*node.outputs, *node.inputs):
            if value is not None and value.name and not is_weight(value):
                last[value.name] = at
    read = {value.name for node in nodes for value in node.inputs if value is not None}
    kept = set(outputs)
    steps = []
    for at, node in enumerate(nodes):
        function = operator_of(node)
        if function is None:
            raise UnsupportedGraph(f"Node {node.name!r} has no operator in torch.")
        gives = tuple(v.name or "" for v in node.outputs)
        wanted = tuple(name in read or name in kept for name in gives)
        mentioned = {v.name for v in (*node.inputs, *node.outputs) if v is not None and v.name}
        call = Call(
            node=node,
            opset=model.opset_imports.get(node.domain, 1),
            attributes={name: attribute.value for name, attribute in node.attributes.items()},
            wanted=wanted,
            compute=compute,
        )
        done = tuple(n for n in mentioned if last.get(n) == at and n not in kept and n is not None)
        reads = tuple(None if v is None or not v.name else v.name for v in node.inputs)
        gives = tuple(n if want else "" for n, want in zip(gives, wanted, strict=True))
        alive_done = tuple(n for n in done if n in gives or n in reads)
        steps.append(_Step(call, function, reads, gives, alive_done))
    return steps


def _run(step: _Step, alive: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    arguments = [None if name is None else alive[name] for name in step.reads]
    try:
        result = step.compute(step.call, *arguments)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        shapes = ", ".join("-" if x is None else f"{x.dtype} {list(x.shape)}" for x in arguments)
        raise step.call.refusal(f"on inputs {shapes} torch says: {error}") from error
    return result if isinstance(result, tuple) else (result,)
