"""The plan of activations counts what is alive at once, and is what ONNX Runtime takes."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.export.memory_plan import memory_plan
from onnxq.graph import load, save
from onnxq.runtime.peak_memory import peak_memory

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
main (float[n, 1024] x, float[1024, 1024] w) => (float[n, 1024] y) {
  a = MatMul(x, w) b = Softmax(a) c = MatMul(b, w) d = Add(c, a) e = MatMul(d, w)
  f = Relu(e) y = Add(f, a)
}
"""
WIDTH = 1024


@pytest.fixture
def network(tmp_path):
    return save(ir.from_onnx_text(TEXT), tmp_path / "model.onnx")


def test_what_is_alive_at_once_is_counted(network):
    plan = memory_plan(load(network), {"n": 2048})
    row = 2048 * WIDTH * 4
    # a is kept for the end; at the second product b and c are there too, and later no more than d
    # and e: Relu and the Adds write in place.
    assert (plan.peak, plan.unknown) == (3 * row, ())
    assert plan.at == next(node.name for node in load(network).graph if node.inputs[0].name == "b")
    assert dict(plan.alive) == {"a": row, "b": row, "c": row}


def test_views_and_operators_of_other_domains_are_sized():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
        "main (float[n, 64] x, uint8[32, 2, 16] b, float[64] s, int64[2] shape) => (float y) {"
        "h = com.microsoft.MatMulNBits<K = 64, N = 32, bits = 4, block_size = 32>(x, b, s)"
        "r = Reshape(h, shape) t = Exp(h) y = ReduceSum<keepdims = 0>(t) }"
    )
    plan = memory_plan(load(model), {"n": 10})
    assert (plan.peak, plan.unknown) == (10 * 32 * 4 + 4, ())  # one buffer, and the sum


def test_a_dimension_without_a_size_is_told(network):
    with pytest.raises(UnsupportedGraph, match="'x' has a dimension 'n' without a size"):
        memory_plan(load(network))


def test_onnxruntime_takes_what_is_planned(network):
    rows = 8192
    weight = np.eye(WIDTH, dtype=np.float32)

    def peak(count):
        x = np.ones((count, WIDTH), np.float32)
        found = peak_memory(network, [{"x": x, "w": weight}], threads=1, lean=True)
        return found.peak - found.loaded

    inputs = (rows - 1) * WIDTH * 4
    planned = memory_plan(load(network), {"n": rows}).peak
    # Pages, the allocator and the kernels' own buffers: 1 MB was seen, of 96.
    assert abs(peak(rows) - peak(1) - inputs - planned) < 0.05 * planned
