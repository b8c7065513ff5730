# ruff: noqa: E501 - a graph in text syntax reads best on one line
"""Scales move between activations and weights, and the function stays."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.errors import UnsupportedGraph
from onnxq.graph import find_sites, read_weight
from onnxq.graph.check import check_graph
from onnxq.graph.stage import Stage, mark_stage
from onnxq.passes.base import Promise
from onnxq.passes.migration import find_migrations, scale_channels
from onnxq.passes.promise import PromiseKeeper
from onnxq.runtime import open_session

RNG = np.random.default_rng(31)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*numbers):
    return np.array(numbers, dtype=np.int64)


def factors(count):
    """From 1/20 to 20, log-uniformly."""
    return np.exp(RNG.uniform(-3, 3, count))


def move(model, *samples):
    """Scale every migration at random; the function must stay, and each activation be divided."""
    found = find_migrations(model)
    kinds = [node.op_type for node in model.graph]
    names = [m.value.name for m in found.found]
    with open_session(model, extra_outputs=names) as session:
        before = session.run(samples[0])
    keeper = PromiseKeeper(model, samples)
    chosen = [factors(m.count) for m in found.found]
    for migration, s in zip(found.found, chosen, strict=True):
        scale_channels(model, migration, s)
    check_graph(model)
    keeper.check("scale_channels", Promise.SAME_FUNCTION, model)
    assert [node.op_type for node in model.graph] == kinds
    with open_session(model, extra_outputs=names) as session:
        after = session.run(samples[0])
    for migration, s in zip(found.found, chosen, strict=True):
        site = migration.readers[0]
        by = migration.spread(site, s)
        shape = [1] * before[migration.value.name].ndim
        shape[migration.axis(site)] = by.size
        was = before[migration.value.name]
        # The products before are float32: their rounding errors are those of the largest terms.
        atol = 1e-5 * np.abs(was).max() / by.min()
        np.testing.assert_allclose(
            after[migration.value.name], was / by.reshape(shape), rtol=1e-4, atol=atol
        )
    return {m.readers[-1].name: m for m in found.found}, found.refused


NORMS = {
    "layer": ("n = LayerNormalization <axis = -1> (x, g, b)", "norm"),
    "layer_without_bias": ("n = LayerNormalization <axis = 2> (x, g)", "norm"),
    "rms": ("n = SimplifiedLayerNormalization <axis = -1> (x, g)", "norm"),
    "skip_rms": ("n, u1, u2, r = com.microsoft.SkipSimplifiedLayerNormalization (x, x, g)", "norm"),
    "skip": ("n = com.microsoft.SkipLayerNormalization (x, x, g, b, c)", "norm"),
    "written_out": ("q = Mul (x, x)  m = ReduceMean <axes = [-1]> (q)  v = Add (m, eps)  t = Sqrt (v)  d = Div (x, t)  n = Mul (d, g)", "factor"),
    "written_out_with_bias": ("q = Mul (x, x)  m = ReduceMean <axes = [-1]> (q)  v = Add (m, eps)  t = Sqrt (v)  d = Div (x, t)  w = Mul (g, d)  n = Add (w, b)", "factor"),
}  # fmt: skip


@pytest.mark.parametrize("norm", list(NORMS))
def test_a_norm_and_those_who_read_it(build, norm):
    text, kind = NORMS[norm]
    model = build(
        f"main (float[2, 5, 12] x) => (float[2, 5, 4] a, float[2, 5, 7] k) {{ {text}  h = MatMul (n, w1)  a = Add (h, b1)  k = MatMul (n, w2) }}",
        opset=17, g=RNG.uniform(0.5, 2, 12).astype(np.float32), b=normal(12), c=normal(12), eps=np.float32(1e-5),
        w1=normal(12, 4), b1=normal(4), w2=normal(12, 7),
    )  # fmt: skip
    moved, refused = move(model, {"x": normal(2, 5, 12)})
    (migration,) = moved.values()
    assert (migration.kind, migration.count, len(migration.readers)) == (kind, 12, 2)
    assert not refused


BETWEEN = {
    "nothing": "a = Identity (h)",
    "relu": "a = Relu (h)",
    "leaky": "a = LeakyRelu <alpha = 0.1> (h)",
    "prelu": "a = PRelu (h, slope)",
    "clip": "a = Clip (h, zero)",
    "factor": "r = Mul (h, two)  a = Neg (r)",
    "quotient": "a = Div (h, two)",
    "bias_in_front": "r = Sub (b1, h)  a = Relu (r)",
    "own_factors": "r = Mul (gamma, h)  a = Relu (r)",
    "half": "r = Cast <to = 10> (h)  f = Relu (r)  a = Cast <to = 1> (f)",
}


@pytest.mark.parametrize("between", [name for name in BETWEEN if name != "half"])
@pytest.mark.parametrize("turned", [0, 1])
def test_two_layers(build, between, turned):
    shape = (lambda a, b: (b, a)) if turned else (lambda a, b: (a, b))
    model = build(
        f"main (float[7, 6] x) => (float[7, 4] y) {{ h = Gemm <transB = {turned}, alpha = 0.5, beta = 2.0> (x, w1, b1)  {BETWEEN[between]}  y = Gemm <transB = {turned}, alpha = 3.0> (a, w2, b2) }}",
        w1=normal(*shape(6, 16)), b1=normal(1, 16), w2=normal(*shape(16, 4)), b2=normal(4), zero=np.float32(0),
        two=np.float32(2), slope=np.abs(normal(16)), gamma=normal(1, 16),
    )  # fmt: skip
    moved, refused = move(model, {"x": normal(7, 6)})
    (migration,) = moved.values()
    assert migration.count == 16
    assert list(refused.values()) == ["its scale cannot move: they come from the graph input 'x'"]


LEFT = {
    "gelu": ("a = Gelu (h)", "Gelu 'Gelu_1' is on their way, and f(x / s) is not f(x) / s there"),
    "silu": ("s = Sigmoid (h)  a = Mul (h, s)", "Sigmoid 'Sigmoid_1' is on their way"),
    "relu6": ("a = Clip (h, low, six)", "Clip 'Clip_1' clips them at values that are not 0"),
    "square": ("a = Mul (h, h)", "Mul 'Mul_1' multiplies them by themselves"),
    "divisor": ("a = Div (x2, h)  d = Relu (h)", "Div 'Div_1' divides by them|graph input 'x2'"),
    "sum": ("a = Add (h, x2)", "Add 'Add_1' joins them with another activation"),
    "one_number": ("a = Add (h, six)", "Add 'Add_1' adds one number for several of them: 'six'"),
    "softmax": ("a = Softmax (h)", "Softmax 'Softmax_1' is on their way"),
    "integers": ("i = Cast <to = 7> (h)  a = Cast <to = 1> (i)", "makes integers of them"),
}


@pytest.mark.parametrize("case", list(LEFT))
def test_what_cannot_take_a_scale_says_so(build, case):
    text, sentence = LEFT[case]
    model = build(
        f"main (float[7, 6] x, float[7, 16] x2) => (float[7, 4] y) {{ h = MatMul (x, w1)  {text}  y = MatMul (a, w2) }}",
        w1=normal(6, 16), w2=normal(16, 4), low=np.float32(0), six=np.float32(6),
    )  # fmt: skip
    found = find_migrations(model)
    assert not found.found
    reason = found.refused[find_sites(model)[-1].name]
    assert reason.startswith("its scale cannot move: ")
    assert any(part in reason for part in sentence.split("|"))


def test_other_readers_of_a_norm(build):
    text = "main (float[7, 6] x) => (float[7, 6] y{out}) {{ n = LayerNormalization (x, g)  h = MatMul (n, w)  y = Add (h, {what}) }}"
    weights = {"g": normal(6), "w": normal(6, 6), "c": normal(6)}
    model = build(text.format(out="", what="n"), **weights)
    (reason,) = find_migrations(model).refused.values()
    assert reason == "its scale cannot move: Add 'Add_2' joins them with another activation"
    model = build(text.format(out=", float[7, 6] n", what="c"), **weights)
    (reason,) = find_migrations(model).refused.values()
    assert reason == "its scale cannot move: they are also the graph output 'n'"


def test_a_tied_weight_is_refused_and_a_shared_scale_copied(build):
    model = build(
        "main (int64[1, 5] ids) => (float[1, 5, 9] y) { e = Gather (table, ids)  n = LayerNormalization <axis = -1> (e, g)  h = MatMul (n, w1)  m = LayerNormalization <axis = -1> (h, g)  t = Transpose (table)  y = MatMul (m, t) }",
        opset=17, table=normal(9, 8), g=RNG.uniform(0.5, 2, 8).astype(np.float32), w1=normal(8, 8),
    )  # fmt: skip
    ids = {"ids": i64(1, 5, 2, 8, 0).reshape(1, 5)}
    moved, refused = move(model, ids)
    assert list(moved) == ["MatMul_2"]
    assert (
        "weight 'table' is also read by Gather 'Gather_0': run untie_weights first"
        in refused["MatMul_5"]
    )
    scales = [node.inputs[1] for node in model.graph if node.op_type == "LayerNormalization"]
    assert scales[0] is not scales[1]
    assert scales[1].name == "g"


GATED = {
    "two": (
        "g = MatMul (x, wg)  u = MatMul (x, wu)",
        "s = Sigmoid (g)  a = Mul (g, s)  m = Mul (a, u)",
    ),
    "turned_around": ("g = MatMul (x, wg)  u = MatMul (x, wu)", "a = Gelu (g)  m = Mul (u, a)"),
    "split": (
        "p = MatMul (x, wp)  g, u = Split <axis = -1, num_outputs = 2> (p)",
        "s = Sigmoid (g)  a = Mul (g, s)  m = Mul (a, u)",
    ),
    "bias": (
        "g = MatMul (x, wg)  v = MatMul (x, wu)  u = Add (bu, v)",
        "a = Tanh (g)  m = Mul (a, u)",
    ),
}


@pytest.mark.parametrize("form", list(GATED))
def test_the_up_projection_of_a_gated_block(build, form):
    model = build(
        f"main (float[1, 5, 6] x) => (float[1, 5, 4] y) {{ {'  '.join(GATED[form])}  y = MatMul (m, wd) }}",
        wg=normal(6, 8), wu=normal(6, 8), wp=normal(6, 16), wd=normal(8, 4), bu=normal(8),
    )  # fmt: skip
    gate = next((w for w in model.graph.initializers.values() if w.name in ("wg", "wp")), None)
    before = read_weight(gate)
    moved, _ = move(model, {"x": normal(1, 5, 6)})
    assert [m.count for m in moved.values()] == [8]
    np.testing.assert_array_equal(read_weight(gate)[:, :8], before[:, :8])


ROTATE = "q = MatMul (x, wq)  qs = Reshape (q, split)  qt = Transpose <perm = [0, 2, 1, 3]> (qs)  k = MatMul (x, wk)  ks = Reshape (k, split_kv)  kt = Transpose <perm = [0, 2, 1, 3]> (ks)"
VALUES = "v = MatMul (x, wv)  vb = Add (v, bv)  vs = Reshape (vb, split_kv)  vt = Transpose <perm = [0, 2, 1, 3]> (vs)"
SCORES = "kr = Transpose <perm = [0, 1, 3, 2]> (ke)  s = MatMul (qt, kr)  p = Softmax <axis = -1> (s)  c = MatMul (p, ve)  ct = Transpose <perm = [0, 2, 1, 3]> (c)  cr = Reshape (ct, join)  y = MatMul (cr, wo)"


def repeated(name):
    return f"{name}u = Unsqueeze ({name}t, two)  {name}x = Expand ({name}u, tile)  {name}e = Reshape ({name}x, heads)"


@pytest.mark.parametrize(("heads", "kv", "width"), [(4, 4, 8), (9, 3, 4), (6, 2, 5), (5, 1, 3)])
def test_values_of_decomposed_attention(build, heads, kv, width):
    same = "ke = Identity (kt)  ve = Identity (vt)"
    tail = same if heads == kv else f"{repeated('k')}  {repeated('v')}"
    model = build(
        f"main (float[1, 5, 6] x) => (float[1, 5, 4] y) {{ {ROTATE}  {VALUES}  {tail}  {SCORES} }}",
        wq=normal(6, heads * width), wk=normal(6, kv * width), wv=normal(6, kv * width), bv=normal(kv * width),
        wo=normal(heads * width, 4), split=i64(0, 0, heads, width), split_kv=i64(0, 0, kv, width), join=i64(0, 0, heads * width),
        two=i64(2), tile=i64(1, kv, heads // kv, 5, width), heads=i64(1, heads, 5, width),
    )  # fmt: skip
    moved, _ = move(model, {"x": normal(1, 5, 6)})
    (migration,) = moved.values()
    assert migration.count == kv * width
    of_head = np.arange(heads) // (heads // kv)
    shared = migration.channels(migration.readers[0]).reshape(heads, width)
    np.testing.assert_array_equal(shared, shared[np.argmax(of_head[:, None] == of_head, axis=1)])


def test_values_taken_out_of_one_product(build):
    """Queries and keys, which are rows of the same weight, stay as they are."""
    model = build(
        "main (float[1, 5, 6] x) => (float[1, 5, 4] y) { p = MatMul (x, wp)  r = Reshape (p, shape)  q = Gather <axis = 3> (r, i0)  k = Gather <axis = 3> (r, i1)  v = Gather <axis = 3> (r, i2)  qt = Transpose <perm = [0, 2, 1, 3]> (q)  kr = Transpose <perm = [0, 2, 3, 1]> (k)  ve = Transpose <perm = [0, 2, 1, 3]> (v)  s = MatMul (qt, kr)  w = Softmax <axis = -1> (s)  c = MatMul (w, ve)  ct = Transpose <perm = [0, 2, 1, 3]> (c)  cr = Reshape (ct, join)  y = MatMul (cr, wo) }",
        wp=normal(6, 72), wo=normal(24, 4), shape=i64(1, 5, 3, 3, 8), join=i64(1, 5, 24),
        **{f"i{n}": np.array(n) for n in range(3)},
    )  # fmt: skip
    before = read_weight(model.graph.initializers["wp"]).reshape(6, 3, 3, 8)
    moved, _ = move(model, {"x": normal(1, 5, 6)})
    (migration,) = moved.values()
    assert migration.count == 24
    after = read_weight(model.graph.initializers["wp"]).reshape(6, 3, 3, 8)
    assert np.array_equal(after[:, :, :2], before[:, :, :2])
    assert (after[:, :, 2] != before[:, :, 2]).all()


def fused(build, kind, *, heads=4, kv=4, width=8, packed=False, cache=False):
    """x -> fused attention -> y."""
    weights = {
        "wo": normal(heads * width, 4),
        "wp": normal(6, (heads + 2 * kv) * width),
        "wq": normal(6, heads * width),
    }
    weights |= {
        "wk": normal(6, kv * width),
        "wv": normal(6, kv * width),
        "bias": normal((heads + 2 * kv) * width),
    }
    weights |= {"lens": np.array([4], np.int32), "total": np.array([5], np.int32)}
    head = (
        "p = MatMul (x, wp)"
        if packed
        else "q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)"
    )
    qkv, outputs, more_in, more_out = "p, , " if packed else "q, k, v", "o", "", ""
    if kind == "GroupQueryAttention":
        past = "pk, pv" if cache else ", "
        call = f"com.microsoft.GroupQueryAttention <num_heads = {heads}, kv_num_heads = {kv}> ({qkv}, {past}, lens, total)"
        if cache:
            more_in, outputs = (
                f", float[1, {kv}, 0, {width}] pk, float[1, {kv}, 0, {width}] pv",
                "o, nk, nv",
            )
            more_out = f", float[1, {kv}, t, {width}] nk, float[1, {kv}, t, {width}] nv"
    elif kind == "MultiHeadAttention":
        call = f"com.microsoft.MultiHeadAttention <num_heads = {heads}> ({qkv}, bias)"
    elif kind == "Attention":
        head, call = "", f"com.microsoft.Attention <num_heads = {heads}> (x, wp, bias)"
    else:
        call = f"Attention <q_num_heads = {heads}, kv_num_heads = {kv}> ({qkv})"
    text = f"main (float[1, 5, 6] x{more_in}) => (float[1, 5, 4] y{more_out}) {{ {head}  {outputs} = {call}  y = MatMul (o, wo) }}"
    sample = {"x": normal(1, 5, 6)}
    if cache:
        sample |= {name: np.zeros((1, kv, 0, width), np.float32) for name in ("pk", "pv")}
    return build(text, opset=23 if kind == "standard" else 21, **weights), sample


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GroupQueryAttention", {"heads": 9, "kv": 3}),
        ("GroupQueryAttention", {"heads": 9, "kv": 3, "packed": True}),
        ("MultiHeadAttention", {}),
        ("Attention", {"heads": 3, "kv": 3}),
        ("standard", {"heads": 6, "kv": 2}),
    ],
)
def test_values_of_fused_attention(build, kind, options):
    model, x = fused(build, kind, **options)
    moved, refused = move(model, x)
    (migration,) = moved.values()
    assert migration.count == options.get("kv", 4) * 8
    assert "graph input 'x'" in next(iter(refused.values()))


def test_a_cache_stays_unless_asked_for(build):
    model, _ = fused(build, "GroupQueryAttention", kv=2, packed=True, cache=True)
    reason = find_migrations(model).refused["MatMul_2"]
    assert "keeps them in the cache 'nv', which callers see: set through_cache" in reason
    assert find_migrations(model, through_cache=True).found[0].count == 16


def test_convolutions(build):
    model = build(
        "main (float[1, 3, 9, 9] x) => (float[1, 5, a, b] y) { h = Conv (x, w1, b1)  n = BatchNormalization (h, g, be, mu, va)  r = Relu (n)  d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, wd, bd)  m = MaxPool <kernel_shape = [2, 2]> (d)  y = Conv (m, w2, b2) }",
        w1=normal(8, 3, 3, 3), b1=normal(8), wd=normal(16, 1, 3, 3), bd=normal(16), w2=normal(5, 16, 1, 1), b2=normal(5),
        g=normal(8), be=normal(8), mu=normal(8), va=RNG.uniform(0.1, 2, 8).astype(np.float32),
    )  # fmt: skip
    moved, _ = move(model, {"x": normal(1, 3, 9, 9)})
    assert [(m.count, m.kind) for m in moved.values()] == [(8, "norm"), (16, "linear")]


def test_pixels_of_a_channel_share_a_factor(build):
    model = build(
        "main (float[2, 3, 4, 4] x) => (float[2, 5] y) { h = Conv (x, w1)  r = Relu (h)  f = Flatten (r)  y = Gemm (f, w2) }",
        w1=normal(8, 3, 3, 3), w2=normal(32, 5),
    )  # fmt: skip
    moved, _ = move(model, {"x": normal(2, 3, 4, 4)})
    (migration,) = moved.values()
    assert migration.count == 8
    np.testing.assert_array_equal(migration.channels(migration.readers[0]), np.arange(8).repeat(4))
    np.testing.assert_array_equal(
        migration.pool(migration.readers[0], np.arange(32)), np.arange(3, 32, 4)
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_weights_keep_their_type(build, dtype):
    kind = "float16" if dtype is np.float16 else "bfloat16"
    cast = 10 if dtype is np.float16 else 16
    w1, w2 = normal(6, 8).astype(dtype), normal(8, 4).astype(dtype)
    model = build(
        f"main (float[7, 6] x) => ({kind}[7, 4] y) {{ c = Cast <to = {cast}> (x)  h = MatMul (c, w1)  y = MatMul (h, w2) }}", w1=w1, w2=w2,
    )  # fmt: skip
    (migration,) = find_migrations(model).found
    s = factors(8)
    scale_channels(model, migration, s)
    after = {name: read_weight(value) for name, value in model.graph.initializers.items()}
    np.testing.assert_array_equal(after["w1"], (w1.astype(np.float64) / s).astype(dtype))
    np.testing.assert_array_equal(after["w2"], (w2.astype(np.float64) * s[:, None]).astype(dtype))


def test_factors_and_their_inverse_give_the_weights_back(build):
    w1, w2 = normal(6, 8), normal(8, 4)
    model = build(
        "main (float[7, 6] x) => (float[7, 4] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }",
        w1=w1,
        w2=w2,
    )
    (migration,) = find_migrations(model).found
    s = 2.0 ** RNG.integers(-3, 4, 8)
    scale_channels(model, migration, s)
    scale_channels(model, migration, 1 / s)
    np.testing.assert_array_equal(read_weight(model.graph.initializers["w1"]), w1)
    np.testing.assert_array_equal(read_weight(model.graph.initializers["w2"]), w2)
    for wrong in (np.zeros(8), np.full(8, np.nan), np.ones(7)):
        with pytest.raises(ValueError, match="must be 8 positive numbers"):
            scale_channels(model, migration, wrong)


def test_an_unwanted_reader_keeps_its_sibling(build):
    model = build(
        "main (float[7, 6] x) => (float[7, 4] y, float[7, 4] z) { n = LayerNormalization (x, g)  y = MatMul (n, w1)  z = MatMul (n, w2) }",
        g=normal(6), w1=normal(6, 4), w2=normal(6, 4),
    )  # fmt: skip
    found = find_migrations(
        model, wants=lambda site: "the recipe excludes it" if site.name == "MatMul_2" else None
    )
    assert found.refused == {
        "MatMul_1": "the recipe excludes it (of 'MatMul_2', which shares it)",
        "MatMul_2": "the recipe excludes it (of 'MatMul_2', which shares it)",
    }


def test_a_body_is_left_and_a_value_it_reads(build):
    model = build(
        "main (float[7, 6] x, bool c) => (float[7, 4] y) { n = LayerNormalization (x, g)  h = MatMul (n, w1)  k = If (c) <then_branch = t () => (float[7, 4] p) { p = MatMul (n, w2) }, else_branch = e () => (float[7, 4] q) { q = MatMul (n, w1) }>  y = Add (h, k) }",
        g=normal(6), w1=normal(6, 4), w2=normal(6, 4),
    )  # fmt: skip
    found = find_migrations(model)
    assert not found.found
    assert "'n' is read inside the body of another operator" in found.refused["MatMul_1"]
    assert "it is inside a body or function" in next(
        r for name, r in found.refused.items() if "then" in name
    )


def test_after_calibration_it_is_refused(build):
    model = build(
        "main (float[7, 6] x) => (float[7, 4] y) { h = MatMul (x, w1)  y = MatMul (h, w2) }",
        w1=normal(6, 8),
        w2=normal(8, 4),
    )
    mark_stage(model, Stage.CALIBRATED)
    with pytest.raises(UnsupportedGraph, match=r"already CALIBRATED.*before calibration"):
        find_migrations(model)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 5),
    hidden=st.integers(2, 33),
    groups=st.integers(1, 4),
    kv=st.integers(1, 3),
    width=st.integers(2, 9),
)
def test_any_shape(build, rows, hidden, groups, kv, width):
    heads = groups * kv
    model = build(
        f"main (float[1, {rows}, 6] x) => (float[1, {rows}, 3] y) {{ n = SimplifiedLayerNormalization <axis = -1> (x, g)  q = MatMul (n, wq)  k = MatMul (n, wk)  v = MatMul (n, wv)  o = Attention <q_num_heads = {heads}, kv_num_heads = {kv}> (q, k, v)  r = MatMul (o, wo)  s = Gelu (r)  u = MatMul (n, wu)  m = Mul (s, u)  y = MatMul (m, wd) }}",
        opset=23, g=normal(6), wq=normal(6, heads * width), wk=normal(6, kv * width), wv=normal(6, kv * width),
        wo=normal(heads * width, hidden), wu=normal(6, hidden), wd=normal(hidden, 3),
    )  # fmt: skip
    moved, refused = move(model, {"x": normal(1, rows, 6)})
    assert not refused
    assert sorted(m.count for m in moved.values()) == sorted([6, kv * width, hidden])
    assert not refused


def test_a_factor_for_each_channel_reads_them(build):
    """(x / s) · (s c) = x · c: what lies behind the product does not matter."""
    model = build(
        "main (float[7, 6] x) => (float[7, 4] y, float[7, 6] z) { n = LayerNormalization (x, g)  y = MatMul (n, w)  m = Mul (c, n)  z = Softmax (m) }",
        g=normal(6), w=normal(6, 4), c=normal(6),
    )  # fmt: skip
    moved, refused = move(model, {"x": normal(7, 6)})
    assert [migration.count for migration in moved.values()] == [6]
    assert not refused
