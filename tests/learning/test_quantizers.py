"""The simulated quantizers are the stored formats, and their gradients those of the surrogate."""

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from onnxq.errors import FormatError  # noqa: E402
from onnxq.formats import parse_format  # noqa: E402
from onnxq.learning.quantizers import (  # noqa: E402
    TokenQuantizer,
    WeightQuantizer,
    round_through,
)
from onnxq.passes.fake_quantization import fake_quantizer  # noqa: E402
from onnxq.runtime import open_session  # noqa: E402

FORMATS = [
    "int4_g64",
    "int4_g32_asym",
    "int3_channel",
    "int2_g16_asym_f16",
    "int8_channel",
    "int8_tensor",
    "int4_channel_pos",
    "int5_g48_f16",
    "int4_b16x32",
    "int4_tensor_asym",
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(7, 96), (33, 130), (1, 5)])
def test_forward_is_decode_of_encode(name, shape):
    rng = np.random.default_rng(0)
    weight = rng.standard_t(4, shape).astype(np.float32)
    weight[0] = 0.0
    fmt = parse_format(name)
    wanted = fmt.decode(fmt.encode(weight))
    found = WeightQuantizer(fmt=fmt)(torch.from_numpy(weight)).numpy()
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", ["int4_g64", "int3_g16_asym", "int4_channel", "int4_g32_f16"])
def test_one_clip_factor_is_one_shrink(name):
    weight = np.random.default_rng(1).standard_normal((16, 128)).astype(np.float32)
    fmt = parse_format(name)
    factor = np.float32(0.8125)
    wanted = fmt.decode(fmt.encode(weight, shrink=(float(factor),)))
    shape = fmt.granularity.scales_shape(*weight.shape)
    clip = torch.full(shape, float(factor))
    found = WeightQuantizer(fmt=fmt)(torch.from_numpy(weight), clip).numpy()
    assert np.array_equal(found, wanted)


def _surrogate(weight, clip, residual, bits):
    """int<bits>_g<all> symmetric with the rounding residual held fixed, float64."""
    h = 2 ** (bits - 1)
    low, high = weight.min(1, keepdims=True), weight.max(1, keepdims=True)
    extreme = np.where(high > -low, high, low)
    scale = extreme / -h * clip
    return (np.clip(weight / scale, -h, h - 1) + residual) * scale


def test_gradients_are_finite_differences_of_the_surrogate():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((3, 16)).astype(np.float32)
    clip = np.float32([[0.7], [0.9], [1.0]])
    weigh = rng.standard_normal(weight.shape)
    fmt = parse_format("int3_channel")
    w = torch.from_numpy(weight).requires_grad_()
    c = torch.from_numpy(clip).requires_grad_()
    (WeightQuantizer(fmt=fmt)(w, c) * torch.from_numpy(weigh)).sum().backward()

    exact, factor = weight.astype(np.float64), clip.astype(np.float64)
    clamped = _surrogate(exact, factor, 0.0, 3)
    low, high = exact.min(1, keepdims=True), exact.max(1, keepdims=True)
    scale = np.where(high > -low, high, low) / -4 * factor
    residual = np.rint(clamped / scale) - clamped / scale
    step = 1e-6
    for index in np.ndindex(weight.shape):
        moved = exact.copy()
        moved[index] += step
        back = exact.copy()
        back[index] -= step
        change = _surrogate(moved, factor, residual, 3) - _surrogate(back, factor, residual, 3)
        expected = (change * weigh).sum() / (2 * step)
        assert w.grad[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-5), index
    for row in range(3):
        moved, back = factor.copy(), factor.copy()
        moved[row] += step
        back[row] -= step
        change = _surrogate(exact, moved, residual, 3) - _surrogate(exact, back, residual, 3)
        expected = (change * weigh).sum() / (2 * step)
        if row < 2:  # at clip = 1 the extreme sits on the edge of the clamp
            assert c.grad[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_rounding_lets_the_gradient_through_unchanged():
    x = torch.tensor([0.5, 1.5, -2.4], requires_grad=True)
    y = round_through(x)
    assert y.tolist() == [0.0, 2.0, -2.0]
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_vector_is_refused():
    with pytest.raises(FormatError, match="is no float32 matrix"):
        WeightQuantizer(fmt=parse_format("int4"))(torch.zeros(4))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", [1.0, 0.9375, 0.6])
def test_tokens_are_rounded_as_the_written_operator_rounds_them(bits, symmetric, clip):
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "g (float[n, 24] x) => (float[n, 24] y) { y = Identity(x) }"
    )
    node = next(iter(model.graph))
    made = fake_quantizer(
        model, node.inputs[0], axes=(-1,), bits=bits, symmetric=symmetric, clip=clip
    )
    model.graph.insert_before(node, made)
    node.replace_input_with(0, made.outputs[0])
    made.outputs[0].name = "rounded"
    x = np.random.default_rng(5).standard_t(3, (64, 24)).astype(np.float32)
    x[0], x[1] = 0.0, np.abs(x[1])
    with open_session(model, optimize=False) as session:
        wanted = session.run({"x": x})["y"]
    found = TokenQuantizer(bits=bits, symmetric=symmetric)(torch.from_numpy(x), clip).numpy()
    assert np.array_equal(found, wanted)


def test_a_clip_gets_the_gradient_of_the_surrogate():
    x = np.random.default_rng(6).standard_normal((5, 16)).astype(np.float32)
    weigh = np.random.default_rng(7).standard_normal(x.shape)
    clip = torch.tensor(0.8, requires_grad=True)
    found = TokenQuantizer(bits=3)(torch.from_numpy(x), clip)
    (found * torch.from_numpy(weigh)).sum().backward()

    def surrogate(share, residual):
        scale = np.abs(x).max(1, keepdims=True).astype(np.float64) * share / 3
        return (np.clip(x / scale, -3, 3) + residual) * scale

    scale = np.abs(x).max(1, keepdims=True).astype(np.float64) * 0.8 / 3
    clamped = np.clip(x / scale, -3, 3)
    residual = np.rint(clamped) - clamped
    change = surrogate(0.8 + 1e-6, residual) - surrogate(0.8 - 1e-6, residual)
    assert clip.grad.item() == pytest.approx((change * weigh).sum() / 2e-6, rel=1e-4)
