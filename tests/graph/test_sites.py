"""Sites: one screen of text for each way to write a linear map."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.sites import find_sites
from onnxq.graph.weights import read_weight


def only(model):
    (site,) = find_sites(model)
    return site


def test_matmul_with_weight_on_the_right_and_bias_behind(written):
    model = written(
        """g (float[N,4] x, float w, float b) => (float[N,6] y) {
            h = MatMul(x, w)
            y = Add(b, h)
        }""",
        w=(4, 6),
        b=(6,),
    )
    site = only(model)
    assert (site.kind, site.weight_index, site.in_axis, site.out_axis) == ("MatMul", 1, 0, 1)
    assert site.weight.name == "w" and site.shape == (4, 6)
    assert site.input.name == "x" and site.output.name == "h" and site.result.name == "y"
    assert site.bias.name == "b" and site.bias_node.op_type == "Add"
    assert site.refusal is None and site.already is None


def test_matmul_with_weight_on_the_left(written):
    model = written(
        """g (float w, float[4,N] x, float b) => (float[6,N] y) {
            h = MatMul(w, x)
            y = Add(h, b)
        }""",
        w=(6, 4),
        b=(6, 1),
    )
    site = only(model)
    assert (site.weight_index, site.in_axis, site.out_axis) == (0, 1, 0)
    assert site.input.name == "x"
    assert site.bias.name == "b"


@pytest.mark.parametrize(
    ("shape", "is_bias"),
    [((6,), True), ((1, 1, 6), True), ((1,), False), ((), False), ((3, 6), False), ((6, 1), False)],
)
def test_only_one_value_for_each_feature_is_a_bias(written, shape, is_bias):
    model = written(
        "g (float[3,4] x, float w, float b) => (float y) { h = MatMul(x, w)\n y = Add(h, b) }",
        w=(4, 6),
        b=np.zeros(shape, np.float32),
    )
    assert (only(model).bias is not None) == is_bias


def test_an_add_is_no_bias_when_the_product_is_read_twice_or_given_out(written):
    twice = """g (float[N,4] x, float w, float b) => (float y) {
        h = MatMul(x, w)
        s = Add(h, b)
        y = Mul(s, h)
    }"""
    given = """g (float[N,4] x, float w, float b) => (float y, float h) {
        h = MatMul(x, w)
        y = Add(h, b)
    }"""
    for text in (twice, given):
        assert only(written(text, w=(4, 6), b=(6,))).bias is None


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_axes_follow_trans_b(written, trans):
    model = written(
        f"g (float[N,4] x, float w, float c) => (float y) {{ y = Gemm<transB={trans}>(x, w, c) }}",
        w=(6, 4) if trans else (4, 6),
        c=(6,),
    )
    site = only(model)
    assert site.shape[site.in_axis] == 4 and site.shape[site.out_axis] == 6
    assert site.bias.name == "c" and site.bias_node is None


def test_the_computed_addend_of_a_gemm_is_no_bias(written):
    model = written(
        "g (float[N,4] x, float w, float[N,6] r) => (float y) { y = Gemm(x, w, r) }", w=(4, 6)
    )
    assert only(model).bias is None


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution(written, rank):
    model = written(
        "g (float x, float w, float b) => (float y) { y = Conv<group=2>(x, w, b) }",
        w=(6, 2, *[3] * rank),
        b=(6,),
    )
    site = only(model)
    assert (site.in_axis, site.out_axis, site.groups, site.bias.name) == (1, 0, 2, "b")


def test_bias_behind_a_convolution_lies_on_the_channel_axis(written):
    text = "g (float x, float w, float b) => (float y) { h = Conv(x, w)\n y = Add(h, b) }"
    assert only(written(text, w=(6, 2, 3, 3), b=(1, 6, 1, 1))).bias_node.op_type == "Add"
    assert only(written(text, w=(6, 2, 3, 3), b=(6,))).bias_node is None


def test_transposed_convolution_counts_the_bias_over_all_groups(written):
    model = written(
        """g (float x, float w, float b) => (float y) {
            h = ConvTranspose<group=2>(x, w)
            y = Add(h, b)
        }""",
        w=(4, 3, 2, 2),
        b=(1, 6, 1, 1),
    )
    site = only(model)
    assert (site.in_axis, site.out_axis, site.groups) == (0, 1, 2)
    assert site.bias.name == "b"


def test_tied_embedding_behind_a_transpose_has_the_axes_of_the_head(written):
    model = written(
        """g (int64[N] ids, float w) => (float[N,50] y) {
            t = Transpose<perm=[1,0]>(w)
            x = Gather(t, ids)
            y = MatMul(x, w)
        }""",
        w=(8, 50),
    )
    embedding, head = find_sites(model)
    assert embedding.weight is head.weight
    assert (embedding.in_axis, embedding.out_axis) == (head.in_axis, head.out_axis) == (0, 1)
    assert [node.op_type for node in embedding.via] == ["Transpose"]
    assert embedding.is_embedding and embedding.input.name == "ids"


def test_a_gather_of_shapes_or_with_constant_indices_is_no_site(written):
    model = written(
        """g (float[N,4] x, float table, int64 at) => (int64 n, float r) {
            s = Shape(x)
            n = Gather(s, at)
            r = Gather(table, at)
        }""",
        table=(8, 4),
        at=np.array(1),
    )
    assert find_sites(model) == []


def test_views_between_weight_and_node_are_followed(written):
    model = written(
        """g (float[N,4] x, float16 w, int64 s) => (float y) {
            f = Cast<to=1>(w)
            r = Reshape(f, s)
            t = Transpose(r)
            y = MatMul(x, t)
        }""",
        w=np.ones((6, 1, 4), np.float16),
        s=np.array([6, 4]),
    )
    site = only(model)
    assert [node.op_type for node in site.via] == ["Cast", "Reshape", "Transpose"]
    assert (site.in_axis, site.out_axis) == (2, 0)
    assert site.refusal is None


def test_the_axes_describe_the_stored_tensor(written):
    """x · f(w) equals the contraction of x with the stored tensor over (in_axis, out_axis)."""
    model = written(
        "g (float[N,4] x, float w) => (float y) { t = Transpose(w)\n y = MatMul(x, t) }", w=(6, 4)
    )
    site = only(model)
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    stored = read_weight(site.weight)
    canonical = np.moveaxis(stored, site.out_axis, 0)
    np.testing.assert_array_equal(x @ canonical.T, x @ stored.T)


def test_bodies_and_functions(written):
    text = """<ir_version: 10, opset_import: ["": 21, "local": 1]>
    g (bool c, float[N,4] x) => (float y) <float[4,4] w = {0,1,2,3,0,1,2,3,0,1,2,3,0,1,2,3}> {
        z = If (c) <
            then_branch = yes () => (float a) { a = MatMul(x, w) },
            else_branch = no () => (float b) {
                k = Constant<value = float[4,4] {0,1,2,3,0,1,2,3,0,1,2,3,0,1,2,3}>()
                b = MatMul(x, k)
            }
        >
        y = local.Dense(z, w)
    }
    <domain: "local", opset_import: ["": 21]>
    Dense (p, q) => (r) {
        k = Constant<value = float[4,4] {0,1,2,3,0,1,2,3,0,1,2,3,0,1,2,3}>()
        h = MatMul(p, k)
        r = MatMul(h, q)
    }"""
    sites = find_sites(ir.from_onnx_text(text))
    assert len({site.name for site in sites}) == 4
    outer, inner, known, argument = sites
    assert outer.weight.name == "w" and inner.weight.name == known.weight.name == "k"
    assert "then_branch" in outer.path and "else_branch" in inner.path
    assert known.path == "local::Dense"
    assert argument.refusal == ("its weight is the input 'q' of a function: inline functions first")


def test_a_loop_body_is_searched_and_its_carried_value_is_no_weight(written):
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]>
        g (float[4,4] x, int64 n, bool c) => (float[4,4] y)
        <float[4,4] w = {0,1,2,3,0,1,2,3,0,1,2,3,0,1,2,3}> {
            y = Loop (n, c, x) <
                body = step (int64 i, bool d, float[4,4] h) => (bool e, float[4,4] o) {
                    e = Identity(d)
                    k = MatMul(h, w)
                    o = MatMul(k, h)
                }
            >
        }"""
    )
    first, second = find_sites(model)
    assert first.weight.name == "w" and first.refusal is None and first.path.endswith("body")
    assert second.refusal == "its weight is the input 'h' of the graph 'step'"


def test_names_are_unique_even_when_nodes_have_none(written):
    model = written(
        "g (float[N,4] x, float w) => (float y) { h = MatMul(x, w)\n y = MatMul(h, w) }", w=(4, 4)
    )
    for node in model.graph:
        node.name = "same"
    assert [site.name for site in find_sites(model)] == ["same", "same#2"]


def test_nothing_is_changed(written):
    model = written(
        "g (float[N,4] x, float w) => (float y) { t = Transpose(w)\n y = MatMul(x, t) }", w=(6, 4)
    )
    before = ir.to_onnx_text(model)
    find_sites(model)
    assert ir.to_onnx_text(model) == before
