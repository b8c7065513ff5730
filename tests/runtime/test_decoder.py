"""Decoder feeds are built from the names, dtypes and shapes the session declares."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.errors import UnsupportedGraph
from onnxq.runtime import open_session
from onnxq.runtime.decoder import decoder_feeds

CACHED = """
<ir_version: 10, opset_import: ["" : 21]>
cached (int64[batch, length] input_ids, int64[batch, total] attention_mask,
        int64[batch, length] position_ids, float16[batch, 2, past, {size}] past)
    => (float[batch, length] logits, float16[batch, 2, one, size] present)
{{
    logits = Cast<to=1>(input_ids)
    shape = Constant<value = int64[4] {{1, 2, 1, 24}}>()
    zeros = ConstantOfShape(shape)
    new = Cast<to=10>(zeros)
    present = Concat<axis=2>(past, new)
}}
"""


def _cached(size):
    model = ir.from_onnx_text(CACHED.format(size=size))
    model.graph.inputs[3].name = "past_key_values.0.key"
    return model


@pytest.mark.parametrize("size", ["24", "head"])
def test_every_input_of_a_cached_decoder(size):
    ids = np.array([[3, 1, 2]], np.int32)
    with open_session(_cached(size)) as session:
        feeds = decoder_feeds(session, ids)
        session.run(feeds)
    assert feeds["input_ids"].dtype == np.int64
    assert feeds["attention_mask"].tolist() == [[1, 1, 1]]
    assert feeds["position_ids"].tolist() == [[0, 1, 2]]
    assert feeds["past_key_values.0.key"].shape == (1, 2, 0, 24)
    assert feeds["past_key_values.0.key"].dtype == np.float16


def test_an_input_no_decoder_has_is_named():
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        other (int64[b, n] input_ids, float[b, 3, 8, 8] pixel_values)
            => (int64[b, n] logits) { logits = Neg(input_ids) }
        """
    )
    with (
        open_session(model) as session,
        pytest.raises(UnsupportedGraph, match=r"'pixel_values' with shape \['b', 3, 8, 8\]"),
    ):
        decoder_feeds(session, np.zeros((1, 2), np.int64))


def test_heads_that_are_not_static_are_refused():
    model = _cached("24")
    model.graph.inputs[3].shape = ir.Shape(["batch", "heads", "past", 24])
    with (
        open_session(model) as session,
        pytest.raises(UnsupportedGraph, match=r"number of heads of cache input 'past_key_values"),
    ):
        decoder_feeds(session, np.zeros((1, 2), np.int64))
