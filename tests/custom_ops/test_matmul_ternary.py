"""MatMulTernary: kernels and the function against float64, exact ingest, and its refusals."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.matmul_int import rounded_tokens
from onnxq.custom_ops.matmul_ternary import MATMUL_TERNARY, matmul_ternary_reference
from onnxq.errors import OnnxqError
from onnxq.formats import parse_format
from tests.custom_ops.matmul_cases import (
    INSTRUCTIONS,
    UNIT,
    activations,
    draw,
    one_node_model,
    run,
)

CASES = [
    ("ternary", (17, 64)),
    ("ternary", (1, 1)),
    ("ternary_tensor", (33, 301)),
    ("ternary_g32", (75, 300)),
    ("ternary_g7", (31, 45)),
    ("ternary_g128_f16", (97, 640)),
    ("ternary2", (65, 257)),
    ("ternary2_tensor_f16", (9, 70)),
    ("ternary2_g128", (47, 300)),
    ("ternary2_g24_f16", (33, 77)),
    ("ternary2_g64", (16, 128)),
]


def arrays_of(name, shape, seed=0):
    """Every trit, and scales as a format may hold them."""
    fmt = parse_format(name)
    rng = np.random.default_rng(seed)
    sides = fmt.granularity.scales_shape(*shape)
    highest = 1 if fmt.planes == 1 else 4
    scales = rng.uniform(0.01, 0.1, (sides[0], fmt.planes * sides[1]))
    return fmt, {
        "codes": rng.integers(-highest, highest + 1, shape, np.int8),
        "scales": scales.astype(fmt.scale_dtype),
    }


def model_of(name, shape, seed=0, **options):
    fmt, arrays = arrays_of(name, shape, seed)
    return one_node_model(MATMUL_TERNARY, fmt, fmt.pack(arrays), shape, **options), fmt, arrays


def assert_close(y, x, fmt, arrays, terms):
    """Whole sums are exact: float32 adds ``terms`` of them, times scales, and scales once more."""
    wanted = matmul_ternary_reference(x, fmt, arrays)
    codes, scales = rounded_tokens(x)
    split = fmt.split(arrays["scales"]).astype(np.float64)
    spread = np.repeat(split, fmt.group_size(x.shape[-1]), axis=2)[..., : x.shape[-1]]
    trits = np.abs(np.stack(fmt.trits(arrays["codes"]), axis=1).astype(np.float64))
    mass = (np.abs(codes.astype(np.float64)) @ np.sum(trits * spread, axis=1).T) * scales
    assert y.shape == wanted.shape
    assert (np.abs(y - wanted) <= (terms + 4) * UNIT * mass).all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_kernels_are_as_float64_says(instructions, name, shape):
    model, fmt, arrays = model_of(name, shape)
    xs = activations(shape[1])
    sums = fmt.planes * fmt.granularity.scales_shape(*shape)[1]
    for x, y in zip(xs, run(model, *xs, instructions=instructions), strict=True):
        assert_close(y, x, fmt, arrays, sums)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_function_is_the_same(name, shape):
    model, fmt, arrays = model_of(name, shape)
    xs = activations(shape[1])
    for x, y in zip(xs, run(model, *xs, custom_ops=False), strict=True):
        assert_close(y, x, fmt, arrays, shape[1])


@pytest.mark.parametrize("name", ("ternary_tensor", "ternary2_g64"))
def test_threads_give_the_same_bits(name):
    model, *_ = model_of(name, (1037, 520))
    xs = [draw(1, 520), draw(130, 520)]
    for instructions in INSTRUCTIONS:
        first = run(model, *xs, instructions=instructions, threads=1)
        for threads in (2, 5):
            others = run(model, *xs, instructions=instructions, threads=threads)
            assert all(map(np.array_equal, others, first))


def test_one_scale_for_a_row_gives_the_same_bits_on_every_instruction_set():
    model, *_ = model_of("ternary", (137, 520))
    x = draw(130, 520)
    first = run(model, x, instructions="generic")
    for instructions in INSTRUCTIONS:
        assert np.array_equal(run(model, x, instructions=instructions), first)


def test_float16_activations_are_widened_and_rounded_once():
    model, fmt, arrays = model_of("ternary2_g64_f16", (33, 200), dtype=ir.DataType.FLOAT16)
    x = draw(7, 200).astype(np.float16)
    wanted = matmul_ternary_reference(x, fmt, arrays)
    for custom_ops in (True, False):
        y = run(model, x, custom_ops=custom_ops)
        assert y.dtype == np.float16
        assert (np.abs(y - wanted) <= 2.0**-10 * np.abs(wanted) + 1e-3).all()


def test_leading_axes_stay_and_no_tokens_give_none():
    model, fmt, arrays = model_of("ternary2_g32", (33, 64), leading=("batch", "n"))
    x = draw(3, 5, 64)
    assert_close(run(model, x), x, fmt, arrays, 4)
    assert run(model, x[:, :0]).shape == (3, 0, 33)


def test_what_is_not_finite_stays_in_its_token():
    model, fmt, arrays = model_of("ternary2_g32", (33, 64))
    x = draw(4, 64)
    x[1, 3], x[2, 5] = np.inf, np.nan
    for instructions in INSTRUCTIONS:
        y = run(model, x, instructions=instructions)
        assert not np.isfinite(y[1:3]).any()
        assert_close(y[[0, 3]], x[[0, 3]], fmt, arrays, 4)


def test_a_ternary_weight_multiplies_as_the_float_weight_does():
    """Whole activations that int8 holds: nothing is rounded, so the products are exact."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-1, 2, (40, 96)).astype(np.float32) * np.float32(0.03)
    fmt = parse_format("ternary_tensor")
    model = one_node_model(MATMUL_TERNARY, fmt, fmt.pack(fmt.encode(weight)), (40, 96))
    x = rng.integers(-127, 128, (5, 96)).astype(np.float32)
    x[:, 0] = 127
    wanted = (x @ np.sign(weight).T) * np.float32(0.03)
    for instructions in INSTRUCTIONS:
        assert np.array_equal(run(model, x, instructions=instructions), wanted)


