"""MatMulLut: kernels of every instruction set and the function against float64; refusals."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.matmul_lut import MATMUL_LUT, matmul_lut_reference
from onnxq.errors import OnnxqError
from onnxq.formats import parse_format
from onnxq.runtime import open_session
from tests.custom_ops.matmul_cases import (
    INSTRUCTIONS,
    UNIT,
    activations,
    draw,
    one_node_model,
    run,
)

CASES = [
    ("lut1", (9, 300)),
    ("lut2", (33, 70)),
    ("lut2_tensor", (1, 1)),
    ("lut2_g128", (14, 1290)),
    ("lut2_f16", (17, 203)),
    ("lut3", (75, 576)),
    ("lut3_g64", (10, 2100)),
    ("lut3_tensor", (5, 449)),
    ("lut3_g128_f16", (9, 333)),
    ("lut4", (40, 301)),
    ("lut4_g128", (7, 1100)),
    ("nf4_g64", (31, 200)),
    ("nf3_g128_f16", (12, 260)),
    ("fp4_g32", (12, 99)),
    ("fp3_g16", (13, 37)),
    ("power4_g16_f16", (6, 77)),
    ("post3_tensor", (33, 190)),
    ("twinlog4_g256", (3, 700)),
]


def arrays_of(name, shape, seed=0):
    """Every code, entries of the whole range, scales of both signs."""
    fmt = parse_format(name)
    rng = np.random.default_rng(seed)
    down, across = fmt.granularity.scales_shape(*shape)
    tables = (down, across) if fmt.learned else (1, 1)
    entries = rng.integers(-127, 127, (*tables, 2**fmt.bits), np.int8, endpoint=True)
    lut = np.sort(entries, axis=-1).astype(fmt.table_dtype)
    scales = rng.uniform(0.01, 0.1, (down, across)) * rng.choice([-1, 1], (down, across))
    if fmt.learned and fmt.table_dtype == "float16":
        scales = np.ones((1, 1))
    codes = rng.integers(0, 2**fmt.bits, shape, np.uint8)
    return fmt, {"codes": codes, "lut": lut, "scales": scales.astype(np.float16)}


def model_of(name, shape, **options):
    fmt, arrays = arrays_of(name, shape)
    return one_node_model(MATMUL_LUT, fmt, fmt.pack(arrays), shape, **options), fmt.decode(arrays)


def assert_close(y, x, weight, name):
    """Float32 adds exact sums of 64 columns or more, or products where nothing is rounded."""
    fmt = parse_format(name)
    bits = 8 if fmt.table_dtype == "int8" else 32
    wanted = matmul_lut_reference(x, weight, activation_bits=bits)
    mass = matmul_lut_reference(np.abs(x), np.abs(weight), activation_bits=bits)
    columns = weight.shape[1]
    chain = columns if bits == 32 else 4 * (columns / 64 + 4)
    assert y.shape == wanted.shape
    assert (np.abs(y - wanted) <= (chain + 4) * UNIT * mass).all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS[:-1])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_kernels_are_as_float64_says(instructions, name, shape):
    model, weight = model_of(name, shape)
    xs = activations(shape[1])
    for x, y in zip(xs, run(model, *xs, instructions=instructions), strict=True):
        assert_close(y, x, weight, name)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_function_is_the_same(name, shape):
    model, weight = model_of(name, shape)
    xs = activations(shape[1])
    fmt = parse_format(name)
    for x, y in zip(xs, run(model, *xs, custom_ops=False), strict=True):
        bits = 8 if fmt.table_dtype == "int8" else 32
        mass = matmul_lut_reference(np.abs(x), np.abs(weight), activation_bits=bits)
        wanted = matmul_lut_reference(x, weight, activation_bits=bits)
        assert (np.abs(y - wanted) <= (shape[1] + 4) * UNIT * mass).all()


@pytest.mark.parametrize("bits", (8, 32))
def test_int8_tables_take_rounded_and_float_activations(bits):
    shape = (33, 300)
    for name in ("lut3", "nf4_g32"):
        model, weight = model_of(name, shape)
        (node,) = model.graph
        node.attributes["activation_bits"] = ir.AttrInt64("activation_bits", bits)
        x = draw(7, 300)
        wanted = matmul_lut_reference(x, weight, activation_bits=bits)
        mass = np.abs(x) @ np.abs(weight).T
        for custom_ops in (True, False):
            y = run(model, x, custom_ops=custom_ops)
            assert (np.abs(y - wanted) <= 304 * UNIT * mass).all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS[:-1])
@pytest.mark.parametrize("name", ("lut3", "nf4_g32", "lut4_f16"))
def test_threads_give_the_same_bits(instructions, name):
    model, _ = model_of(name, (1037, 520))
    xs = [draw(1, 520), draw(130, 520)]
    first = run(model, *xs, instructions=instructions, threads=1)
    for threads in (2, 5):
        others = run(model, *xs, instructions=instructions, threads=threads)
        assert all(map(np.array_equal, others, first))


def test_a_format_is_encoded_packed_multiplied_and_unpacked():
    weight = draw(40, 192)
    for name in ("lut2", "lut3", "lut4", "nf4_g64", "lut3_f16"):
        fmt = parse_format(name)
        arrays = fmt.encode(weight)
        packed = fmt.pack(arrays)
        again = fmt.unpack(packed, weight.shape)
        assert all(np.array_equal(again[key], arrays[key]) for key in arrays)
        model = one_node_model(MATMUL_LUT, fmt, packed, weight.shape)
        x = draw(5, 192)
        assert_close(run(model, x), x, fmt.decode(arrays), name)


def test_float16_activations_are_widened_and_rounded_once():
    for name in ("lut4", "lut4_f16"):
        model, weight = model_of(name, (33, 200), dtype=ir.DataType.FLOAT16)
        x = draw(7, 200).astype(np.float16)
        bits = 32 if name.endswith("f16") else 8
        wanted = matmul_lut_reference(x, weight, activation_bits=bits)
        for custom_ops in (True, False):
            y = run(model, x, custom_ops=custom_ops)
            assert y.dtype == np.float16
            assert (np.abs(y - wanted) <= 2.0**-10 * np.abs(wanted) + 1e-3).all()


def test_leading_axes_stay_and_no_tokens_give_none():
    model, weight = model_of("lut3", (33, 64), leading=("batch", "n"))
    x = draw(3, 5, 64)
    assert_close(run(model, x), x, weight, "lut3")
    assert run(model, x[:, :0]).shape == (3, 0, 33)


def test_what_is_not_finite_stays_in_its_token():
    for name in ("lut4", "lut2_f16"):
        model, weight = model_of(name, (33, 64))
        x = draw(4, 64)
        x[1, 3], x[2, 5] = np.inf, np.nan
        for instructions in INSTRUCTIONS[:-1]:
            y = run(model, x, instructions=instructions)
            assert not np.isfinite(y[1:3]).any()
            assert_close(y[[0, 3]], x[[0, 3]], weight, name)


def test_arrays_that_are_no_constants_are_read_in_every_call():
    fmt, arrays = arrays_of("lut4", (17, 64))
    model = one_node_model(MATMUL_LUT, fmt, fmt.pack(arrays), (17, 64))
    codes = model.graph.initializers.pop("codes")
    model.graph.inputs.append(codes)
    codes.const_value = None
    codes.type, codes.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([17, 32])
    x = draw(3, 64)
    with open_session(model) as session:
        for seed in (0, 1):
            given = {**arrays, "codes": arrays_of("lut4", (17, 64), seed)[1]["codes"]}
            y = session.run({"x": x, "codes": fmt.pack(given)["codes"]})["product_output"]
            assert_close(y, x, fmt.decode(given), "lut4")


WRONG = [
    ({"codes": np.zeros((33, 31), np.uint8)}, {}, r"codes has shape \[33, 31\], and must have \["),
    ({"codes": np.zeros((32, 32), np.uint8)}, {}, r"codes has shape"),
    ({"lut": np.zeros((33, 1, 8), np.int8)}, {}, r"lut has shape \[33, 1, 8\], and must have \[1"),
    ({"lut": np.zeros((33, 3, 16), np.int8)}, {}, r"lut has shape \[33, 3, 16\]"),
    ({"lut": np.zeros((33, 16), np.int8)}, {}, r"lut has shape \[33, 16\]"),
    ({"scales": np.zeros((32, 1), np.float16)}, {}, r"scales has shape \[32, 1\]"),
    ({"scales": np.zeros(33, np.float16)}, {}, r"scales has shape \[33\]"),
    ({"lut": np.zeros((33, 1, 16), np.float16)}, {}, r"activation_bits is 8, and tables of float"),
    ({}, {"bits": 0}, r"attribute bits is 0, and must be from 1 to 4"),
    ({}, {"bits": 3}, r"codes has shape"),
    ({}, {"rows": 0}, r"attribute rows is 0"),
    ({}, {"columns": -1}, r"attribute columns is -1"),
    ({}, {"group": 24}, r"attribute group is 24, and must be 16, 32, a multiple of 64"),
    ({}, {"activation_bits": 16}, r"attribute activation_bits is 16, and must be 8 or 32"),
    ({"lut": np.zeros((33, 2, 16), np.int8)}, {"group": 32}, r"lut has tables for groups of 32"),
]


@pytest.mark.parametrize(("arrays", "attributes", "sentence"), WRONG)
def test_wrong_arrays_and_attributes_are_refused(arrays, attributes, sentence):
    fmt, right = arrays_of("lut4", (33, 64))
    model = one_node_model(MATMUL_LUT, fmt, {**fmt.pack(right), **arrays}, (33, 64))
    (node,) = model.graph
    for name, value in attributes.items():
        node.attributes[name] = ir.AttrInt64(name, value)
    with pytest.raises(OnnxqError, match=f"MatMulLut: {sentence}"):
        run(model, draw(2, 64))


def test_activations_of_another_width_are_refused():
    model, _ = model_of("lut4", (33, 64))
    model.graph.inputs[0].shape = ir.Shape(["n", "k"])
    with pytest.raises(OnnxqError, match=r"A has shape \[2, 63\]; its last axis must be columns"):
        run(model, draw(2, 63))


def test_formats_it_cannot_multiply_by_are_refused_in_a_clause():
    for name in ("lut4", "lut4_g64", "nf4_g16", "lut3_g100"):
        assert MATMUL_LUT.refusal(parse_format(name), (64, 100)) is None
    for name in ("nf4_g24", "lut4_g32"):
        assert "a multiple of 64 columns" in MATMUL_LUT.refusal(parse_format(name), (64, 100))
