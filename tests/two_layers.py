"""A model that is small enough to write down: two products with a Relu between them."""

import numpy as np
import onnx_ir as ir


def two_layers(rng: np.random.Generator) -> ir.Model:
    """x [n, 64] → y [n, 64] by ``linear_w0`` and ``linear_w1``, with weights drawn from ``rng``."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 64] x) => (float[n, 64] y)"
        "{ h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }"
    )
    for node, name in zip([model.graph[0], model.graph[2]], ["w0", "w1"], strict=True):
        value = node.inputs[1]
        value.const_value = ir.tensor(rng.standard_normal((64, 64)).astype(np.float32), name=name)
        value.shape, value.dtype = ir.Shape((64, 64)), value.const_value.dtype
        model.graph.register_initializer(value)
        node.name = f"linear_{name}"
    return model
