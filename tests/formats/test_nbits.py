"""The MatMulNBits layout, judged by ONNX Runtime's own operator."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import FormatError
from onnxq.formats import (
    encode_matmul_nbits,
    matmul_nbits_block,
    matmul_nbits_layout,
    parse_format,
)
from onnxq.numerics.rounding import MSE_GRID
from onnxq.runtime import open_session

NAMES = [
    f"int{bits}{span}{asym}"
    for bits in (2, 4, 8)
    for span in ("_g16", "_g32", "_g128", "_channel", "_tensor")
    for asym in ("", "_asym")
]
SHAPES = [(1, 16), (7, 32), (33, 50), (64, 300), (5, 129)]


def model_of(tensors, rows, columns, bits, block):
    names = [name for name in ("B", "scales", "zero_points") if tensors[name] is not None]
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        nbits (float[M, {columns}] A) => (float[M, {rows}] Y) {{
            Y = com.microsoft.MatMulNBits <K = {columns}, N = {rows}, bits = {bits},
                block_size = {block}, accuracy_level = 0> (A, {", ".join(names)})
        }}"""
    )
    node = model.graph[0]
    for index, name in enumerate(names, 1):
        value = node.inputs[index]
        value.const_value = ir.tensor(tensors[name], name=name)
        value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
        model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_multiplies_by_what_decode_says(name):
    fmt = parse_format(name)
    rng = np.random.default_rng(0)
    for rows, columns in SHAPES:
        w = rng.standard_normal((rows, columns)).astype(np.float32)
        arrays = fmt.encode(w)
        tensors = matmul_nbits_layout(arrays, fmt)
        block = matmul_nbits_block(fmt, columns)
        a = rng.standard_normal((3, columns)).astype(np.float32)
        with open_session(model_of(tensors, rows, columns, fmt.bits, block), threads=1) as session:
            got = session.run({"A": a})["Y"]
        decoded = fmt.decode(arrays)
        exact = a.astype(np.float64) @ decoded.T.astype(np.float64)
        # Any order of a float32 dot product of n terms errs by at most n * 2^-24 * sum |a w|, and
        # the kernel may apply the zero point after the sum: its terms are codes, not differences.
        codes_size = np.abs(decoded) + (0 if fmt.symmetric else 1) * np.abs(
            fmt.spread(arrays["scales"], w.shape) * fmt.highest
        )
        bound = (columns + 4) * 2.0**-24 * (np.abs(a) @ (codes_size + np.abs(decoded)).T)
        assert (np.abs(got - exact) <= bound).all()


@pytest.mark.parametrize("name", [*NAMES, "int4_g64_asym_f16", "int4_g32_pos"])
@pytest.mark.parametrize("shrink", ((1.0,), MSE_GRID), ids=("minmax", "mse"))
def test_the_direct_way_gives_the_same_bytes(name, shrink):
    fmt = parse_format(name)
    rng = np.random.default_rng(1)
    for rows, columns in SHAPES:
        kn = rng.standard_normal((columns, rows)).astype(np.float32)
        wanted = matmul_nbits_layout(fmt.encode(kn.T, shrink=shrink), fmt)
        got = encode_matmul_nbits(kn.T, fmt, shrink=shrink, threads=2)
        for key, array in wanted.items():
            if array is None:
                assert got[key] is None
                continue
            assert got[key].dtype == array.dtype and got[key].shape == array.shape
            assert got[key].tobytes() == array.tobytes()
        if got["squares"] is not None:
            gap = fmt.decode(fmt.encode(kn.T, shrink=shrink)) - kn.T
            assert got["squares"][0].sum() == pytest.approx(
                np.sum(gap.astype(float) ** 2), rel=1e-4
            )


def test_blocks():
    assert matmul_nbits_block(parse_format("int4_g64"), 999) == 64
    assert matmul_nbits_block(parse_format("int8_channel"), 4096) == 128
    assert matmul_nbits_block(parse_format("int8_channel"), 40) == 64
    assert matmul_nbits_block(parse_format("int8_channel"), 3) == 16


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("int3_g32", "2, 4 or 8 bits, and int3_g32 has 3"),
        ("int4_g24", "powers of two from 16 up, and int4_g24 has 24"),
        ("int4_g8", "powers of two from 16 up"),
        ("int4_b32x32", "shares one among rows"),
    ],
)
def test_what_the_operator_cannot_hold_is_refused(name, sentence):
    with pytest.raises(FormatError, match=sentence):
        encode_matmul_nbits(np.ones((4, 64), np.float32), parse_format(name))
