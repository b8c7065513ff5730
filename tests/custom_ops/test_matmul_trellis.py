"""MatMulTrellis: kernels of every instruction set and the function against float64; refusals."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.matmul_int import rounded_tokens
from onnxq.custom_ops.matmul_trellis import MATMUL_TRELLIS, matmul_trellis_reference
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

CHUNK = 512  # columns whose products are summed as whole numbers
CASES = [
    ("trellis1_1mad", (17, 48)),
    ("trellis2_1mad", (75, 1072)),
    ("trellis3_1mad", (33, 176)),
    ("trellis4_1mad_tensor", (16, 528)),
    ("trellis2_1mad_l12", (5, 32)),
    ("trellis1_3inst", (31, 64)),
    ("trellis2_3inst", (40, 544)),
    ("trellis3_3inst_l14", (19, 208)),
    ("trellis4_3inst", (49, 1040)),
    ("trellis1.5_hyb", (33, 80)),
    ("trellis2_hyb", (75, 1072)),
    ("trellis2.5_hyb_l13", (1, 16)),
    ("trellis3_hyb", (18, 560)),
    ("trellis3.5_hyb_tensor", (37, 112)),
    ("trellis4_hyb", (97, 528)),
]


def arrays_of(name, shape, seed=0):
    """Any bits are a path."""
    fmt = parse_format(name)
    rng = np.random.default_rng(seed)
    rows, columns = shape
    scales = rng.uniform(0.01, 0.1, (1 if fmt.whole else rows, 1))
    codes = rng.integers(0, 2**fmt.trellis.step_bits, (rows, columns // fmt.trellis.vector))
    return fmt, {"codes": codes.astype(np.uint8), "scales": scales.astype(np.float16)}


def model_of(name, shape, activation_bits=8, **options):
    fmt, arrays = arrays_of(name, shape)
    model = one_node_model(MATMUL_TRELLIS, fmt, fmt.pack(arrays), shape, **options)
    (node,) = model.graph
    node.attributes["activation_bits"] = ir.AttrInt64("activation_bits", activation_bits)
    return model, fmt.decode(arrays)


def assert_close(y, x, weight, roundings, activation_bits=8):
    wanted = matmul_trellis_reference(x, weight, activation_bits)
    assert y.shape == wanted.shape
    token, scales = (x, 1) if activation_bits == 32 else rounded_tokens(x)
    mass = (np.abs(token.astype(np.float64)) @ np.abs(weight.astype(np.float64)).T) * scales
    assert (np.abs(y - wanted) <= roundings * UNIT * mass + 1e-37).all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_kernels_are_as_float64_says(instructions, name, shape):
    """Whole sums of chunks are exact: float32 adds them, times two scales."""
    model, weight = model_of(name, shape)
    xs = activations(shape[1])
    for x, y in zip(xs, run(model, *xs, instructions=instructions), strict=True):
        assert_close(y, x, weight, -(-shape[1] // CHUNK) + 4)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("name", ["trellis3_1mad", "trellis2_3inst", "trellis2.5_hyb"])
def test_kernels_take_float_tokens(instructions, name):
    shape = (37, 816)
    model, weight = model_of(name, shape, 32)
    xs = activations(shape[1])
    for x, y in zip(xs, run(model, *xs, instructions=instructions), strict=True):
        assert_close(y, x, weight, shape[1], 32)


@pytest.mark.parametrize("activation_bits", (8, 32))
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_function_is_the_same(name, shape, activation_bits):
    model, weight = model_of(name, shape, activation_bits)
    xs = activations(shape[1])
    for x, y in zip(xs, run(model, *xs, custom_ops=False), strict=True):
        assert_close(y, x, weight, shape[1] + 4, activation_bits)


@pytest.mark.parametrize("name", ["trellis2_1mad", "trellis4_3inst", "trellis3_hyb"])
def test_instruction_sets_and_threads_give_the_same_bits_where_all_sums_are_whole(name):
    model, _ = model_of(name, (1037, CHUNK))
    xs = [draw(count, CHUNK) for count in (1, 3, 130)]
    first = run(model, *xs, instructions="generic", threads=1)
    for instructions in INSTRUCTIONS:
        for threads in (1, 2, 5):
            others = run(model, *xs, instructions=instructions, threads=threads)
            assert all(map(np.array_equal, others, first))


def test_the_number_of_tokens_changes_no_token():
    """Few tokens are multiplied otherwise than many."""
    model, _ = model_of("trellis2_1mad", (48, CHUNK))
    x = draw(11, CHUNK)
    together = run(model, x)
    for count in (1, 2, 3, 4, 5, 8):
        assert np.array_equal(run(model, x[:count]), together[:count])


def test_float16_activations_are_widened_and_rounded_once():
    model, weight = model_of("trellis2_1mad", (33, 208), dtype=ir.DataType.FLOAT16)
    x = draw(7, 208).astype(np.float16)
    wanted = matmul_trellis_reference(x, weight)
    for custom_ops in (True, False):
        y = run(model, x, custom_ops=custom_ops)
        assert y.dtype == np.float16
        assert (np.abs(y - wanted) <= 2.0**-10 * np.abs(wanted) + 1e-3).all()


def test_leading_axes_stay_and_no_tokens_give_none():
    model, weight = model_of("trellis2_hyb", (33, 64), leading=("batch", "n"))
    x = draw(3, 5, 64)
    assert_close(run(model, x), x, weight, 5)
    assert run(model, x[:, :0]).shape == (3, 0, 33)


def test_what_is_not_finite_stays_in_its_token():
    model, weight = model_of("trellis2_1mad", (33, 64))
    x = draw(4, 64)
    x[1, 3], x[2, 5] = np.inf, np.nan
    for instructions in INSTRUCTIONS:
        y = run(model, x, instructions=instructions)
        assert not np.isfinite(y[1:3]).any()
        assert_close(y[[0, 3]], x[[0, 3]], weight, 5)


def test_arrays_that_are_no_constants_are_read_in_every_call():
    fmt, arrays = arrays_of("trellis2_1mad", (17, 64))
    model = one_node_model(MATMUL_TRELLIS, fmt, fmt.pack(arrays), (17, 64))
    codes = model.graph.initializers.pop("codes")
    model.graph.inputs.append(codes)
    codes.const_value = None
    codes.type, codes.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([17, 16])
    x = draw(3, 64)
    with open_session(model) as session:
        for seed in (0, 1):
            given = {**arrays, "codes": arrays_of("trellis2_1mad", (17, 64), seed)[1]["codes"]}
            y = session.run({"x": x, "codes": fmt.pack(given)["codes"]})["product_output"]
            assert_close(y, x, fmt.decode(given), 5)


@pytest.mark.parametrize("name", ["trellis2_3inst_l12", "trellis3_hyb_l12"])
def test_what_the_search_finds_is_what_is_multiplied(name):
    fmt, weight = parse_format(name), draw(33, 64)
    arrays = fmt.encode(weight)
    model = one_node_model(MATMUL_TRELLIS, fmt, fmt.pack(arrays), (33, 64))
    x = draw(3, 64)
    assert_close(run(model, x), x, fmt.decode(arrays), 5)
    assert np.mean(np.square(fmt.decode(arrays) - weight)) < (0.12 if "2" in name[:8] else 0.04)


WRONG = [
    ({"codes": np.zeros((33, 15), np.uint8)}, {}, r"codes has shape \[33, 15\], and must have \["),
    ({"codes": np.zeros((32, 16), np.uint8)}, {}, r"codes has shape"),
    ({"codes": np.zeros(33 * 16, np.uint8)}, {}, r"codes has shape"),
    ({"scales": np.zeros((32, 1), np.float16)}, {}, r"scales has shape \[32, 1\]"),
    ({"scales": np.zeros(33, np.float16)}, {}, r"scales has shape \[33\]"),
    ({}, {"code": 3}, r"attribute code is 3, and must be from 0 to 2"),
    ({}, {"step_bits": 0}, r"attribute step_bits is 0, and must be from 1 to 4"),
    ({}, {"step_bits": 5}, r"attribute step_bits is 5"),
    ({}, {"code": 2}, r"attribute step_bits is 2, and must be from 3 to 8"),
    ({}, {"state_bits": 17}, r"attribute state_bits is 17, and must be from 10 to 16"),
    ({}, {"rows": 0}, r"attribute rows is 0"),
    ({}, {"rows": 34}, r"codes has shape \[33, 16\], and must have \[34, 16\]"),
    ({}, {"columns": 72}, r"columns is 72, and 16 of them share a path"),
    ({}, {"activation_bits": 16}, r"attribute activation_bits is 16, and must be 8"),
]


@pytest.mark.parametrize(("arrays", "attributes", "sentence"), WRONG)
def test_wrong_arrays_and_attributes_are_refused(arrays, attributes, sentence):
    fmt, right = arrays_of("trellis2_1mad", (33, 64))
    model = one_node_model(MATMUL_TRELLIS, fmt, {**fmt.pack(right), **arrays}, (33, 64))
    (node,) = model.graph
    for name, value in attributes.items():
        node.attributes[name] = ir.AttrInt64(name, value)
    with pytest.raises(OnnxqError, match=f"MatMulTrellis: {sentence}"):
        run(model, draw(2, 64))


def test_tokens_of_another_width_are_refused():
    model, _ = model_of("trellis2_1mad", (33, 64))
    model.graph.inputs[0].shape = ir.Shape(["n", "k"])
    with pytest.raises(OnnxqError, match=r"its last axis must be columns = 64"):
        run(model, draw(2, 48))
