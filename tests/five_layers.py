"""Five products with Relu between them, and a form of them with one weight broken on purpose."""

import numpy as np
import onnx_ir as ir

from onnxq.graph import read_weight, replace_weight

SITES = [f"layer_{number}" for number in range(5)]


def five_layers(seed: int = 0) -> ir.Model:
    """x [n, 64] → y [n, 64] by the sites `SITES`."""
    lines = [
        f"h{number} = MatMul({'x' if number == 0 else f'r{number - 1}'}, w{number}) "
        f"r{number} = Relu(h{number})"
        for number in range(4)
    ]
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (float[n, 64] x) => (float[n, 64] y)"
        "{" + " ".join(lines) + " y = MatMul(r3, w4) }"
    )
    rng = np.random.default_rng(seed)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    for number, node in enumerate(products):
        value = node.inputs[1]
        weight = rng.standard_normal((64, 64)).astype(np.float32) / 8
        value.const_value = ir.tensor(weight, name=value.name)
        value.shape, value.dtype = ir.Shape((64, 64)), value.const_value.dtype
        model.graph.register_initializer(value)
        node.name = SITES[number]
    return model


def with_noise(model: ir.Model, sizes: dict[str, float], seed: int = 1) -> ir.Model:
    """A copy whose weights at the sites named are changed by noise of a relative size."""
    copy = model.clone()
    rng = np.random.default_rng(seed)
    for node in copy.graph:
        size = sizes.get(node.name)
        if size:
            weight = read_weight(node.inputs[1])
            noise = rng.standard_normal(weight.shape).astype(np.float32) * weight.std()
            changed = weight + np.float32(size) * noise
            replace_weight(
                node.inputs[1],
                shape=weight.shape,
                dtype=ir.DataType.FLOAT,
                compute=lambda array=changed: array,
            )
    return copy


def five_samples(count: int = 2, seed: int = 5) -> list[dict[str, np.ndarray]]:
    """Inputs of `five_layers`."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((16, 64)).astype(np.float32)} for _ in range(count)]
