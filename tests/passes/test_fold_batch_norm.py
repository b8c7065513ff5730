# ruff: noqa: E501 - a graph in text syntax reads best on one line
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.passes.base import Context
from onnxq.passes.fold_batch_norm import FoldBatchNorm

RNG = np.random.default_rng(13)


def norm_of(channels):
    f = np.float32
    return {
        "g": RNG.uniform(0.5, 2, channels).astype(f),
        "b": RNG.standard_normal(channels).astype(f),
        "m": RNG.standard_normal(channels).astype(f),
        "v": RNG.uniform(0.1, 2, channels).astype(f),
    }


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


BN = "y = BatchNormalization <epsilon = 0.001> (h, g, b, m, v)"


@pytest.mark.parametrize("bias", ["", ", c"])
def test_conv(build, judge, kinds, bias):
    model = build(f"main (float[1, 4, 6, 6] x) => (float[1, 6, k, l] y) {{ h = Conv <group = 2> (x, w{bias})  {BN} }}",
                  w=normal(6, 2, 3, 3), c=normal(6), **norm_of(6))  # fmt: skip
    judge(model, FoldBatchNorm(), {"x": normal(1, 4, 6, 6)})
    assert kinds(model) == ["Conv"]
    assert {"g", "b", "m", "v"} & {v.name for v in model.graph[0].inputs} == set()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=st.integers(1, 3), each_in=st.integers(1, 3), each_out=st.integers(1, 3))
def test_transposed_convolution_of_any_groups(build, judge, kinds, groups, each_in, each_out):
    out, size = groups * each_out, groups * each_in
    model = build(f"main (float[1, {size}, 4] x) => (float[1, {out}, l] y) {{ h = ConvTranspose <group = {groups}> (x, w)  {BN} }}",
                  w=normal(size, each_out, 3), **norm_of(out))  # fmt: skip
    judge(model, FoldBatchNorm(), {"x": normal(1, size, 4)})
    assert kinds(model) == ["ConvTranspose"]


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5)])
def test_gemm(build, judge, kinds, turned, bias):
    given_bias = {} if bias is None else {"c": normal(*bias) if bias else np.float32(0.7)}
    model = build(f"main (float[2, 3] x) => (float[2, 5] y) {{ h = Gemm <alpha = 0.5, transB = {turned}> (x, w{'' if bias is None else ', c'})  {BN} }}",
                  w=normal(5, 3) if turned else normal(3, 5), **given_bias, **norm_of(5))  # fmt: skip
    judge(model, FoldBatchNorm(), {"x": normal(2, 3)})
    assert kinds(model) == ["Gemm"]


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (f"h = Conv (x, w)  {BN}", "float[1, 4, 3] y, float[1, 4, 3] h", "'h', is also a graph output"),
        (f"h = Conv (x, w)  z = Neg (h)  {BN}", "float[1, 4, 3] y, float[1, 4, 3] z", "'h', is also read elsewhere"),
        (f"h = Conv (x, w)  z = Conv (x, w)  {BN}", "float[1, 4, 3] y, float[1, 4, 3] z", "the weight 'w' is shared: run untie_weights first"),
        (f"h = Relu (x)  {BN}", "float[1, 4, 3] y", "'h', is no Conv or Gemm output"),
        (f"u = Neg (w)  h = Conv (x, u)  {BN}", "float[1, 4, 3] y", "the weight of Conv 'Conv_1' is not constant"),
    ],
)  # fmt: skip
def test_an_obstacle_is_named_and_the_graph_left(build, judge, kinds, body, outputs, reason):
    model = build(
        f"main (float[1, 4, 3] x) => ({outputs}) {{ {body} }}", w=normal(4, 4, 1), **norm_of(4)
    )
    before = kinds(model)
    report = judge(model, FoldBatchNorm(), {"x": normal(1, 4, 3)}, modified=False)
    assert reason in report.left[0].reason
    assert kinds(model) == before


def test_training_mode_is_left(build):
    model = build("main (float[2, 4, 3] x) => (float[2, 4, 3] y) { h = Conv (x, w)  y = BatchNormalization <training_mode = 1> (h, g, b, m, v) }",
                  w=normal(4, 4, 1), **norm_of(4))  # fmt: skip
    report = FoldBatchNorm().call(model, Context())
    assert report.left[0].reason == "it is in training mode: export the model in evaluation mode"


def test_weights_are_computed_only_when_read(build):
    model = build(f"main (float[1, 4, 3] x) => (float[1, 4, 3] y) {{ h = Conv (x, w)  {BN} }}",
                  w=normal(4, 4, 1), **norm_of(4))  # fmt: skip
    FoldBatchNorm().call(model, Context())
    assert isinstance(model.graph[0].inputs[1].const_value, ir.LazyTensor)
