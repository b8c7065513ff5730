# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Equal ranges on both sides of a channel, and the same function."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.errors import UnsupportedGraph
from onnxq.graph import read_weight
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.base import Context
from onnxq.passes.equalize_layers import EqualizeLayers

RNG = np.random.default_rng(47)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def uneven(*shape, axis):
    """Channels along ``axis`` whose sizes differ by a factor of up to 400."""
    spread = np.exp(RNG.uniform(-3, 3, shape[axis]))
    return (normal(*shape) * np.expand_dims(spread, [a for a in range(len(shape)) if a != axis])).astype(np.float32)  # fmt: skip


def weight(model, name):
    return read_weight(model.graph.initializers[name]).astype(np.float64)


def ranges(array, axis):
    return np.abs(array).max(axis=tuple(a for a in range(array.ndim) if a != axis))


def per_tensor_error(array, axis, bits=8):
    """With one scale for the whole weight: the relative error of a channel, on average."""
    scale = np.abs(array).max() / (2 ** (bits - 1) - 1)
    error = np.linalg.norm(np.round(array / scale) * scale - array, axis=1 - axis)
    return np.mean(error / np.linalg.norm(array, axis=1 - axis))


def test_two_layers_by_hand(build, judge):
    """r₁ = (4, 1), r₂ = (1, 9): s = (√(4/1), √(1/9)) = (2, 1/3)."""
    model = build(
        "main (float[1, 1] x) => (float[1, 1] y) { h = Gemm (x, w1, b1)  a = Relu (h)  y = MatMul (a, w2) }",
        w1=np.float32([[4, 1]]), b1=np.float32([2, 3]), w2=np.float32([[1], [9]]),
    )  # fmt: skip
    report = judge(model, EqualizeLayers(), {"x": np.float32([[1.5]])})
    np.testing.assert_allclose(weight(model, "w1"), [[2, 3]], rtol=1e-6)
    np.testing.assert_allclose(weight(model, "b1"), [1, 9], rtol=1e-6)
    np.testing.assert_allclose(weight(model, "w2"), [[2], [3]], rtol=1e-6)
    # (4/4 · 1/9 + 1/4 · 9/9) / 2 = 18 %; afterwards (2/3 · 2/3 + 1) / 2 = 72 %.
    assert report.changed[0].note == "channels use 18% to 72% of the range of both weights"


ACTIVATIONS = {
    "nothing": "a = Identity (h)",
    "relu": "a = Relu (h)",
    "leaky": "a = LeakyRelu <alpha = 0.2> (h)",
    "prelu": "a = PRelu (h, slope)",
    "clip_at_zero": "a = Clip (h, zero)",
}
SETTINGS = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@SETTINGS
@given(
    rows=st.integers(1, 5),
    inner=st.integers(1, 24),
    out=st.integers(2, 9),
    turned=st.integers(0, 1),
    has_bias=st.booleans(),
)
def test_gemm_pairs(build, judge, activation, rows, inner, out, turned, has_bias):
    turn = (
        (lambda a, axis: np.ascontiguousarray(uneven(*a, axis=axis).T))
        if turned
        else (lambda a, axis: uneven(*a, axis=axis))
    )
    bias = ", b1" if has_bias else ""
    model = build(
        f"main (float[{rows}, 6] x) => (float[{rows}, {out}] y) {{ h = Gemm <transB = {turned}> (x, w1{bias})  {ACTIVATIONS[activation]}  y = Gemm <transB = {turned}> (a, w2, b2) }}",
        w1=turn((6, inner), 1), w2=turn((inner, out), 0), b1=normal(inner), b2=normal(out), zero=np.float32(0), slope=np.abs(normal(inner)),
    )  # fmt: skip
    judge(model, EqualizeLayers(), {"x": normal(rows, 6)})
    first, second = weight(model, "w1"), weight(model, "w2")
    np.testing.assert_allclose(ranges(first, 1 - turned), ranges(second, turned), rtol=1e-5)


