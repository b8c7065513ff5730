"""What every test of a prepare pass does: build a graph from text, run the pass, judge it."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.check import check_graph
from onnxq.graph.opset import infer_shapes
from onnxq.graph.walk import walk_nodes
from onnxq.passes.base import Context
from onnxq.passes.promise import PromiseKeeper


def _build(text, opset=21, ir_version=10, **weights):
    """A graph in ONNX text syntax; arrays given by name become initializers of the main graph."""
    own = ', "com.microsoft" : 1' if "com.microsoft" in text else ""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{own}]>\n'
    model = ir.from_onnx_text(head + text)
    for name, array in weights.items():
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
        value.shape, value.dtype = ir.Shape(value.const_value.shape), value.const_value.dtype
        for _, node in walk_nodes(model):
            for index, other in enumerate(node.inputs):
                if other is not None and other.name == name:
                    node.replace_input_with(index, value)
        model.graph.register_initializer(value)
    for index, (_, node) in enumerate(walk_nodes(model)):
        node.name = node.name or f"{node.op_type}_{index}"
    infer_shapes(model)
    return model


def _judge(model, step, *samples, modified=True):
    """Run ``step``; check its promise on the samples, the graph, and that a second run rests."""
    names = [[value.name for value in side] for side in (model.graph.inputs, model.graph.outputs)]
    keeper = PromiseKeeper(model, samples)
    report = step.call(model, Context())
    check_graph(model)
    keeper.check(step.key(), step.promise, model)
    sides = (model.graph.inputs, model.graph.outputs)
    assert [[value.name for value in side] for side in sides] == names
    assert report.modified is modified
    assert step.call(model, Context()).modified is False
    return report


def _kinds(model):
    return [node.op_type for _, node in walk_nodes(model)]


@pytest.fixture
def build():
    return _build


@pytest.fixture
def judge():
    return _judge


@pytest.fixture
def kinds():
    return _kinds


def _tiny_decoder(layers=2, width=16, heads=2, kv_heads=1, hidden=24, biased=False, seed=0):
    """A pre-norm decoder without cache, its sites MatMul (and Add): x [2, 6, width] → y."""
    rng = np.random.default_rng(seed)
    head = width // heads
    weights = {
        "to_q": np.array([0, 0, heads, head], np.int64),
        "to_kv": np.array([0, 0, kv_heads, head], np.int64),
        "join": np.array([0, 0, width], np.int64),
        "one": np.array([2], np.int64),
        "repeat": np.array([2, kv_heads, heads // kv_heads, 6, head], np.int64),
        "spread": np.array([2, heads, 6, head], np.int64),
    }
    lines, x = [], "x"

    def linear(name, given, inputs, outputs):
        scale = rng.uniform(0.3, 2.0, (inputs, 1)) / np.sqrt(inputs)
        weights[f"w_{name}"] = (rng.standard_normal((inputs, outputs)) * scale).astype(np.float32)
        if not biased:
            return f"{name} = MatMul (given_{name}, w_{name})".replace(f"given_{name}", given)
        weights[f"b_{name}"] = rng.standard_normal(outputs).astype(np.float32)
        return f"m_{name} = MatMul ({given}, w_{name})  {name} = Add (m_{name}, b_{name})"

    def repeated(name, i):
        return (
            f"{name}r{i} = Reshape ({name}{i}, to_kv)"
            f"  {name}t{i} = Transpose <perm = [0, 2, 1, 3]> ({name}r{i})"
            f"  {name}u{i} = Unsqueeze ({name}t{i}, one)  {name}x{i} = Expand ({name}u{i}, repeat)"
            f"  {name}e{i} = Reshape ({name}x{i}, spread)"
        )

    for i in range(layers):
        for norm in ("n", "f"):
            weights[f"g_{norm}{i}"] = rng.uniform(0.2, 3.0, width).astype(np.float32)
            weights[f"c_{norm}{i}"] = rng.standard_normal(width).astype(np.float32)
        kv = kv_heads * head
        lines += [
            f"n{i} = LayerNormalization <axis = -1> ({x}, g_n{i}, c_n{i})",
            linear(f"q{i}", f"n{i}", width, width),
            linear(f"k{i}", f"n{i}", width, kv),
            linear(f"v{i}", f"n{i}", width, kv),
            f"qr{i} = Reshape (q{i}, to_q)  qt{i} = Transpose <perm = [0, 2, 1, 3]> (qr{i})",
            repeated("k", i),
            repeated("v", i),
            f"kh{i} = Transpose <perm = [0, 1, 3, 2]> (ke{i})",
            f"s{i} = MatMul (qt{i}, kh{i})  p{i} = Softmax <axis = -1> (s{i})",
            f"t{i} = MatMul (p{i}, ve{i})",
            f"tt{i} = Transpose <perm = [0, 2, 1, 3]> (t{i})  o_in{i} = Reshape (tt{i}, join)",
            linear(f"o{i}", f"o_in{i}", width, width),
            f"r{i} = Add ({x}, o{i})",
            f"f{i} = LayerNormalization <axis = -1> (r{i}, g_f{i}, c_f{i})",
            linear(f"gate{i}", f"f{i}", width, hidden),
            linear(f"up{i}", f"f{i}", width, hidden),
            f"a{i} = Sigmoid (gate{i})  z{i} = Mul (gate{i}, a{i})  h{i} = Mul (z{i}, up{i})",
            linear(f"down{i}", f"h{i}", hidden, width),
            f"y{i} = Add (r{i}, down{i})",
        ]
        x = f"y{i}"
    lines.append(f"y = Identity ({x})")
    text = f"main (float[2, 6, {width}] x) => (float[2, 6, {width}] y) {{ {'  '.join(lines)} }}"
    return _build(text, **weights)


@pytest.fixture
def tiny_decoder():
    return _tiny_decoder
