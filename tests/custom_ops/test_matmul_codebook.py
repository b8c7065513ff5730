"""MatMulCodebook: kernels of every instruction set and the function against float64; refusals."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.matmul_codebook import MATMUL_CODEBOOK, matmul_codebook_reference
from onnxq.custom_ops.matmul_int import rounded_tokens
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
    ("vq_d4n256", (67, 52)),
    ("vq_d4n256", (200, 1100)),
    ("vq_d4n256_g12", (65, 100)),
    ("vq_d4n256_b64x20", (200, 52)),
    ("vq_d2n16", (65, 34)),
    ("vq_d2n64_tensor", (1, 2)),
    ("vq_d2n256_g64", (129, 130)),
    ("vq_d1n16_g6", (70, 51)),
    ("vq_d1n64_b64x20", (140, 63)),
    ("vq_d1n256", (63, 67)),
    ("vq_d8n256_g16_b128x40", (300, 104)),
    ("vq_d8n4096", (70, 96)),
    ("vq_d4n65536", (33, 44)),
    ("aq_m2d8n256", (130, 1032)),
    ("aq_m3d2n16", (67, 514)),
    ("aq_m16d4n64_g8", (75, 60)),
    ("aq_m2d4n4096_g20", (40, 60)),
    ("higgs_d2n64_g16", (64, 100)),
]
FLOAT_CASES = [(*case, 32) for case in CASES[1::3]]


def arrays_of(name, shape, seed=0):
    """Every code that the format has, books and scales of both signs."""
    fmt = parse_format(name)
    rng = np.random.default_rng(seed)
    rows, columns = shape
    blocks = [-(-size // each) for size, each in zip(shape, fmt.block_shape(*shape), strict=True)]
    most = min(127, 258 // fmt.dimension)
    dtype = np.uint8 if fmt.entries <= 256 else np.uint16
    sides = fmt.granularity.scales_shape(rows, columns)
    scales = rng.uniform(0.001, 0.01, sides) * rng.choice([-1, 1], sides)
    codes = (rows, columns // fmt.dimension * fmt.books)
    books = (*blocks, fmt.books, fmt.entries, fmt.dimension)
    arrays = {
        "codes": rng.integers(0, fmt.entries, codes, dtype),
        "codebook": rng.integers(-most, most, books, np.int8, endpoint=True),
        "scales": scales.astype(np.float16),
    }
    return fmt, arrays


def model_of(name, shape, *, activation_bits=8, **options):
    fmt, arrays = arrays_of(name, shape)
    model = one_node_model(MATMUL_CODEBOOK, fmt, fmt.pack(arrays), shape, **options)
    (node,) = model.graph
    node.attributes["activation_bits"] = ir.AttrInt64("activation_bits", activation_bits)
    return model, fmt.decode(arrays)


def assert_close(y, x, weight, activation_bits=8):
    """Within what float32 loses: a rounding for each product or tile, one for each sum."""
    wanted = matmul_codebook_reference(x, weight, activation_bits=activation_bits)
    size = np.abs(x.astype(np.float64))
    if activation_bits == 8:
        codes, scales = rounded_tokens(x)
        size = np.abs(codes.astype(np.float64)) * scales
    mass = size @ np.abs(weight.astype(np.float64)).T
    assert y.shape == wanted.shape
    # Books of a sum may cancel: what is summed is larger than the weight by as much.
    assert (np.abs(y - wanted) <= (x.shape[-1] + 4) * UNIT * mass).all()


@pytest.mark.parametrize(("name", "shape", "bits"), [(*case, 8) for case in CASES] + FLOAT_CASES)
def test_kernels_are_as_float64_says_and_the_function_is_the_same(name, shape, bits):
    model, weight = model_of(name, shape, activation_bits=bits)
    xs = activations(shape[1])
    results = [run(model, *xs, instructions=instructions) for instructions in INSTRUCTIONS]
    for result in [*results, run(model, *xs, custom_ops=False)]:
        for x, y in zip(xs, result, strict=True):
            assert_close(y, x, weight, bits)


@pytest.mark.parametrize(
    "name", ["vq_d4n256", "vq_d2n16_g64", "vq_d2n64_b256x128", "aq_m2d8n256", "vq_d8n4096"]
)
def test_instruction_sets_threads_tables_and_panels_give_the_same_bits(name):
    shape = (1037, 520)
    model, _ = model_of(name, shape)
    xs = [draw(tokens, shape[1]) for tokens in (1, 4, 5, 130)]
    first = run(model, *xs, instructions="generic", threads=1)
    assert np.array_equal(first[0][0], run(model, np.tile(xs[0], (40, 1)))[39])
    for instructions in INSTRUCTIONS:
        for threads in (1, 2, 5):
            others = run(model, *xs, instructions=instructions, threads=threads)
            assert all(map(np.array_equal, others, first))


def test_books_too_large_for_tables_are_multiplied_as_well():
    fmt, arrays = arrays_of("vq_d4n256", (130, 96))
    arrays["codebook"][0, 0, 0, 17] = -128
    model = one_node_model(MATMUL_CODEBOOK, fmt, fmt.pack(arrays), (130, 96))
    xs = [draw(1, 96), draw(7, 96)]
    for instructions in INSTRUCTIONS:
        for x, y in zip(xs, run(model, *xs, instructions=instructions), strict=True):
            assert_close(y, x, fmt.decode(arrays))


def test_products_at_the_largest_that_tables_hold_are_exact():
    fmt, arrays = arrays_of("vq_d4n256", (64, 1024))
    arrays["codebook"][:] = 0
    arrays["codebook"][..., 0, :] = (64, 64, 64, 66)
    arrays["codebook"][..., 1, :] = (-64, -64, -64, -66)
    arrays["codes"][:] = np.arange(64)[:, None] % 2
    arrays["scales"][:] = 1
    model = one_node_model(MATMUL_CODEBOOK, fmt, fmt.pack(arrays), (64, 1024))
    x = np.full((1, 1024), 127, np.float32)
    for instructions in INSTRUCTIONS:
        y = run(model, x, instructions=instructions)
        assert np.array_equal(y[0, :2], [127 * 258 * 256, -127 * 258 * 256])


def test_float16_activations_are_widened_and_rounded_once():
    model, weight = model_of("vq_d4n256", (33, 200), dtype=ir.DataType.FLOAT16)
    x = draw(7, 200).astype(np.float16)
    wanted = matmul_codebook_reference(x, weight)
    for custom_ops in (True, False):
        y = run(model, x, custom_ops=custom_ops)
        assert y.dtype == np.float16
        assert (np.abs(y - wanted) <= 2.0**-10 * np.abs(wanted) + 1e-3).all()


def test_leading_axes_stay_and_no_tokens_give_none():
    model, weight = model_of("vq_d4n256", (33, 64), leading=("batch", "n"))
    x = draw(3, 5, 64)
    assert_close(run(model, x), x, weight)
    assert run(model, x[:, :0]).shape == (3, 0, 33)


def test_what_is_not_finite_stays_in_its_token():
    model, weight = model_of("vq_d4n256", (33, 64))
    x = draw(4, 64)
    x[1, 3], x[2, 5] = np.inf, np.nan
    for instructions in INSTRUCTIONS:
        for count in (4, 12):  # by tables and by panels
            given = np.resize(x, (count, 64))
            y = run(model, given, instructions=instructions)
            assert not np.isfinite(y[1:3]).any()
            assert_close(y[[0, 3]], x[[0, 3]], weight)


def test_arrays_that_are_no_constants_are_read_in_every_call():
    fmt, arrays = arrays_of("vq_d4n256", (17, 64))
    model = one_node_model(MATMUL_CODEBOOK, fmt, fmt.pack(arrays), (17, 64))
    codes = model.graph.initializers.pop("codes")
    model.graph.inputs.append(codes)
    codes.const_value = None
    codes.type, codes.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([17, 16])
    x = draw(3, 64)
    with open_session(model) as session:
        for seed in (0, 1):
            given = {**arrays, "codes": arrays_of("vq_d4n256", (17, 64), seed)[1]["codes"]}
            y = session.run({"x": x, "codes": fmt.pack(given)["codes"]})["product_output"]
            assert_close(y, x, fmt.decode(given))


WRONG = [
    ({"codes": np.zeros((33, 15), np.uint8)}, {}, r"codes has shape \[33, 15\], and must have \["),
    ({"codes": np.zeros((32, 16), np.uint8)}, {}, r"codes has shape"),
    ({"codebook": np.zeros((1, 1, 1, 255, 4), np.int8)}, {}, r"codebook has shape"),
    ({"codebook": np.zeros((256, 4), np.int8)}, {}, r"codebook has shape \[256, 4\]"),
    ({"scales": np.zeros((33, 2), np.float16)}, {}, r"scales has shape \[33, 2\]"),
    ({"scales": np.zeros(33, np.float16)}, {}, r"scales has shape \[33\]"),
    ({}, {"bits": 5}, r"attribute bits is 5, and must be 4, 6, 8, 12 or 16"),
    ({}, {"bits": 6}, r"codes has shape \[33, 16\], and must have \[33, 12\]"),
    ({}, {"dimension": 3}, r"attribute dimension is 3, and must be 1, 2, 4 or 8"),
    ({}, {"books": 0}, r"attribute books is 0, and must be from 1 to 16"),
    ({}, {"rows": 0}, r"attribute rows is 0"),
    ({}, {"columns": 62}, r"columns, group and block_columns must be multiples of dimension = 4"),
    ({}, {"group": 6}, r"columns, group and block_columns must be multiples"),
    ({}, {"block_columns": 2}, r"columns, group and block_columns must be multiples"),
    ({}, {"block_rows": 32}, r"attribute block_rows is 32, and must be a multiple of 64 or no"),
    ({}, {"activation_bits": 16}, r"attribute activation_bits is 16, and must be 8 or 32"),
    ({}, {"rows": 34, "block_rows": 64}, r"codes has shape \[33, 16\], and must have \[34, 16\]"),
]


@pytest.mark.parametrize(("arrays", "attributes", "sentence"), WRONG)
def test_wrong_arrays_and_attributes_are_refused(arrays, attributes, sentence):
    fmt, right = arrays_of("vq_d4n256", (33, 64))
    model = one_node_model(MATMUL_CODEBOOK, fmt, {**fmt.pack(right), **arrays}, (33, 64))
    (node,) = model.graph
    for name, value in attributes.items():
        node.attributes[name] = ir.AttrInt64(name, value)
    with pytest.raises(OnnxqError, match=f"MatMulCodebook: {sentence}"):
        run(model, draw(2, 64))


def test_activations_of_another_width_are_refused():
    model, _ = model_of("vq_d4n256", (33, 64))
    model.graph.inputs[0].shape = ir.Shape(["n", "k"])
    with pytest.raises(OnnxqError, match=r"A has shape \[2, 63\]; its last axis must be columns"):
        run(model, draw(2, 63))