@SETTINGS
@given(
    inner=st.integers(1, 12),
    kernel=st.integers(1, 3),
    dims=st.integers(1, 2),
    multiplier=st.integers(1, 2),
)
def test_convolutions_and_what_is_depthwise_between(build, judge, inner, kernel, dims, multiplier):
    space, window = (14,) * dims, (kernel,) * dims
    wide = inner * multiplier
    shape, out = ", ".join(map(str, space)), ", ".join("abc"[:dims])
    model = build(
        f"main (float[2, 3, {shape}] x) => (float[2, 5, {out}] y) {{ h = Conv (x, w1, b1)  a = Relu (h)  d = Conv <group = {inner}> (a, w2, b2)  e = LeakyRelu (d)  p = MaxPool <kernel_shape = {list(window)}> (e)  y = Conv (p, w3) }}",
        w1=uneven(inner, 3, *window, axis=0), b1=normal(inner), w2=uneven(wide, 1, *window, axis=0), b2=normal(wide), w3=uneven(5, wide, *window, axis=1),
    )  # fmt: skip
    judge(model, EqualizeLayers(), {"x": normal(2, 3, *space)})
    first, middle, last = (weight(model, name) for name in ("w1", "w2", "w3"))
    reads = ranges(middle.reshape(inner, -1), 0)
    np.testing.assert_allclose(ranges(first, 0), reads, rtol=4e-3)
    np.testing.assert_allclose(ranges(middle, 0), ranges(last, 1), rtol=4e-3)


@SETTINGS
@given(seed=st.integers(0, 1000))
def test_the_scale_between_two_layers_is_forgotten(build, seed):
    """S₁ W₁ and W₂ S₁⁻¹ end as W₁ and W₂ do, and one scale for a weight costs as little there."""
    generator = np.random.default_rng(seed)
    w, u = (generator.standard_normal(shape).astype(np.float32) for shape in ((9, 16), (16, 7)))
    spread = np.exp(generator.uniform(-3, 3, 16)).astype(np.float32)
    ends, errors = [], []
    for by in (np.ones(16, np.float32), spread):
        text = "main (float[3, 9] x) => (float[3, 7] y) { h = MatMul (x, w)  a = Relu (h)  y = MatMul (a, u) }"
        model = build(text, w=w * by, u=u / by[:, None])
        before = [per_tensor_error(weight(model, n), axis) for n, axis in (("w", 1), ("u", 0))]
        EqualizeLayers().call(model, Context())
        ends.append([weight(model, name) for name in "wu"])
        errors.append(
            (before, [per_tensor_error(weight(model, n), axis) for n, axis in (("w", 1), ("u", 0))])
        )
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-5)
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-5)
    before, after = errors[1]
    assert max(after) < min(before) / 4


def test_transposed_convolution(build, judge):
    model = build(
        "main (float[1, 3, 6, 6] x) => (float[1, 4, a, b] y) { h = ConvTranspose (x, w1, b1)  a1 = Relu (h)  y = ConvTranspose (a1, w2) }",
        w1=uneven(3, 7, 2, 2, axis=1), b1=normal(7), w2=uneven(7, 4, 2, 2, axis=0),
    )  # fmt: skip
    judge(model, EqualizeLayers(), {"x": normal(1, 3, 6, 6)})
    np.testing.assert_allclose(
        ranges(weight(model, "w1"), 1), ranges(weight(model, "w2"), 0), rtol=1e-5
    )


@pytest.mark.parametrize("length", [2, 5])
def test_a_chain_comes_to_rest(build, judge, length):
    """All pairs of it are equal at once; a product of three weights of one element is exact."""
    layers = "  ".join(f"h{i} = MatMul (a{i}, w{i})  a{i + 1} = Relu (h{i})" for i in range(length))
    weights = {f"w{i}": uneven(8, 8, axis=1) for i in range(length)}
    model = build(
        f"main (float[3, 8] a0) => (float[3, 2] y) {{ {layers}  y = MatMul (a{length}, w) }}",
        **weights, w=uneven(8, 2, axis=0),
    )  # fmt: skip
    report = judge(model, EqualizeLayers(), {"a0": normal(3, 8)})
    assert not report.notes
    names = [*weights, "w"]
    for first, second in itertools.pairwise(names):
        np.testing.assert_allclose(
            ranges(weight(model, first), 1), ranges(weight(model, second), 0), rtol=4e-3
        )


def test_a_chain_that_is_cut_off_says_so(build):
    model = build(
        "main (float[3, 8] x) => (float[3, 8] y) { a = MatMul (x, w0)  b = MatMul (a, w1)  y = MatMul (b, w2) }",
        w0=uneven(8, 8, axis=1), w1=uneven(8, 8, axis=1), w2=uneven(8, 8, axis=1),
    )  # fmt: skip
    report = EqualizeLayers(rounds=1).call(model, Context())
    assert report.notes == ("the 2 pairs up to 'MatMul_2' were still changing after 1 rounds",)


