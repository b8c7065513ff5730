"""describe: plain data that json takes, and numbers that can be checked by hand."""

import json

import numpy as np

from onnxq.graph.describe import describe


def small(written):
    return written(
        """g (float[N,4] x, float s, float w, float b, int8 q, float d, int64 at)
        => (float[N,3] y) {
            n = LayerNormalization(x, s)
            h = MatMul(n, w)
            hb = Add(h, b)
            r = Relu(hb)
            dq = DequantizeLinear(q, d)
            z = MatMul(r, dq)
            k = com.microsoft.QuickGelu(z)
            y = Gather<axis=1>(k, at)
        }""",
        s=(4,),
        w=(4, 6),
        b=(6,),
        q=np.ones((6, 3), np.int8),
        d=np.array(0.5, np.float32),
        at=np.array([0, 1, 2]),
    )


def test_the_description_is_json_and_complete(written):
    found = json.loads(json.dumps(describe(small(written)), allow_nan=False))
    assert found["inputs"] == [{"name": "x", "dtype": "float", "shape": ["N", 4]}]
    assert found["outputs"] == [{"name": "y", "dtype": "float", "shape": ["N", 3]}]
    assert found["opsets"] == {"ai.onnx": 21, "com.microsoft": 1} and found["ir_version"] == 10
    assert found["parameters"] == 4 + 24 + 6 + 18 + 1
    assert found["weight_bytes"] == 4 * (4 + 24 + 6 + 1) + 18 + 8 * 3
    assert found["weights_by_dtype"] == {"float": 140, "int8": 18, "int64": 24}
    assert found["operators"]["com.microsoft::QuickGelu"] == 1
    assert found["operators"]["MatMul"] == 2 and found["nodes"] == 8
    assert found["stage"] == "FLOAT" and found["norms"] == {"LayerNorm": 1}


def test_one_row_for_each_site(written):
    model = small(written)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    first, second = describe(model)["sites"]
    assert (first["name"], first["shape"], first["in_axis"], first["out_axis"]) == (
        "n1",
        [4, 6],
        0,
        1,
    )
    assert (first["bias"], first["norm"], first["dtype"]) == ("b", "n0", "float")
    assert first["already"] is None and first["refusal"] is None
    assert second["already"] == "int8 behind DequantizeLinear"
    assert second["via"] == ["DequantizeLinear"]
    assert describe(model)["mlps"] == [
        {"gate": None, "up": "n1", "down": "n5", "activation": "ReLU"}
    ]


def test_no_weight_data_is_read(written):
    """Any tensor of more than a few elements must stay untouched."""
    import onnx_ir as ir

    def explode():
        raise AssertionError("the weight was read")

    model = small(written)
    value = model.graph.initializers["w"]
    value.const_value = ir.LazyTensor(
        explode, dtype=ir.DataType.FLOAT, shape=ir.Shape((4, 6)), name="w"
    )
    assert describe(model)["parameters"] == 53
