"""MatMulInt: kernels of every instruction set and the function against float64; refusals."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.matmul_int import MATMUL_INT, matmul_int_reference, rounded_tokens
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
    ("int1_g32", (17, 64)),
    ("int1_g64_asym_two", (33, 200)),
    ("int2_g64_two", (75, 300)),
    ("int2_g16_asym", (33, 37)),
    ("int3_g128_asym", (40, 301)),
    ("int3_g40_two", (17, 203)),
    ("int4_tensor", (16, 96)),
    ("int4_channel_asym", (1, 1)),
    ("int4_g32", (100, 352)),
    ("int4_g128_asym_f16", (75, 301)),
    ("int4_g128_two", (97, 640)),
    ("int4_g24_asym_two", (31, 77)),
    ("int4_g64_two", (1, 50)),
    ("int5_g64_asym", (33, 190)),
    ("int6_g128", (20, 256)),
    ("int7_g32_asym", (49, 99)),
    ("int8_channel_f16", (65, 257)),
    ("int8_g128_asym", (47, 300)),
    ("int8_tensor_asym", (9, 70)),
]


def arrays_of(name, shape, seed=0):
    """Every code and zero that the format has, scales of both signs."""
    fmt = parse_format(name)
    rng = np.random.default_rng(seed)
    rows, columns = shape
    sides = fmt.granularity.scales_shape(rows, columns)
    dtype = np.int8 if fmt.symmetric else np.uint8
    scales = rng.uniform(0.01, 0.1, sides) * rng.choice([-1, 1], sides)
    arrays = {
        "codes": rng.integers(fmt.lowest, fmt.highest, shape, dtype, endpoint=True),
        "scales": fmt.stored_scales(scales.astype(np.float32)),
    }
    if not fmt.symmetric:
        arrays["zeros"] = rng.integers(0, 2**fmt.bits, sides, np.uint8)
    return fmt, arrays


def model_of(name, shape, **options):
    fmt, arrays = arrays_of(name, shape)
    return one_node_model(MATMUL_INT, fmt, fmt.pack(arrays), shape, **options), fmt.decode(arrays)


def assert_close(y, x, weight, groups):
    """Whole sums of groups are exact: float32 adds them, times scales, and scales once more."""
    wanted = matmul_int_reference(x, weight)
    codes, scales = rounded_tokens(x)
    mass = (np.abs(codes.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T) * scales
    assert y.shape == wanted.shape
    assert (np.abs(y - wanted) <= (groups + 4) * UNIT * mass).all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_kernels_are_as_float64_says(instructions, name, shape):
    model, weight = model_of(name, shape)
    xs = activations(shape[1])
    groups = arrays_of(name, shape)[1]["scales"].shape[1]
    for x, y in zip(xs, run(model, *xs, instructions=instructions), strict=True):
        assert_close(y, x, weight, groups)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_function_is_the_same(name, shape):
    model, weight = model_of(name, shape)
    xs = activations(shape[1])
    for x, y in zip(xs, run(model, *xs, custom_ops=False), strict=True):
        assert_close(y, x, weight, shape[1])


@pytest.mark.parametrize("name", ["int4_g128_two", "int3_channel_asym", "int8_channel"])
def test_instruction_sets_and_threads_give_the_same_bits_where_all_sums_are_whole(name):
    shape = (1037, 520)
    model, _ = model_of(name, shape)
    x = draw(130, shape[1])
    first = run(model, x, instructions="generic", threads=1)
    for instructions in INSTRUCTIONS:
        for threads in (1, 2, 5):
            assert np.array_equal(run(model, x, instructions=instructions, threads=threads), first)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_threads_give_the_same_bits(instructions):
    model, _ = model_of("int4_g64_asym", (1037, 520))
    xs = [draw(1, 520), draw(130, 520)]
    first = run(model, *xs, instructions=instructions, threads=1)
    for threads in (2, 5):
        others = run(model, *xs, instructions=instructions, threads=threads)
        assert all(map(np.array_equal, others, first))


def test_float16_activations_are_widened_and_rounded_once():
    shape = (33, 200)
    model, weight = model_of("int4_g64_asym_f16", shape, dtype=ir.DataType.FLOAT16)
    x = draw(7, 200).astype(np.float16)
    wanted = matmul_int_reference(x, weight)
    for custom_ops in (True, False):
        y = run(model, x, custom_ops=custom_ops)
        assert y.dtype == np.float16
        assert (np.abs(y - wanted) <= 2.0**-10 * np.abs(wanted) + 1e-3).all()


def test_leading_axes_stay_and_no_tokens_give_none():
    model, weight = model_of("int4_g32", (33, 64), leading=("batch", "n"))
    x = draw(3, 5, 64)
    assert_close(run(model, x), x, weight, 2)
    assert run(model, x[:, :0]).shape == (3, 0, 33)


def test_what_is_not_finite_stays_in_its_token():
    model, weight = model_of("int4_g32", (33, 64))
    x = draw(4, 64)
    x[1, 3], x[2, 5] = np.inf, np.nan
    for instructions in INSTRUCTIONS:
        y = run(model, x, instructions=instructions)
        assert not np.isfinite(y[1:3]).any()
        assert_close(y[[0, 3]], x[[0, 3]], weight, 2)


def test_arrays_that_are_no_constants_are_read_in_every_call():
    fmt, arrays = arrays_of("int4_g32", (17, 64))
    packed = MATMUL_INT.stored(fmt.pack(arrays))
    model = one_node_model(MATMUL_INT, fmt, packed, (17, 64))
    codes = model.graph.initializers.pop("codes")
    model.graph.inputs.append(codes)
    codes.const_value = None
    codes.type, codes.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([17, 32])
    x = draw(3, 64)
    with open_session(model) as session:
        for seed in (0, 1):
            _, other = arrays_of("int4_g32", (17, 64), seed)
            given = {**arrays, "codes": other["codes"]}
            y = session.run({"x": x, "codes": fmt.pack(given)["codes"]})["product_output"]
            assert_close(y, x, fmt.decode(given), 2)


WRONG = [
    ({"codes": np.zeros((33, 31), np.uint8)}, {}, r"codes has shape \[33, 31\], and must have \["),
    ({"codes": np.zeros((32, 32), np.uint8)}, {}, r"codes has shape"),
    ({"scales": np.zeros((33, 3), np.float32)}, {}, r"scales has shape \[33, 3\]"),
    ({"scales": np.zeros((2, 2), np.float32)}, {}, r"scales has shape \[2, 2\]"),
    ({"scales": np.zeros(33, np.float32)}, {}, r"scales has shape \[33\]"),
    ({"ratios": np.zeros((33, 3), np.int8)}, {}, r"ratios has shape"),
    ({"ratios": np.full((1, 1), 2, np.int8)}, {}, r"ratios has shape \[1, 1\]"),
    ({"ratios": np.zeros((33, 2), np.int8)}, {}, r"scales has shape|must not be 0"),
    ({"zeros": np.ones((1, 1), np.uint8)}, {}, r"zeros must be 0 where codes are signed"),
    ({"zeros": np.zeros((33, 1), np.uint8)}, {}, r"zeros has shape \[33, 1\]"),
    ({}, {"bits": 0}, r"attribute bits is 0, and must be from 1 to 8"),
    ({}, {"bits": 9}, r"attribute bits is 9"),
    ({}, {"rows": 0}, r"attribute rows is 0"),
    ({}, {"columns": -1}, r"attribute columns is -1"),
    ({}, {"group": 0}, r"attribute group is 0"),
    ({}, {"signed": 2}, r"attribute signed is 2"),
    ({}, {"activation_bits": 32}, r"attribute activation_bits is 32"),
    ({}, {"rows": 34}, r"codes has shape \[33, 32\], and must have \[34, 32\]"),
]


@pytest.mark.parametrize(("arrays", "attributes", "sentence"), WRONG)
def test_wrong_arrays_and_attributes_are_refused(arrays, attributes, sentence):
    fmt, right = arrays_of("int4_g32", (33, 64))
    model = one_node_model(MATMUL_INT, fmt, {**fmt.pack(right), **arrays}, (33, 64))
    (node,) = model.graph
    for name, value in attributes.items():
        node.attributes[name] = ir.AttrInt64(name, value)
    with pytest.raises(OnnxqError, match=f"MatMulInt: {sentence}"):
        run(model, draw(2, 64))


def test_ratios_that_no_int8_holds_are_refused():
    fmt, right = arrays_of("int4_g32_two", (33, 64))
    packed = fmt.pack(right)
    for ratio in (0, 16, -128):
        ratios = packed["ratios"].copy()
        ratios[7, 1] = ratio
        model = one_node_model(MATMUL_INT, fmt, {**packed, "ratios": ratios}, (33, 64))
        with pytest.raises(OnnxqError, match=f"ratio {ratio} of row 7, group 1 must not be 0"):
            run(model, draw(2, 64))


def test_activations_of_another_width_are_refused():
    model, _ = model_of("int4_g32", (33, 64))
    model.graph.inputs[0].shape = ir.Shape(["n", "k"])
    with pytest.raises(OnnxqError, match=r"A has shape \[2, 63\]; its last axis must be columns"):
        run(model, draw(2, 63))


def test_formats_it_cannot_multiply_by_are_refused_in_a_clause():
    assert MATMUL_INT.refusal(parse_format("int4_g128"), (64, 2**20)) is None
    assert "for each" in MATMUL_INT.refusal(parse_format("int4_b16x16"), (64, 64))
    wide = MATMUL_INT.refusal(parse_format("int8_channel"), (64, 70000))
    assert "70000 products of int8_channel with int8 do not fit int32" in wide
    two = dataclasses.replace(parse_format("int4_g128"), two_level=True)
    assert MATMUL_INT.refusal(two, (64, 100_000)) is None
    assert "do not fit int32" in MATMUL_INT.refusal(two, (64, 140_000))
