"""The runtime's own operators, and older forms of standard ones, against the runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxq.learning import TorchGraph
from onnxq.learning.operators import known_operators
from onnxq.runtime import open_session

SEEN: set[tuple[str, str]] = set()


def _compare(
    op: str,
    inputs: list[np.ndarray | None],
    *,
    domain: str = "com.microsoft",
    outputs: int = 1,
    opset: int = 21,
    weights: tuple[int, ...] = (),
    rtol: float = 2e-5,
    **attributes: object,
) -> None:
    """Run one node in torch and in the runtime; unit roundings of float32 may differ."""
    values, given, stored = [], [], []
    for index, array in enumerate(inputs):
        value = None
        if array is not None:
            value = ir.Value(
                name=f"x{index}",
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                shape=ir.Shape([None] * array.ndim),
            )
            if index in weights:
                value.const_value = ir.tensor(array)
                value.shape = ir.Shape(array.shape)
                stored.append(value)
            else:
                given.append(value)
        values.append(value)
    node = ir.node(op, values, attributes, domain=domain, num_outputs=outputs, name="node")
    for index, value in enumerate(node.outputs):
        value.name = f"y{index}"
    opsets = {"": opset, "com.microsoft": 1}
    graph = ir.Graph(
        given, node.outputs, nodes=[node], initializers=stored, opset_imports=opsets, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    feeds = {v.name: a for v, a in zip(values, inputs, strict=True) if v in given}
    for value in node.outputs:  # the runtime infers them, and asks for a type
        value.dtype = ir.DataType.FLOAT
    SEEN.add((domain, op))
    got = TorchGraph(model, inputs=[v.name for v in given], outputs=[v.name for v in node.outputs])(
        {name: torch.from_numpy(array) for name, array in feeds.items()}
    )
    with open_session(ir.to_proto(model).SerializeToString(), threads=1, lean=True) as session:
        wanted = session.run(feeds)
    for name, want in wanted.items():
        assert got[name].shape == want.shape, name
        size = float(np.abs(want).max())
        np.testing.assert_allclose(
            got[name].numpy(), want, rtol=rtol, atol=rtol * size, err_msg=name
        )


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def _angles(length: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    angle = np.outer(np.arange(length), 0.7 ** np.arange(half)).astype(np.float32)
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize("op", ["Gelu", "FastGelu", "QuickGelu"])
def test_gelu(op: str) -> None:
    # The runtime's Erf and Tanh are polynomials of a few units in the last place.
    _compare(op, [_random(3, 8)])


def test_gelu_with_a_bias() -> None:
    _compare("BiasGelu", [_random(3, 8), _random(8)])
    _compare("FastGelu", [_random(3, 8), _random(8)])
    _compare("QuickGelu", [_random(3, 8)], alpha=1.3)


@pytest.mark.parametrize("trans", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_fused_matmul(trans: tuple[int, int]) -> None:
    a, b = _random(2, 3, 4), _random(2, 4, 5)
    a = np.ascontiguousarray(a.swapaxes(1, 2)) if trans[0] else a
    b = np.ascontiguousarray(b.swapaxes(1, 2)) if trans[1] else b
    _compare("FusedMatMul", [a, b], transA=trans[0], transB=trans[1], alpha=0.5)


@pytest.mark.parametrize("bias", [False, True])
def test_skip_norms(bias: bool) -> None:
    x, skip, scale, shift, add = _random(2, 3, 8), _random(2, 3, 8, seed=1), *_random(3, 8)
    last = [add] if bias else []
    _compare("SkipSimplifiedLayerNormalization", [x, skip, scale, *last], outputs=1, epsilon=1e-5)
    _compare("SkipLayerNormalization", [x, skip, scale, shift, *last], outputs=1, epsilon=1e-5)


def test_simplified_norm() -> None:
    _compare("SimplifiedLayerNormalization", [_random(2, 3, 8), _random(8)], domain="", axis=-1)
    SEEN.add(("com.microsoft", "SimplifiedLayerNormalization"))  # one function, other domain


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary(interleaved: int) -> None:
    cos, sin = _angles(16, 4)
    places = np.array([[3, 4, 5], [0, 1, 2]])
    x = _random(2, 3, 16)
    _compare("RotaryEmbedding", [x, places, cos, sin], interleaved=interleaved)
    _compare("RotaryEmbedding", [x, np.array([5]), cos, sin], interleaved=interleaved)
    headed = _random(2, 2, 3, 8)
    _compare("RotaryEmbedding", [headed, places, cos, sin], interleaved=interleaved)
    _compare(
        "RotaryEmbedding",
        [_random(2, 3, 24), places, cos, sin],
        interleaved=interleaved,
        num_heads=2,
        rotary_embedding_dim=8,
    )


def _group_query(
    *,
    batch: int = 2,
    steps: int = 5,
    past: int = 0,
    packed: bool = True,
    rotary: bool = True,
    **more,
) -> None:
    heads, shared, size = 4, 2, 16
    width = [heads * size, shared * size, shared * size]
    q, k, v = (_random(batch, steps, w, seed=i) for i, w in enumerate(width))
    first = [np.concatenate([q, k, v], -1), None, None] if packed else [q, k, v]
    cache = [_random(batch, shared, past, size, seed=i) for i in (5, 6)]
    lengths = np.full((batch,), past + steps - 1, np.int32)
    angles = list(_angles(32, size // 2)) if rotary else [None, None]
    inputs = [*first, *cache, lengths, np.array(past + steps, np.int32), *angles]
    _compare(
        "GroupQueryAttention",
        [*inputs, *more.pop("extra", [])],
        outputs=3,
        num_heads=heads,
        kv_num_heads=shared,
        do_rotary=int(rotary),
        weights=(7, 8) if rotary else (),
        **more,
    )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("past", [0, 6])
def test_group_query_attention(packed: bool, rotary: bool, past: int) -> None:
    # The runtime takes one row at a time, or one token, once there is a past.
    _group_query(batch=1, packed=packed, rotary=rotary, past=past)
    _group_query(batch=2, steps=1 if past else 5, packed=packed, rotary=rotary, past=past)


def test_group_query_attention_options() -> None:
    _group_query(local_window_size=2)
    _group_query(batch=1, past=6, local_window_size=3)
    _group_query(softcap=1.5, scale=0.3)
    _group_query(rotary_interleaved=1)
    _group_query(smooth_softmax=1)
    _group_query(extra=[None, _random(2, 1, 5, 5)])
    _group_query(extra=[None, None, _random(4)])
    _group_query(batch=1, past=3, steps=2, extra=[np.array([[3, 4]])])


def test_group_query_attention_on_rows_of_unlike_length() -> None:
    """Rows padded at the end; what a padded token gives is nobody's business."""
    heads, shared, size, steps = 4, 2, 16, 5
    x = _random(2, steps, (heads + 2 * shared) * size)
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[b, s, w] x, float[b, 2, p, 16] k, float[b, 2, p, 16] v, int32[b] n, int32 t,
           float[32, 8] c, float[32, 8] d) => (float[b, s, u] y, float[b, 2, q, 16] k1,
           float[b, 2, q, 16] v1)
        { y, k1, v1 = com.microsoft.GroupQueryAttention
            <num_heads = 4, kv_num_heads = 2, do_rotary = 1> (x, , , k, v, n, t, c, d) }"""
    )
    cos, sin = _angles(32, 8)
    empty = np.zeros((2, shared, 0, size), np.float32)
    feeds = {"x": x, "k": empty, "v": empty, "n": np.array([4, 2], np.int32)}
    feeds |= {"t": np.array(5, np.int32), "c": cos, "d": sin}
    graph = TorchGraph(model, inputs=list(feeds), outputs=["y", "k1"])
    got = graph({name: torch.from_numpy(array) for name, array in feeds.items()})
    with open_session(ir.to_proto(model).SerializeToString(), threads=1, lean=True) as session:
        want = session.run(feeds)
    np.testing.assert_allclose(got["y"][0].numpy(), want["y"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["y"][1, :3].numpy(), want["y"][1, :3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["k1"][1, :, :3].numpy(), want["k1"][1, :, :3], atol=1e-5)


def test_multi_head_attention() -> None:
    q, k, v = (_random(2, 5, 16, seed=i) for i in range(3))
    _compare("MultiHeadAttention", [q, k, v], num_heads=2)
    _compare("MultiHeadAttention", [q, k, v, _random(48)], num_heads=2, scale=0.2)
    _compare("MultiHeadAttention", [q, k, v], num_heads=2, unidirectional=1)
    score = _random(2, 2, 5, 5)
    _compare("MultiHeadAttention", [q, k, v, None, None, score], num_heads=2)
    seen = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    _compare("MultiHeadAttention", [q, k, v, None, seen], num_heads=2)
    across = [_random(2, 2, 7, 8, seed=i) for i in (3, 4)]
    _compare("MultiHeadAttention", [q, *across], num_heads=2)
    past = [_random(2, 2, 3, 8, seed=i) for i in (5, 6)]
    _compare("MultiHeadAttention", [q, k, v, None, None, None, *past], num_heads=2, outputs=3)


def test_packed_attention() -> None:
    x, weight, bias = _random(2, 5, 12), _random(12, 48), _random(48)
    _compare("Attention", [x, weight, bias], num_heads=2)
    _compare("Attention", [x, weight, bias], num_heads=2, unidirectional=1)
    seen = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    _compare("Attention", [x, weight, bias, seen], num_heads=2)
    _compare("Attention", [x, weight, bias, np.array([5, 3], np.int32)], num_heads=2)
    _compare("Attention", [x, weight, bias, None, _random(2, 2, 2, 3, 8)], num_heads=2, outputs=2)
    narrow = _random(12, 16 + 16 + 8)
    _compare("Attention", [x, narrow, _random(40)], num_heads=2, qkv_hidden_sizes=[16, 16, 8])


@pytest.mark.parametrize(
    ("op", "inputs", "opset", "attributes"),
    [
        ("Softmax", [_random(2, 3, 4)], 11, {"axis": 1}),
        ("LogSoftmax", [_random(2, 3, 4)], 11, {"axis": -1}),
        ("Clip", [_random(3, 4)], 10, {"min": -0.5, "max": 0.5}),
        ("Squeeze", [_random(1, 3, 1)], 12, {"axes": [0]}),
        ("Unsqueeze", [_random(3)], 12, {"axes": [0, 2]}),
        ("ReduceSum", [_random(2, 3, 4)], 12, {"axes": [1], "keepdims": 0}),
        ("ReduceMean", [_random(2, 3, 4)], 17, {"axes": [-1]}),
        ("ReduceMax", [_random(2, 3, 4)], 17, {"axes": [0, 2]}),
        ("Slice", [_random(5, 4)], 9, {"starts": [1], "ends": [9], "axes": [0]}),
        ("Pad", [_random(3, 4)], 10, {"pads": [0, 1, 2, 0], "value": 1.5}),
        ("Dropout", [_random(3, 4)], 11, {"ratio": 0.5}),
        ("BatchNormalization", [_random(2, 3, 4), *np.abs(_random(4, 3))], 13, {}),
        ("GroupNormalization", [_random(2, 6, 4), _random(2), _random(2)], 18, {"num_groups": 2}),
        ("ConstantOfShape", [np.array([2, 3])], 20, {}),
    ],
)
def test_older_forms(op: str, inputs: list, opset: int, attributes: dict) -> None:
    _compare(op, inputs, domain="", opset=opset, **attributes)


def test_split_before_opset_13() -> None:
    _compare("Split", [_random(6, 2)], domain="", opset=12, outputs=2, split=[2, 4], axis=0)


def test_every_fused_operator_was_compared() -> None:
    assert {key for key in known_operators() if key[0]} <= SEEN
