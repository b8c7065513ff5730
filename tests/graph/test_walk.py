"""Every graph and node is visited once, under a path of its own."""

import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.graph import (
    check_graph,
    load,
    name_nodes,
    site_name,
    sort_graphs,
    walk_graphs,
    walk_nodes,
    walk_weights,
)
from onnxq.graph.check import find_cycle

NESTED = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (bool c, float[4] x) => (float[4] y) {
    [call] a = local.scale (x)
    [outer] y = If (c) <
        then_branch = t () => (float[4] u) {
            [inner] u = If (c) <
                then_branch = tt () => (float[4] p) { [deep] p = Neg (a) },
                else_branch = te () => (float[4] q) { [deeper] q = Abs (a) }>
        },
        else_branch = e () => (float[4] v) <float[4] w = {1, 2, 3, 4}> { [add] v = Add (x, w) }>
}
<domain: "local", opset_import: ["" : 21]> scale (p) => (q) {
    [two] two = Constant <value = float {2}> ()
    [mul] q = Mul (p, two)
}"""


@pytest.fixture
def model() -> ir.Model:
    return ir.from_onnx_text(NESTED)


def test_graphs_and_paths(model: ir.Model) -> None:
    assert [path for path, _ in walk_graphs(model)] == [
        "",
        "outer/then_branch",
        "outer/then_branch/inner/then_branch",
        "outer/then_branch/inner/else_branch",
        "outer/else_branch",
        "local::scale",
    ]


def test_nodes_and_sites(model: ir.Model) -> None:
    assert [site_name(path, node) for path, node in walk_nodes(model)] == [
        "call",
        "outer",
        "outer/then_branch/inner",
        "outer/then_branch/inner/then_branch/deep",
        "outer/then_branch/inner/else_branch/deeper",
        "outer/else_branch/add",
        "local::scale/two",
        "local::scale/mul",
    ]


def test_a_graph_may_be_edited_while_its_nodes_are_walked(model: ir.Model) -> None:
    seen = []
    for _, node in walk_nodes(model):
        seen.append(node.name)
        graph = node.graph
        assert graph is not None
        extra = ir.node("Identity", [node.outputs[0]], name=f"{node.name}_extra")
        extra.outputs[0].name = f"{node.outputs[0].name}_extra"
        graph.insert_after(node, extra)
    assert len(seen) == 8


def test_weights_everywhere(model: ir.Model) -> None:
    assert [(path, value.name) for path, value in walk_weights(model)] == [
        ("outer/else_branch", "w"),
        ("local::scale", "two"),
    ]


def test_a_well_formed_model_passes(model: ir.Model) -> None:
    check_graph(model)
    assert not name_nodes(model)
    assert not sort_graphs(model)


def test_node_names_are_repaired_once(model: ir.Model) -> None:
    for _, node in walk_nodes(model):
        node.name = "twin"
    with pytest.raises(UnsupportedGraph, match="two nodes are named 'twin'"):
        check_graph(model)
    check_graph(model, node_names=False)
    assert name_nodes(model)
    assert not name_nodes(model)
    assert len({node.name for _, node in walk_nodes(model)}) == 8
    check_graph(model)


def test_a_body_that_reads_a_later_node_is_out_of_order(model: ir.Model) -> None:
    call, outer = model.graph.node("call"), model.graph.node("outer")
    model.graph.remove(call)
    model.graph.insert_after(outer, call)
    with pytest.raises(
        UnsupportedGraph, match=r"'deep' \(Neg\) in outer/then_branch/inner/then_branch reads 'a'"
    ):
        check_graph(model)
    assert sort_graphs(model)
    check_graph(model)


def test_a_cycle_through_a_body(model: ir.Model) -> None:
    call, outer = model.graph.node("call"), model.graph.node("outer")
    call.replace_input_with(0, outer.outputs[0])
    assert {node.name for node in find_cycle(model.graph)} == {"call", "outer"}
    with pytest.raises(UnsupportedGraph, match=r"the graph has a cycle: '.*'call'"):
        sort_graphs(model)


def test_a_long_chain_needs_no_recursion() -> None:
    lines = "\n".join(f"v{index + 1} = Neg (v{index})" for index in range(5000))
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1] v0) => (float[1] v5000) {{{lines}}}'
    )
    model = load(ir.from_onnx_text(text))
    assert find_cycle(model.graph) == []
    assert not sort_graphs(model)


def test_values_named_twice_by_a_pass(model: ir.Model) -> None:
    model.graph.node("call").outputs[0].name = "x"
    with pytest.raises(UnsupportedGraph, match=r"'x' is given twice: by graph input and by node"):
        check_graph(model)
