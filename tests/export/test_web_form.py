"""MatMulNBits in standard operators computes what ONNX Runtime's kernel computes."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.export.web_form import blocks_refusal, spell_out_blocks
from onnxq.formats import matmul_nbits_layout, parse_format
from onnxq.graph import add_weight
from onnxq.runtime import open_session

ROWS = 24


def weight_value(model, name, array):
    dtype = ir.DataType.from_numpy(array.dtype)
    return add_weight(model.graph, name, shape=array.shape, dtype=dtype, compute=array)


def model_of(fmt, columns, *, bias=False, opset=21):
    """y = MatMulNBits(x, codes of a random weight [, bias]), and the weight they stand for."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((ROWS, columns)).astype(np.float32)
    fmt = parse_format(fmt)
    encoded = fmt.encode(weight)
    layout = matmul_nbits_layout(encoded, fmt)
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
        f"main (float[n, {columns}] x) => (float[n, {ROWS}] y) {{ y = Identity(x) }}"
    )
    (old,) = list(model.graph)
    added = draw.standard_normal(ROWS).astype(np.float32) if bias else None
    arrays = (layout["B"], layout["scales"], layout["zero_points"], None, added)
    names = ("B", "scales", "zeros", "g_idx", "bias")
    inputs = [
        None if array is None else weight_value(model, name, array)
        for name, array in zip(names, arrays, strict=True)
    ]
    node = ir.node(
        "MatMulNBits", [model.graph.inputs[0], *inputs], domain="com.microsoft", name="product",
        attributes={"K": columns, "N": ROWS, "bits": fmt.bits, "accuracy_level": 0,
                    "block_size": fmt.granularity.size},
    )  # fmt: skip
    y = old.outputs[0]
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [node], [y], [node.outputs[0]])
    node.outputs[0].name = "y"
    node.outputs[0].shape, node.outputs[0].type = y.shape, y.type
    return model, fmt.decode(encoded)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("fmt", "columns"),
    [("int4_g32", 96), ("int4_g32_asym", 96), ("int2_g64_asym", 192), ("int8_g16", 80),
     ("int4_g32_asym", 70), ("int8_g32_asym", 33)],
)  # fmt: skip
def test_the_function_stays(fmt, columns, bias):
    model, weight = model_of(fmt, columns, bias=bias)
    x = np.random.default_rng(1).standard_normal((3, columns)).astype(np.float32)
    with open_session(model) as session:
        kernel = session.run({"x": x})["y"]
    assert spell_out_blocks(model) == 1
    assert spell_out_blocks(model) == 0
    assert {node.op_type for node in model.graph} >= {"DequantizeBlocks", "MatMul"}
    with open_session(model) as session:
        spelled = session.run({"x": x})["y"]
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias:
        exact += model.graph.initializers["bias"].const_value.numpy()
    # Of K products, each of a relative error of half a unit, and the roundings of their sum.
    bound = (columns + 2) * 2.0**-24 * (np.abs(x) @ np.abs(weight).T).max()
    assert np.abs(spelled - exact).max() <= bound
    assert np.abs(spelled - kernel).max() <= 2 * bound


def test_what_stays_and_why():
    model, _ = model_of("int4_g32", 96)
    (node,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    node.replace_input_with(4, weight_value(model, "order", np.arange(96, dtype=np.int32)))
    assert blocks_refusal(model, node) == "it has an order of columns (g_idx)"
    assert spell_out_blocks(model) == 0
    old, _ = model_of("int4_g32", 96, opset=17)
    (node,) = [node for node in old.graph if node.op_type == "MatMulNBits"]
    assert "opset 17" in blocks_refusal(old, node)
