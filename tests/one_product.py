"""The smallest model with a weight: one product."""

import numpy as np
import onnx_ir as ir


def one_product() -> ir.Model:
    """x [n, 64] → y [n, 64] by ``w``, drawn from a normal distribution."""
    built = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        "main (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { y = MatMul (x, w) }"
    )
    w = built.graph.inputs.pop()
    w.const_value = ir.tensor(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    built.graph.register_initializer(w)
    return built