def test_readers_of_one_activation_share_their_factors(build, judge):
    """r₂ of a channel is the largest of all weights that read it."""
    model = build(
        "main (float[3, 4] x) => (float[3, 2] y, float[3, 5] z) { h = MatMul (x, w)  a = Relu (h)  y = MatMul (a, u)  z = MatMul (a, v) }",
        w=uneven(4, 6, axis=1), u=uneven(6, 2, axis=0), v=uneven(6, 5, axis=0),
    )  # fmt: skip
    judge(model, EqualizeLayers(), {"x": normal(3, 4)})
    reads = np.maximum(ranges(weight(model, "u"), 0), ranges(weight(model, "v"), 0))
    np.testing.assert_allclose(ranges(weight(model, "w"), 1), reads, rtol=1e-5)


def test_the_value_and_the_output_of_attention(build, judge):
    """p · (v S⁻¹) · (S W_o): the factors of a value channel pass the probabilities."""
    model = build(
        """main (float[2, 5, 12] x) => (float[2, 5, 12] y) {
          v = MatMul (x, wv)  r = Reshape (v, heads)  t = Transpose <perm = [0, 2, 1, 3]> (r)
          q = MatMul (x, wq)  qr = Reshape (q, heads)  qt = Transpose <perm = [0, 2, 1, 3]> (qr)
          k = MatMul (x, wk)  kr = Reshape (k, heads)  kt = Transpose <perm = [0, 2, 3, 1]> (kr)
          s = MatMul (qt, kt)  p = Softmax (s)  c = MatMul (p, t)
          ct = Transpose <perm = [0, 2, 1, 3]> (c)  j = Reshape (ct, flat)  y = MatMul (j, wo) }""",
        wv=uneven(12, 12, axis=1), wq=normal(12, 12), wk=normal(12, 12), wo=uneven(12, 12, axis=0),
        heads=np.array([0, 0, 3, 4]), flat=np.array([0, 0, 12]),
    )  # fmt: skip
    judge(model, EqualizeLayers(), {"x": normal(2, 5, 12)})
    np.testing.assert_allclose(
        ranges(weight(model, "wv"), 1), ranges(weight(model, "wo"), 0), rtol=1e-5
    )


def test_channels_that_carry_nothing_keep_their_weights(build, judge):
    w, u = normal(4, 5), normal(5, 3)
    w[:, 1], u[3] = 0, 0
    model = build(
        "main (float[3, 4] x) => (float[3, 3] y) { h = MatMul (x, w)  a = Relu (h)  y = MatMul (a, u) }",
        w=w,
        u=u,
    )
    judge(model, EqualizeLayers(), {"x": normal(3, 4)})
    np.testing.assert_array_equal(weight(model, "u")[1], u[1])
    np.testing.assert_array_equal(weight(model, "w")[:, 3], w[:, 3])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_keep_their_type(build, dtype):
    kind = "float16" if dtype is np.float16 else "float"
    model = build(
        f"main ({kind}[3, 4] x) => ({kind}[3, 3] y) {{ h = MatMul (x, w)  a = Relu (h)  y = MatMul (a, u) }}",
        w=uneven(4, 5, axis=1).astype(dtype), u=uneven(5, 3, axis=0).astype(dtype),
    )  # fmt: skip
    assert EqualizeLayers().call(model, Context()).modified
    assert {read_weight(v).dtype for v in model.graph.initializers.values()} == {np.dtype(dtype)}


LEFT = {
    "relu6": ("h = MatMul (x, w)  a = Clip (h, low, high)  y = MatMul (a, u)", "Clip 'Clip_1' clips them at values that are not 0"),
    "gelu": ("h = MatMul (x, w)  a = Gelu (h)  y = MatMul (a, u)", "Gelu 'Gelu_1' is on their way"),
    "norm": ("a = LayerNormalization (x, g, g)  y = MatMul (a, u)", "its input comes from the norm 'LayerNormalization_0', whose scale is not quantized"),
    "batch_norm": ("h = MatMul (x, w)  a = BatchNormalization (h, g, g, g, g)  y = MatMul (a, u)", "its input comes from 'BatchNormalization_1': run fold_batch_norm first"),
    "factor": ("h = MatMul (x, w)  a = Mul (h, g)  y = MatMul (a, u)", "its input is scaled by the constants of 'Mul_1', and not by the weight of a layer"),
    "sum": ("h = MatMul (x, w)  a = Add (h, x)  y = MatMul (a, u)", "Add 'Add_1' joins them with another activation"),
    "output": ("z = MatMul (x, w)  y = MatMul (z, u)", "they are also the graph output 'z'"),
    "shared": ("h = MatMul (x, w)  y = MatMul (h, w)", "weight 'w'"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(LEFT))
def test_an_obstacle_is_named_and_the_graph_left(build, judge, case):
    body, sentence = LEFT[case]
    outputs = "float[3, 6] y, float[3, 6] z" if case == "output" else "float[3, 6] y"
    model = build(
        f"main (float[3, 6] x) => ({outputs}) {{ {body} }}",
        w=uneven(6, 6, axis=1), u=uneven(6, 6, axis=0), g=np.abs(normal(6)) + 1, low=np.float32(0), high=np.float32(6),
    )  # fmt: skip
    report = judge(model, EqualizeLayers(), {"x": normal(3, 6)}, modified=False)
    assert sentence in report.left[-1].reason


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"exclude": ("MatMul_0",)}, "the recipe excludes 'MatMul_0', which gives its input"),
        ({"exclude": ("MatMul_2",)}, "the recipe excludes it"),
        ({"sites": ("head*",)}, "the recipe does not name it"),
    ],
)
def test_the_recipe_chooses(build, options, sentence):
    model = build("main (float[3, 4] x) => (float[3, 3] y) { h = MatMul (x, w)  a = Relu (h)  y = MatMul (a, u) }",
                  w=uneven(4, 5, axis=1), u=uneven(5, 3, axis=0))  # fmt: skip
    report = EqualizeLayers(**options).call(model, Context())
    assert not report.modified
    assert report.left[-1].reason == sentence


