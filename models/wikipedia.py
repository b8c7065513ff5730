"""Prose from the 101 Wikipedia articles of the zoo's ``text`` entry: cleaned, and cut in two.

Calibration takes tokens from the beginning of the text and evaluation from its end, so the two
never meet. The cleaning is this project's own, deterministic, and part of the protocol: figures
measured with another cleaning of the same articles are close, not equal.

1. Pages of the article namespace that are not redirects, in file order.
2. Comments, tables, templates, references, mathematics, code and other non-prose elements go.
3. Links to files, images and categories go; other links leave their visible text.
4. Bold and italic marks go; other tags go and leave their content; entities become characters.
5. Headings, list items and indented lines go, and everything after the first closing section
   (See also, Notes, References, Further reading, External links, ...).
6. Parentheses that became empty go; runs of blanks become one; paragraphs under 60 characters go.

An article is its title as ``= Title =`` and its paragraphs, one a line.
"""

from __future__ import annotations

import bz2
import functools
import html
import re
from collections.abc import Callable, Iterator, Sequence
from xml.etree import ElementTree

import numpy as np

from onnxq.errors import ZooError
from onnxq.models.zoo import fetch

__all__ = ["calibration_tokens", "clean", "corpus", "evaluation_tokens"]

Encode = Callable[[str], Sequence[int]]

_MIN_PARAGRAPH = 60
_CHARACTERS_PER_TOKEN = 8
"""More than any tokenizer that is used here needs for English; the first guess of a slice."""

_ELEMENTS = "ref|math|gallery|timeline|code|source|syntaxhighlight|score|nowiki|pre|table|imagemap"
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_EMPTY_ELEMENT = re.compile(rf"<(?:{_ELEMENTS})\b[^<>]*/>", re.I)
_ELEMENT = re.compile(rf"<({_ELEMENTS})\b[^<>]*>.*?</\1\s*>", re.S | re.I)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.S)
_DROPPED_LINK = re.compile(r"\[\[(?:File|Image|Category|Media)\s*:[^\[\]]*\]\]", re.I)
_INTERWIKI_LINK = re.compile(r"\[\[[a-z-]{2,12}:[^\[\]]*\]\]")
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)*([^\[\]|]*)\]\]")
_EXTERNAL_LINK = re.compile(r"\[(?:https?:|ftp:)?//[^\s\]]*\s*([^\]]*)\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_QUOTES = re.compile(r"'{2,5}")
_HEADING = re.compile(r"^=+\s*(.*?)\s*=+$")
_CLOSING = frozenset(
    (
        *("see also", "notes", "references", "further reading", "external links", "bibliography"),
        *("sources", "footnotes", "citations", "works cited", "notes and references", "literature"),
    )
)
_EMPTY_BRACKETS = re.compile(r"\s*\((?:[\s,;:–-]|or|and)*\)")
_BLANKS = re.compile(r"[ \t\u00a0]+")


def _until_stable(pattern: re.Pattern[str], replacement: str, text: str) -> str:
    """Substitute from the innermost outwards until nothing matches."""
    while True:
        text, count = pattern.subn(replacement, text)
        if count == 0:
            return text


def clean(wikitext: str) -> list[str]:
    """Turn the wikitext of one article into its paragraphs of prose (see the module's list)."""
    text = _COMMENT.sub("", wikitext)
    text = _ELEMENT.sub("", _EMPTY_ELEMENT.sub("", text))
    text = _until_stable(_TABLE, "", _until_stable(_TEMPLATE, "", text))
    text = _simplify_links(text)
    text = _EXTERNAL_LINK.sub(r"\1", text)
    text = _TAG.sub("", _QUOTES.sub("", text))
    paragraphs = []
    for raw in html.unescape(text).splitlines():
        line = raw.strip()
        if heading := _HEADING.match(line):
            if heading[1].lower() in _CLOSING:
                break
            continue
        if raw[:1] in "*#:;|!{} \t" or line.startswith(("[[", "]]", "__")):
            continue
        line = _BLANKS.sub(" ", _EMPTY_BRACKETS.sub("", line)).replace(" ,", ",")
        if len(line) >= _MIN_PARAGRAPH:
            paragraphs.append(line)
    return paragraphs


def _simplify_links(text: str) -> str:
    """Innermost links first, so that a caption with links in it goes as a whole."""
    while True:
        before = text
        text = _INTERWIKI_LINK.sub("", _DROPPED_LINK.sub("", text))
        text = _LINK.sub(_visible_text, text)
        if text == before:
            return text


def _visible_text(link: re.Match[str]) -> str:
    return link[1]


def _articles(dump: bytes) -> Iterator[tuple[str, str]]:
    """Title and wikitext of every article of a MediaWiki XML dump, redirects left out."""
    for page in ElementTree.fromstring(dump).iterfind("{*}page"):
        body = page.findtext("{*}revision/{*}text") or ""
        if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
            yield page.findtext("{*}title") or "", body


@functools.cache
def corpus() -> str:
    """The cleaned articles as one text of about 2.5 million characters.

    Raises:
        ZooError: the text cannot be fetched (see `onnxq.models.zoo.fetch`).
    """
    dump = bz2.decompress((fetch("text") / "enwiki.xml.bz2").read_bytes())
    parts = []
    for title, body in _articles(dump):
        if paragraphs := clean(body):
            parts.append("\n".join([f"= {title} =", *paragraphs]))
    return "\n".join(parts) + "\n"


def calibration_tokens(encode: Encode, *, windows: int = 128, window: int = 512) -> np.ndarray:
    """The first ``windows * window`` tokens of the corpus.

    Args:
        encode: a tokenizer's text → ids, adding no special tokens.
        windows: number of windows.
        window: tokens in each.

    Returns:
        int64 array of shape [windows, window].

    Raises:
        ZooError: the corpus is shorter than that, or cannot be fetched.
    """
    return _tokens(encode, windows, window, lambda text, size: text[:size], first=True)


def evaluation_tokens(encode: Encode, *, windows: int = 16, window: int = 512) -> np.ndarray:
    """The last ``windows * window`` tokens of the corpus; arguments as `calibration_tokens`."""
    return _tokens(encode, windows, window, lambda text, size: text[-size:], first=False)


def _tokens(
    encode: Encode,
    windows: int,
    window: int,
    cut: Callable[[str, int], str],
    *,
    first: bool,
) -> np.ndarray:
    """Encode a slice on one side of the corpus that is long enough, never more than half of it."""
    text = corpus()
    count = windows * window
    piece = cut(text, min(count * _CHARACTERS_PER_TOKEN, len(text) // 2))
    ids = np.asarray(encode(piece), np.int64)
    if len(ids) < count:
        raise ZooError(
            f"{windows} windows of {window} tokens were asked for, but half of the Wikipedia text "
            f"holds {len(ids)} tokens: ask for at most {len(ids) // window} windows."
        )
    return (ids[:count] if first else ids[-count:]).reshape(windows, window)
