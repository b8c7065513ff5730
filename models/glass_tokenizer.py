"""GlassLM's tokenizer: byte-pair merges over characters, with a mark for spaces."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from pathlib import Path

__all__ = ["GlassTokenizer"]

_SPACE = "▁"
_SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
_CHUNK = re.compile(r"\n|▁*[^▁\n]+|▁+")


class GlassTokenizer:
    """Text to ids and back; merges never cross words or line ends."""

    def __init__(self, path: Path) -> None:
        """Read ``alphabet`` and ``merges`` of a JSON file."""
        data = json.loads(path.read_text("utf-8"))
        merges = [(first, second) for first, second in data["merges"]]
        self._rank = {pair: rank for rank, pair in enumerate(merges)}
        self._vocabulary = [*_SPECIAL, *data["alphabet"], *(a + b for a, b in merges)]
        self._id = {piece: number for number, piece in enumerate(self._vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Ids of a text; unknown characters become ``<unk>``."""
        marked = unicodedata.normalize("NFC", text).replace(" ", _SPACE)
        unknown = self._id["<unk>"]
        return [
            self._id.get(piece, unknown)
            for chunk in _CHUNK.findall(marked)
            for piece in self._merge(chunk)
        ]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special tokens are left out."""
        pieces = (self._vocabulary[number] for number in ids if number >= len(_SPECIAL))
        return "".join(pieces).replace(_SPACE, " ")

    def _merge(self, chunk: str) -> list[str]:
        """Join the pair that was learned first, everywhere, until no learned pair is left."""
        pieces = list(chunk)
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            merged: list[str] = []
            for piece in pieces:
                if merged and (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            pieces = merged
        return pieces
