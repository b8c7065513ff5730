"""Inputs made up for a model: what its names say of them is kept."""

import onnx_ir as ir

from onnxq.runtime import random_samples


def test_types_of_tokens_are_zeros():
    """There are two types or one, and no input says how many."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "main (int64[batch, n] token_type_ids) => (int64[batch, n] y) "
        "{ y = Identity(token_type_ids) }"
    )
    (sample,) = random_samples(model, 1)
    assert sample["token_type_ids"].shape == (1, 8) and not sample["token_type_ids"].any()