def test_a_calibrated_model_is_refused(build):
    model = build("main (float[3, 4] x) => (float[3, 5] y) { y = MatMul (x, w) }", w=normal(4, 5))
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(
        UnsupportedGraph,
        match="equalize_layers changes the activations, and this model is already CALIBRATED",
    ):
        EqualizeLayers().requires(model)


def test_weights_are_computed_only_when_read(build):
    model = build("main (float[3, 4] x) => (float[3, 3] y) { h = MatMul (x, w)  a = Relu (h)  y = MatMul (a, u) }",
                  w=uneven(4, 5, axis=1), u=uneven(5, 3, axis=0))  # fmt: skip
    EqualizeLayers().call(model, Context())
    assert isinstance(model.graph.initializers["w"].const_value, ir.LazyTensor)


CLIPS = {
    "relu6": ("zero", "six"),
    "both": ("low", "six"),
    "only_below": ("low", ""),
    "only_above": ("", "six"),
}


@pytest.mark.parametrize("case", list(CLIPS))
@pytest.mark.parametrize("kind", ["conv", "matmul", "depthwise"])
def test_a_clip_between_layers_gets_a_bound_for_each_channel(build, judge, kinds, case, kind):
    clip = "Clip (h, {}, {})".format(*CLIPS[case]).replace(", )", ")")
    if kind == "matmul":
        text = f"main (float[4, 3] x) => (float[4, 5] y) {{ h = Gemm (x, w1, b1)  a = {clip}  y = MatMul (a, w2) }}"
        weights = {"w1": uneven(3, 6, axis=1), "w2": uneven(6, 5, axis=0)}
        sample, axes = normal(4, 3), (1, 0)
    else:
        groups = 6 if kind == "depthwise" else 1
        text = f"main (float[1, 3, 7, 7] x) => (float[1, 6, 4, 4] y) {{ h = Conv (x, w1, b1)  a = {clip}  y = Conv <group = {groups}> (a, w2) }}"
        weights = {
            "w1": uneven(6, 3, 2, 2, axis=0),
            "w2": uneven(6, 6 // groups, 3, 3, axis=0 if groups > 1 else 1),
        }
        sample, axes = normal(1, 3, 7, 7), (0, 0 if groups > 1 else 1)
    model = build(text, **weights, b1=normal(6), zero=np.float32(0), six=np.float32(0.6), low=np.float32(-0.4))  # fmt: skip
    judge(model, EqualizeLayers(clips="open"), {"x": sample})
    sides = [
        ranges(weight(model, name), axis) for name, axis in zip(("w1", "w2"), axes, strict=True)
    ]
    np.testing.assert_allclose(sides[0], sides[1], rtol=1e-5)
    assert "Clip" not in kinds(model)


def test_clips_that_gain_nothing_stay(build, judge, kinds):
    """One is read by an addition, one stands behind a sum, one between layers that are even."""
    model = build(
        "main (float[4, 6] x) => (float[4, 6] y) { h = MatMul (x, u)  a = Clip (h, zero, six)  s = Add (a, x)  b = Clip (s, zero, six)  c = MatMul (b, u)  d = Clip (c, zero, six)  y = MatMul (d, v) }",
        u=np.eye(6, dtype=np.float32), v=np.eye(6, dtype=np.float32), zero=np.float32(0), six=np.float32(6),
    )  # fmt: skip
    before = kinds(model)
    judge(model, EqualizeLayers(clips="open"), {"x": normal(4, 6)}, modified=False)
    assert kinds(model) == before
