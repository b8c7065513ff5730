# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""W x + b = W (x - z) + (b + W z), wherever the bias is kept."""

import numpy as np
import pytest

from onnxq.graph import find_sites, read_weight
from onnxq.graph.check import check_graph
from onnxq.passes.base import Promise
from onnxq.passes.promise import PromiseKeeper
from onnxq.passes.site_shift import (
    norm_refusal,
    output_refusal,
    shift_input,
    shift_norm,
    shift_output,
    shift_refusal,
)
from onnxq.runtime import open_session

RNG = np.random.default_rng(53)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def last_site(model):
    return find_sites(model)[-1]


READERS = {
    "matmul": "y = MatMul (n, w)",
    "matmul_and_add": "h = MatMul (n, w)  y = Add (h, b)",
    "add_in_front": "h = MatMul (n, w)  y = Add (b, h)",
    "gemm": "f = Reshape (n, rows)  y = Gemm <alpha = 0.5, beta = 2.0> (f, w, b)",
    "gemm_turned": "f = Reshape (n, rows)  y = Gemm <transB = 1, alpha = 3.0> (f, wt)",
    "gemm_row": "f = Reshape (n, rows)  y = Gemm (f, w, br)",
    "shared_bias": "h = MatMul (n, w)  k = Add (h, b)  y = Mul (k, b)",
    "transposed": "v = Transpose (wt)  y = MatMul (n, v)",
}