WRONG = [
    ({"codes": np.zeros((33, 25), np.uint8)}, {}, r"codes has shape \[33, 25\], and must have \["),
    ({"codes": np.zeros((32, 26), np.uint8)}, {}, r"codes has shape"),
    ({"codes": np.zeros(33 * 26, np.uint8)}, {}, r"codes has shape"),
    ({"scales": np.zeros((33, 3), np.float32)}, {}, r"scales has shape \[33, 3\]"),
    ({"scales": np.zeros((2, 4), np.float32)}, {}, r"scales has shape \[2, 4\]"),
    ({"scales": np.zeros(33, np.float32)}, {}, r"scales has shape \[33\], and must have \[1 or 33"),
    ({}, {"planes": 0}, r"attribute planes is 0, and must be from 1 to 2"),
    ({}, {"planes": 3}, r"attribute planes is 3"),
    ({}, {"planes": 1}, r"codes has shape \[33, 26\], and must have \[33, 13\]"),
    ({}, {"rows": 0}, r"attribute rows is 0"),
    ({}, {"columns": -1}, r"attribute columns is -1"),
    ({}, {"group": 0}, r"attribute group is 0"),
    ({}, {"activation_bits": 32}, r"attribute activation_bits is 32"),
    ({}, {"rows": 34}, r"codes has shape \[33, 26\], and must have \[34, 26\]"),
]


@pytest.mark.parametrize(("arrays", "attributes", "sentence"), WRONG)
def test_wrong_arrays_and_attributes_are_refused(arrays, attributes, sentence):
    fmt, right = arrays_of("ternary2_g32", (33, 64))
    model = one_node_model(MATMUL_TERNARY, fmt, {**fmt.pack(right), **arrays}, (33, 64))
    (node,) = model.graph
    for name, value in attributes.items():
        node.attributes[name] = ir.AttrInt64(name, value)
    with pytest.raises(OnnxqError, match=f"MatMulTernary: {sentence}"):
        run(model, draw(2, 64))


def test_bytes_that_are_no_five_trits_are_refused():
    fmt, right = arrays_of("ternary2_g32", (33, 64))
    packed = fmt.pack(right)
    packed["codes"][7, 20] = 243
    model = one_node_model(MATMUL_TERNARY, fmt, packed, (33, 64))
    with pytest.raises(OnnxqError, match="codes holds 243 in row 7; five trits are a number up to"):
        run(model, draw(2, 64))


def test_formats_it_cannot_multiply_by_are_refused_in_a_clause():
    assert MATMUL_TERNARY.refusal(parse_format("ternary_g128"), (64, 2**24)) is None
    wide = MATMUL_TERNARY.refusal(parse_format("ternary"), (64, 2**24))
    assert "16777216 products of ternary with int8 do not fit int32" in wide
