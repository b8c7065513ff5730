"""Attention: layouts of fused projections, and what is said when something is missing."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph.topology import Topology


def names(*sites):
    return [None if site is None else site.weight.name for site in sites]


FUSED = {
    "along the features, as GPT-2": (
        """q0, k0, v0 = Split<axis=-1, num_outputs=3>(p)
        q4 = Reshape(q0, each)
        k4 = Reshape(k0, each)
        v4 = Reshape(v0, each)""",
        (6, 6, 2),
    ),
    "inside each head, as GPT-NeoX": (
        """p4 = Reshape(p, together)
        q4, k4, v4 = Split<axis=-1, num_outputs=3>(p4)""",
        (6, 6, 2),
    ),
    "inside each head on an axis of its own, as BLOOM": (
        """p5 = Reshape(p, apart)
        q4 = Gather<axis=3>(p5, i0)
        k4 = Gather<axis=3>(p5, i1)
        v4 = Gather<axis=3>(p5, i2)""",
        (6, 6, 2),
    ),
    "on an axis before the heads, as timm": (
        """p5 = Reshape(p, before)
        q4 = Gather<axis=2>(p5, i0)
        k4 = Gather<axis=2>(p5, i1)
        v4 = Gather<axis=2>(p5, i2)""",
        (6, 6, 2),
    ),
    "along one axis of heads, which tells nothing": (
        """p4 = Reshape(p, all)
        q4, k4, v4 = Split<axis=2, num_outputs=3>(p4)""",
        (None, None, None),
    ),
}


@pytest.mark.parametrize("layout", FUSED)
def test_fused_projection_split_into_heads(written, layout):
    split, expected = FUSED[layout]
    text = f"""g (float[1,N,12] x, float w, float wo, int64 each, int64 together, int64 apart,
        int64 before, int64 all, int64 flat, int64 i0, int64 i1, int64 i2) => (float y) {{
        p = Gemm(x, w)
        {split}
        qh = Transpose<perm=[0,2,1,3]>(q4)
        kt = Transpose<perm=[0,2,3,1]>(k4)
        vh = Transpose<perm=[0,2,1,3]>(v4)
        sc = MatMul(qh, kt)
        s = Softmax(sc)
        c = MatMul(s, vh)
        ct = Transpose<perm=[0,2,1,3]>(c)
        cf = Reshape(ct, flat)
        y = MatMul(cf, wo)
    }}"""
    model = written(
        text,
        w=(12, 36),
        wo=(12, 12),
        each=np.array([1, -1, 6, 2]),
        together=np.array([1, -1, 6, 6]),
        apart=np.array([1, -1, 6, 3, 2]),
        before=np.array([1, -1, 3, 6, 2]),
        all=np.array([1, -1, 18, 2]),
        i0=np.array(0),
        i1=np.array(1),
        i2=np.array(2),
        flat=np.array([1, -1, 12]),
    )
    (block,) = Topology(model).attention
    assert block.is_fused_qkv and names(*block.sites) == ["w", "wo"]
    assert (block.heads, block.kv_heads, block.head_dim) == expected
    assert (block.unknown is None) == (expected[0] is not None)


def test_heads_from_a_reshape_that_tells_only_their_width(written):
    """TorchScript writes view(.., -1, width), and rotary code slices after it."""
    model = written(
        """g (float[1,N,8] x, float w, float b, float wk, float wo, int64 each, int64 flat, int64 k,
        int64 a, int64 z, int64 at) => (float y) {
            p = MatMul(x, w)
            pb = Add(p, b)
            q4 = Reshape(pb, each)
            qh = Transpose<perm=[0,2,1,3]>(q4)
            half = Slice(qh, a, z, at)
            qn = Neg(half)
            qr = Concat<axis=-1>(qn, qn)
            pk = MatMul(x, wk)
            k4 = Reshape(pk, each)
            kt = Transpose<perm=[0,2,3,1]>(k4)
            sc = MatMul(qr, kt)
            s = Softmax(sc)
            vh = Transpose<perm=[0,2,1,3]>(k4)
            c = MatMul(s, vh)
            cf = Reshape(c, flat)
            y = MatMul(cf, wo)
        }""",
        w=(8, 8),
        b=(8,),
        wk=(8, 2),
        wo=(8, 8),
        each=np.array([0, 0, -1, 2]),
        flat=np.array([0, -1, 8]),
        k=np.array([0]),
        a=np.array([0]),
        z=np.array([1]),
        at=np.array([3]),
    )
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    (block,) = Topology(model).attention
    assert (block.heads, block.kv_heads, block.head_dim) == (4, 1, 2)


def test_multi_query_attention_from_one_projection(written):
    """Falcon: the last two entries of the axis of heads are the only key and the only value."""
    model = written(
        """g (float[1,7,12] x, float w, float wo, int64 all, int64 flat, int64 k, int64 v,
        int64 zero, int64 four, int64 two, int64 many) => (float y) {
            p = Gemm(x, w)
            p4 = Reshape(p, all)
            q4 = Slice(p4, zero, four, two)
            k4 = GatherND(p4, k)
            v4 = GatherND(p4, v)
            qh = Transpose<perm=[0,2,1,3]>(q4)
            ke = Expand(k4, many)
            ve = Expand(v4, many)
            sc = MatMul(qh, ke)
            s = Softmax(sc)
            c = MatMul(s, ve)
            cf = Reshape(c, flat)
            y = MatMul(cf, wo)
        }""",
        w=(12, 18),
        wo=(12, 12),
        all=np.array([1, 7, 6, 3]),
        flat=np.array([1, 7, 12]),
        k=np.array([[-2]]),
        v=np.array([[-1]]),
        zero=np.array([0]),
        four=np.array([4]),
        two=np.array([2]),
        many=np.array([1, 4, 7, 3]),
    )
    heads = next(node for node in model.graph if node.op_type == "Transpose").outputs[0]
    heads.shape = ir.Shape([1, 4, 7, 3])
    (block,) = Topology(model).attention
    assert (block.heads, block.kv_heads, block.head_dim) == (4, 1, 3)


def test_cross_attention_from_a_cache_says_what_is_missing(written):
    model = written(
        """g (float[1,N,8] x, float[1,2,M,4] pk, float[1,2,M,4] pv, float wq, float wo)
        => (float y) {
            q = MatMul(x, wq)
            c = com.microsoft.MultiHeadAttention<num_heads=2>(q, pk, pv)
            y = MatMul(c, wo)
        }""",
        wq=(8, 8),
        wo=(8, 8),
    )
    (block,) = Topology(model).attention
    assert names(block.q, block.k, block.v, block.o) == ["wq", None, None, "wo"]
    assert (block.heads, block.head_dim) == (2, 4)
    assert block.unknown == (
        "the key has no projection: it comes from 'pk'; "
        "the value has no projection: it comes from 'pv'"
    )


def test_a_classifier_softmax_is_no_attention(written):
    model = written(
        "g (float[N,4] x, float w) => (float y) { h = MatMul(x, w)\n y = Softmax(h) }", w=(4, 6)
    )
    assert Topology(model).attention == ()