@pytest.mark.parametrize("case", list(READERS))
def test_a_norm_shifted_and_its_reader_shifted_back(build, case):
    shape = "6, 5" if case.startswith("gemm") else "2, 3, 5"
    model = build(
        f"main (float[2, 3, 4] x) => (float[{shape}] y) {{ n = LayerNormalization (x, g, c)  {READERS[case]} }}",
        g=normal(4), c=normal(4), w=normal(4, 5), wt=normal(5, 4), b=normal(5), br=normal(1, 5), rows=np.array([6, 4]),
    )  # fmt: skip
    sample = {"x": normal(2, 3, 4)}
    keeper = PromiseKeeper(model, [sample])
    with open_session(model, extra_outputs=["n"]) as session:
        before = session.run(sample)["n"]
    z, site = 3 * normal(4).astype(np.float64), last_site(model)
    assert shift_refusal(site) is None
    assert norm_refusal(model.graph[0]) is None
    shift_norm(model, model.graph[0], lambda: -z)
    shift_input(model, site, lambda: z)
    check_graph(model)
    keeper.check("shift", Promise.SAME_FUNCTION, model)
    assert [value.name for value in model.graph.outputs] == ["y"]
    with open_session(model, extra_outputs=["n"]) as session:
        np.testing.assert_allclose(session.run(sample)["n"], before - z, atol=1e-5)


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (2, 2), (4, 3)])
def test_a_convolution(build, bias, groups, kernel):
    model = build(
        f"main (float[2, 4, 6, 6] x) => (float[2, 8, k, l] y) {{ n = Sub (x, z)  y = Conv <group = {groups}> (n, w{bias}) }}",
        w=normal(8, 4 // groups, kernel, kernel), b=normal(8), z=np.zeros((4, 1, 1), np.float32),
    )  # fmt: skip
    keeper = PromiseKeeper(model, [{"x": normal(2, 4, 6, 6)}])
    z = normal(4)
    shift_input(model, last_site(model), lambda: z)
    model.graph.initializers["z"].const_value = type(model.graph.initializers["z"].const_value)(
        z.reshape(4, 1, 1), name="z"
    )
    keeper.check("shift", Promise.SAME_FUNCTION, model)


def test_a_weight_on_the_left(build):
    model = build("main (float[2, 4, 7] x) => (float[2, 5, 7] y) { n = Sub (x, z)  y = MatMul (w, n) }",
                  w=normal(5, 4), z=np.zeros((4, 1), np.float32))  # fmt: skip
    keeper = PromiseKeeper(model, [{"x": normal(2, 4, 7)}])
    z = normal(4)
    shift_input(model, last_site(model), lambda: z)
    model.graph.initializers["z"].const_value = type(model.graph.initializers["z"].const_value)(
        z.reshape(4, 1), name="z"
    )
    keeper.check("shift", Promise.SAME_FUNCTION, model)


def test_the_output_of_a_layer_moves_by_the_shift(build):
    model = build(
        "main (float[3, 4] x) => (float[3, 5] y) { y = Gemm <alpha = 0.25> (x, w) }", w=normal(4, 5)
    )
    sample, shift = {"x": normal(3, 4)}, normal(5).astype(np.float64)
    with open_session(model) as session:
        before = session.run(sample)["y"]
    shift_output(model, last_site(model), lambda: shift)
    with open_session(model) as session:
        # A shift is of the product of weight and input, which alpha multiplies.
        np.testing.assert_allclose(session.run(sample)["y"], before + 0.25 * shift, atol=1e-5)


def test_a_norm_without_a_bias_gets_one(build):
    model = build(
        "main (float[3, 4] x) => (float[3, 4] y) { y = LayerNormalization (x, g) }", g=normal(4)
    )
    sample, shift = {"x": normal(3, 4)}, normal(4).astype(np.float64)
    with open_session(model) as session:
        before = session.run(sample)["y"]
    shift_norm(model, model.graph[0], lambda: shift)
    with open_session(model) as session:
        np.testing.assert_allclose(session.run(sample)["y"], before + shift, atol=1e-5)


def test_a_shared_bias_is_left_to_the_others(build):
    model = build("main (float[3, 4] x) => (float[3, 5] y, float[3, 5] z) { y = Gemm (x, w, b)  z = Gemm (x, u, b) }",
                  w=normal(4, 5), u=normal(4, 5), b=normal(5))  # fmt: skip
    shift_output(model, find_sites(model)[0], lambda: np.ones(5))
    kept = [read_weight(site.bias) for site in find_sites(model)]
    np.testing.assert_allclose(kept[0], kept[1] + 1, rtol=1e-6)


LEFT = {
    "pads": ("y = Conv <pads = [1, 1, 1, 1]> (x, k)", "'Conv_0' pads its input with zeros, which have no bias"),
    "same": ("y = Conv <auto_pad = \"SAME_UPPER\"> (x, k)", "'Conv_0' pads its input with zeros"),
    "transposed": ("y = ConvTranspose (x, k)", "'ConvTranspose_0' (ConvTranspose) takes no bias of one number for each output"),
    "computed": ("t = Neg (b)  y = Conv (x, k, t)", "the bias of 'Conv_1' is computed or not"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(LEFT))
def test_what_takes_no_shift_says_so(build, case):
    body, sentence = LEFT[case]
    model = build(
        f"main (float[1, 4, 6, 6] x) => (float[1, 4, a, c] y) {{ {body} }}",
        k=normal(4, 4, 3, 3),
        b=normal(4),
    )
    assert sentence in shift_refusal(last_site(model))


def test_norms_without_a_place_for_it(build):
    model = build(
        "main (float[3, 4] x, float[4] g) => (float[3, 4] y) { r = RMSNormalization (x, g)  y = LayerNormalization (r, g) }",
        opset=23,
    )
    assert (
        norm_refusal(model.graph[0])
        == "RMSNormalization 'RMSNormalization_0' has no bias to take a shift"
    )
    assert norm_refusal(model.graph[1]) == "the scale of 'LayerNormalization_1' is computed"


def test_a_bias_for_rows_and_a_beta_of_zero(build):
    model = build("main (float[3, 4] x) => (float[3, 5] y, float[3, 5] z) { y = Gemm (x, w, c)  z = Gemm <beta = 0.0> (x, w, b) }",
                  w=normal(4, 5), c=normal(3, 1), b=normal(5))  # fmt: skip
    first, second = find_sites(model)
    assert (
        output_refusal(first)
        == "the bias of 'Gemm_0' is computed or not one number for each output"
    )
    assert output_refusal(second) == "'Gemm_1' multiplies its bias by 0"
