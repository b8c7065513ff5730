"""The cleaning of wikitext, rule by rule, and the two disjoint slices of tokens."""

import pytest

from onnxq.errors import ZooError
from onnxq.models import wikipedia

PROSE = "Anarchism is a political philosophy that advocates self-governed societies everywhere."


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        (PROSE, PROSE),
        (f"{{{{Infobox|a={{{{nested|b}}}}\n|c=d}}}}\n{PROSE}", PROSE),
        (f"{PROSE}<ref name=x>Smith, [[John]]</ref><ref name=x/>", PROSE),
        (f"<!-- not\nshown -->{PROSE}", PROSE),
        ("'''Anarchism''' is a [[political philosophy]] that advocates "
         "[[self-governance|self-governed]] societies ''everywhere''.",
         PROSE),
        (f"[[File:a.jpg|thumb|a [[link|caption]] here]]\n{PROSE}", PROSE),
        (f"[[Category:Politics]]\n[[de:Anarchismus]]\n{PROSE}", PROSE),
        (f"{{|class=x\n|-\n|cell {{|inner|}}\n|}}\n{PROSE}", PROSE),
        (f"== Heading ==\n* item of a list that is long enough to be taken for a paragraph of it\n"
         f"{PROSE}", PROSE),
        (f"{PROSE}\n== See also ==\n{PROSE}", PROSE),
        (PROSE.replace("Anarchism", "Anarchism ({{lang|el|x}}, )"), PROSE),
        (PROSE.replace("Anarchism", "[http://example.org Anarchism]"), PROSE),
        (PROSE.replace("political", "<small>political</small>"), PROSE),
        (PROSE.replace("is a", "is&nbsp;a"), PROSE),
        ("Too short.", None),
    ],
)  # fmt: skip
def test_clean(wikitext, expected):
    assert wikipedia.clean(wikitext) == ([expected] if expected else [])


def _encode(text):
    return [ord(character) for character in text]


def test_calibration_and_evaluation_take_the_two_ends(monkeypatch):
    text = "".join(chr(33 + number) for number in range(1000))
    monkeypatch.setattr(wikipedia, "corpus", lambda: text)
    first = wikipedia.calibration_tokens(_encode, windows=4, window=10)
    last = wikipedia.evaluation_tokens(_encode, windows=3, window=10)
    assert first.shape == (4, 10)
    assert last.shape == (3, 10)
    assert first.ravel().tolist() == _encode(text[:40])
    assert last.ravel().tolist() == _encode(text[-30:])


def test_more_tokens_than_half_the_text_is_refused(monkeypatch):
    monkeypatch.setattr(wikipedia, "corpus", lambda: "x" * 1000)
    with pytest.raises(ZooError, match="holds 500 tokens: ask for at most 50 windows"):
        wikipedia.evaluation_tokens(_encode, windows=51, window=10)
