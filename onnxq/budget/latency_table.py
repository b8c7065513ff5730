"""How long a site takes in a format, measured here: one operator alone, by the kernel it will run.

A model of one node is quantized by the very pass that will quantize the site and timed on random
activations of the shape that the site reads in the first sample. Times are kept in a table in the
user's cache, by machine, runtime, shape and format. What remains of a run (attention, norms, the
table of embeddings) is the float model less the sum of its float sites.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.budget.menu import FLOAT, SiteMenu
from onnxq.evaluate.latency import latency
from onnxq.graph.sites import Site
from onnxq.graph.weights import weight_tensor
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.recipe import Recipe
from onnxq.passes.runner import run_recipe
from onnxq.passes.weight_layout import weight_of, weight_type
from onnxq.runtime import open_session
from onnxq.runtime.measured_table import MeasuredTable

__all__ = ["site_latencies"]

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]

_SECONDS, _RUNS = 0.1, 10
"""A measurement ends after so many seconds, but not before so many runs."""
_ROUNDS = 20


def site_latencies(
    model: ir.Model,
    sample: Mapping[str, Array],
    sites: Sequence[Site],
    menus: Mapping[str, SiteMenu],
    step: QuantizeWeights,
    *,
    table: MeasuredTable | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, dict[str, float]], float]:
    """Microseconds of every option of every site, in float too, and milliseconds of a float run.

    Args:
        model: the float model as the quantizing pass will find it.
        sample: the inputs of one run.
        sites: those of its main graph that have a menu.
        menus: by name of the site.
        step: the pass that will quantize them.
        table: times known already; the one in the cache when None.
        progress: called with (what, done, total).

    Raises:
        OnnxqError: the runtime does not run the model or a node of it.
    """
    table = table or MeasuredTable("budget/latency")
    names = list(dict.fromkeys(site.input.name or "" for site in sites if site.input))
    with open_session(model, extra_outputs=[n for n in names if n not in sample]) as session:
        feeds = {spec.name: sample[spec.name] for spec in session.inputs}
        found = {**feeds, **session.run(feeds)}
    shapes = {name: found[name].shape for name in names}
    times: dict[str, dict[str, float]] = {}
    for number, site in enumerate(sites):
        if progress is not None:
            progress("latency of formats", number, len(sites))
        shape = shapes[(site.input.name or "") if site.input else ""]
        times[site.name] = {
            name: table.get(_key(site, shape, name, step), _timer(site, shape, name, step))
            for name in dict.fromkeys((*menus[site.name].formats, FLOAT))
        }
    whole = latency([model], [sample], rounds=_ROUNDS).spreads[0].median * 1e3
    return times, whole


def _key(site: Site, shape: tuple[int, ...], fmt: str, step: QuantizeWeights) -> str:
    attributes = {name: str(a.value) for name, a in site.node.attributes.items()}
    how = (site.kind, list(site.shape), list(shape), attributes, weight_type(site).name)
    return json.dumps([*how, fmt, step.write, step.accuracy_level])


def _timer(
    site: Site, shape: tuple[int, ...], fmt: str, step: QuantizeWeights
) -> Callable[[], float]:
    def measure() -> float:
        model = _one_node(site, shape)
        if fmt != FLOAT:
            plain = dataclasses.replace(
                step,
                format=fmt,
                overrides={},
                exclude=(),
                data_free=(),
                solver="nearest",
                solver_options={},
                search=None,
                refit_scales=False,
                keep_columns=0,
                correct_bias=False,
            )
            recipe = Recipe(name="one node", steps=(plain,))
            model = run_recipe(model, recipe, check="off").model
        x = np.random.default_rng(0).standard_normal(shape).astype(weight_type(site).numpy())
        with open_session(model) as session:
            return _median_us(lambda: session.run({"x": x}))

    return measure


def _one_node(site: Site, shape: tuple[int, ...]) -> ir.Model:
    """A model of the node of a site alone, with a random weight."""
    weight, dtype = weight_tensor(weight_of(site)), weight_type(site)
    stored = np.random.default_rng(1).standard_normal(tuple(weight.shape.numpy()))
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(shape))
    w = ir.Value(
        name="w",
        type=ir.TensorType(dtype),
        shape=ir.Shape(stored.shape),
        const_value=ir.tensor(stored.astype(dtype.numpy()), name="w"),
    )
    attributes = {name: a for name, a in site.node.attributes.items() if name != "beta"}
    order = [x, w] if site.weight_index == 1 else [w, x]
    read: ir.Value = w
    nodes = []
    for via in reversed(site.via):
        nodes.append(ir.Node("", via.op_type, [read], list(via.attributes.values()), name=via.name))
        read = nodes[-1].outputs[0]
        read.name = f"w_{len(nodes)}"
    order[site.weight_index] = read
    node = ir.Node("", site.kind, order, list(attributes.values()), name="site")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(dtype)
    graph = ir.Graph([x], [node.outputs[0]], nodes=[*nodes, node], initializers=[w], name="site")
    opset = site.node.graph.opset_imports if site.node.graph is not None else {"": 21}
    graph.opset_imports.update({"": opset.get("", 21)})
    return ir.Model(graph, ir_version=10)


def _median_us(run: Callable[[], Any]) -> float:
    for _ in range(3):
        run()
    seconds: list[float] = []
    while len(seconds) < _RUNS or (sum(seconds) < _SECONDS and len(seconds) < 1000):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1e6
