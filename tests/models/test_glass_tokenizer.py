"""The GlassLM tokenizer on a vocabulary small enough to follow by hand."""

import json

import pytest

from onnxq.models.glass_tokenizer import GlassTokenizer


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    merges = [["a", "b"], ["▁", "ab"], ["ab", "ab"]]
    path.write_text(json.dumps({"alphabet": ["\n", "a", "b", "▁"], "merges": merges}), "utf-8")
    return GlassTokenizer(path)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("ab", [8]),
        ("abab", [10]),
        (" ab", [9]),
        ("ab ab", [8, 9]),
        ("ababab", [10, 8]),
        ("ba\nab", [6, 5, 4, 8]),
        ("az", [5, 1]),
    ],
)
def test_merges_in_the_order_they_were_learned(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids
    if "z" not in text:
        assert tokenizer.decode(ids) == text
