"""MatMulE8P: kernels of every instruction set and the function against float64; refusals."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.custom_ops.catalog import spec_of
from onnxq.custom_ops.matmul_e8p import MATMUL_E8P, matmul_e8p_reference
from onnxq.errors import OnnxqError
from onnxq.formats import parse_format
from onnxq.graph import load, save
from onnxq.runtime import open_session
from tests.custom_ops.matmul_cases import (
    INSTRUCTIONS,
    UNIT,
    activations,
    draw,
    one_node_model,
    run,
)

SHAPES = [(1, 8), (17, 64), (75, 296), (33, 1096)]
BITS = (2, 3, 4)
OWN = INSTRUCTIONS[:-1]  # there is nothing for AMX: it takes what VNNI takes


def spec_with(activation_bits):
    """The operator with other activations than it chooses."""

    def attributes(fmt, shape):
        return MATMUL_E8P.attributes(fmt, shape) | {"activation_bits": activation_bits}

    return dataclasses.replace(MATMUL_E8P, attributes=attributes)


def arrays_of(name, shape, seed=0):
    """Codes of any value, in order where there is room for all, and scales of both signs."""
    fmt = parse_format(name)
    rows, columns = shape
    rng = np.random.default_rng(seed)
    count = rows * columns // 8
    codes = np.arange(count) if count >= 2**16 else rng.integers(0, 2**16, count)
    stages = [codes]
    if fmt.bits > 2:
        stages.append(rng.integers(0, 2**16 if fmt.bits == 4 else 2**8, count))
    sides = 1 if name.endswith("_tensor") else rows
    scales = rng.uniform(0.01, 0.1, (sides, 1)) * rng.choice([-1, 1], (sides, 1))
    return fmt, {
        "codes": np.stack(stages, 1).astype(np.uint16).reshape(rows, -1),
        "scales": scales.astype(np.float16),
    }


def model_of(name, shape, *, activation_bits=8, **options):
    fmt, arrays = arrays_of(name, shape)
    spec = spec_with(activation_bits)
    return one_node_model(spec, fmt, fmt.pack(arrays), shape, **options), fmt.decode(arrays)


def assert_close(y, x, weight, activation_bits):
    """Rounded tokens: sums are exact, then scaled. Others: a rounding for each product and sum."""
    wanted = matmul_e8p_reference(x, weight, activation_bits)
    mass = matmul_e8p_reference(np.abs(x), np.abs(weight), activation_bits)
    assert y.shape == wanted.shape
    operations = 5 if activation_bits == 8 else weight.shape[1] / 8 + 8
    assert (np.abs(y - wanted) <= operations * UNIT * mass).all()


@pytest.mark.parametrize("instructions", OWN)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activation_bits", (8, 32))
def test_kernels_are_the_product(bits, activation_bits, instructions):
    for shape in SHAPES:
        model, weight = model_of(f"e8p{bits}", shape, activation_bits=activation_bits)
        xs = activations(shape[1])
        threads = 1 if shape == SHAPES[1] else 3
        results = run(model, *xs, instructions=instructions, threads=threads)
        for x, y in zip(xs, results, strict=True):
            assert_close(y, x, weight, activation_bits)


@pytest.mark.parametrize("instructions", OWN)
@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_decoded(bits, instructions):
    """Tokens that are 1 at one place of each run read a sum of columns, which is exact."""
    shape = (128, 4096)
    model, weight = model_of(f"e8p{bits}", shape)
    panel = np.zeros((8, 512, 8), np.float32)
    panel[:, :, :] = np.eye(8, dtype=np.float32)[:, None]
    panel = panel.reshape(8, -1)
    together, *alone = run(model, panel, *(panel[:, None]), instructions=instructions)
    wanted = weight.reshape(128, 512, 8).astype(np.float64).sum(axis=1).T
    bound = 5 * UNIT * np.abs(weight).reshape(128, 512, 8).sum(axis=1).T
    assert (np.abs(together - wanted) <= bound).all()
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_instruction_sets_and_threads_agree_bit_by_bit_on_rounded_tokens():
    x = draw(7, 296)
    for bits in BITS:
        model, _ = model_of(f"e8p{bits}", (75, 296))
        one = run(model, x, instructions="generic", threads=1)
        for instructions in INSTRUCTIONS:
            again, first = run(model, x, x[:1], instructions=instructions, threads=2)
            np.testing.assert_array_equal(one, again)
            np.testing.assert_array_equal(one[:1], first)


@pytest.mark.parametrize("name", ("e8p2", "e8p2_tensor", "e8p3", "e8p4_tensor"))
@pytest.mark.parametrize("activation_bits", (8, 32))
def test_function_is_the_product_and_the_kernel(name, activation_bits):
    shape = (17, 72)
    model, weight = model_of(name, shape, activation_bits=activation_bits)
    for x in activations(shape[1])[1:3]:
        by_function, by_kernel = run(model, x, custom_ops=False), run(model, x)
        bound = {8: 64, 32: shape[1]}[activation_bits]
        wanted = matmul_e8p_reference(x, weight, activation_bits)
        mass = matmul_e8p_reference(np.abs(x), np.abs(weight), activation_bits)
        assert (np.abs(by_function - wanted) <= bound * UNIT * mass).all()
        assert (np.abs(by_function - by_kernel) <= 2 * bound * UNIT * mass).all()


def test_half_precision_and_leading_axes():
    shape = (24, 72)
    model, weight = model_of("e8p2", shape, dtype=ir.DataType.FLOAT16, leading=("batch", "tokens"))
    x = draw(2, 3, 72).astype(np.float16)
    for custom_ops in (True, False):
        y = run(model, x, custom_ops=custom_ops)
        assert y.dtype == np.float16
        wanted = matmul_e8p_reference(x, weight)
        np.testing.assert_allclose(y, wanted, rtol=2**-10, atol=1e-3)


def test_no_tokens():
    model, _ = model_of("e8p3", (24, 72))
    assert run(model, np.zeros((0, 72), np.float32)).shape == (0, 24)


def test_an_artifact_decodes_alike_on_another_instruction_set(tmp_path):
    fmt = parse_format("e8p2")
    weight = draw(24, 72, seed=5)
    arrays = fmt.encode(weight)
    packed = fmt.pack(arrays)
    save(one_node_model(MATMUL_E8P, fmt, packed, weight.shape), tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    stored = {name: again.graph.initializers[name].const_value.numpy() for name in packed}
    np.testing.assert_array_equal(fmt.decode(fmt.unpack(stored, weight.shape)), fmt.decode(arrays))
    x = draw(3, 72)
    sides = [run(again, x, instructions=name) for name in INSTRUCTIONS]
    for side in sides[1:]:
        np.testing.assert_array_equal(side, sides[0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 16}, r"codes has shape \[17, 16\], and must have \[16, 16\]"),
        ({"columns": 56}, r"codes has shape \[17, 16\], and must have \[17, 14\]"),
        ({"columns": 60}, "columns is 60, and a code stands for 8 of them"),
        ({"columns": 2**18}, "attribute columns is 262144, and must be from 8 to 131072"),
        ({"bits": 5}, "attribute bits is 5, and must be from 2 to 4"),
        ({"bits": 3}, r"codes has shape \[17, 16\], and must have \[17, 24\]"),
        ({"activation_bits": 16}, "attribute activation_bits is 16, and must be 8"),
    ],
)
def test_wrong_attributes_are_refused_with_a_sentence(change, sentence):
    fmt, arrays = arrays_of("e8p2", (17, 64))
    base = spec_with(8)
    spec = dataclasses.replace(
        base, attributes=lambda fmt, shape: base.attributes(fmt, shape) | change
    )
    model = one_node_model(spec, fmt, fmt.pack(arrays), (17, 64))
    with pytest.raises(OnnxqError, match=f"MatMulE8P: .*{sentence}"), open_session(model):
        pass


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        ("codes", np.zeros((17, 15), np.uint8), r"codes has shape \[17, 15\]"),
        ("codes", np.zeros((17 * 16,), np.uint8), r"codes has shape \[272\]"),
        ("scales", np.ones((16, 1), np.float16), r"scales has shape \[16, 1\]"),
        ("scales", np.ones((17, 2), np.float16), r"scales has shape \[17, 2\]"),
        ("scales", np.ones((17, 1), np.float32), "float"),
        ("codes", np.zeros((17, 16), np.int8), "int8"),
    ],
)
def test_wrong_arrays_are_refused_with_a_sentence(name, array, sentence):
    fmt, arrays = arrays_of("e8p2", (17, 64))
    packed = fmt.pack(arrays) | {name: array}
    model = one_node_model(MATMUL_E8P, fmt, packed, (17, 64))
    with pytest.raises(OnnxqError, match=sentence), open_session(model):
        pass


def test_wrong_activations_are_refused_with_a_sentence():
    model, _ = model_of("e8p2", (17, 64))
    model.graph.inputs[0].shape = ir.Shape(["n", "k"])
    with pytest.raises(OnnxqError, match=r"A has shape \[3, 72\]; its last axis must be columns"):
        run(model, draw(3, 72))


def test_too_many_columns_have_no_operator():
    found = spec_of(parse_format("e8p2"), (8, 2**17 + 8))
    assert found == "MatMulE8P sums at most 131072 products in int32, not 131080"
