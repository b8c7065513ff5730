"""The kernels as PTX, from the files that nvcc wrote as onnxq was built.

A file has every kernel of an operator, and an engine would keep all of them for every node, so that
one is cut out.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterable

from onnxq.custom_ops.tensorrt.nodes import stem_of
from onnxq.errors import UsageError

__all__ = ["kernel_text", "one_kernel"]

# Where something begins at the top level; bodies, and what is said of a kernel, go with it.
_BEGIN = re.compile(
    r"^\.(?:(?:visible|extern|weak|common)\s+\.)?(?:entry|func|global|const|shared)\b", re.MULTILINE
)
_ENTRY = re.compile(r"\.visible\s+\.entry\s+([\w$]+)")
_FUNCTION = re.compile(r"\.(?:(?:visible|weak)\s+\.)?func\s+(?:\([^)]*\)\s*)?([\w$]+)")
_WORD = re.compile(r"[\w$]+")


@functools.cache
def kernel_text(operator: str, kernel: str) -> str:
    """The PTX of one kernel of an operator.

    Raises:
        UsageError: onnxq was built without nvcc.
    """
    name = f"{stem_of(operator)}.ptx"
    path = importlib.resources.files("onnxq.runtime").joinpath("ptx", name)
    if not path.is_file():
        raise UsageError(
            f"This installation of onnxq has no {name}, the kernels of {operator} for plugins in "
            "Python: install it from its sources where nvcc is (pip install .)."
        )
    return one_kernel(path.read_text(), kernel)


def one_kernel(text: str, kernel: str) -> str:
    """PTX with one of its kernels, the functions that it calls, and all tables.

    Raises:
        UsageError: it has no such kernel.
    """
    begins = [found.start() for found in _BEGIN.finditer(text)]
    ends = [*begins[1:], len(text)]
    head, parts = text[: begins[0]] if begins else text, list(zip(begins, ends, strict=False))
    kept = {at: text[slice(*at)] for at in parts if _name(_ENTRY, text[slice(*at)]) == kernel}
    if not kept:
        raise UsageError(f"There is no kernel {kernel!r} in this PTX: build onnxq again.")
    functions = {at: _name(_FUNCTION, text[slice(*at)]) for at in parts}
    called = _words(kept.values())
    while new := {
        at: text[slice(*at)] for at, name in functions.items() if name in called and at not in kept
    }:
        kept |= new
        called |= _words(new.values())
    tables = {
        at: text[slice(*at)]
        for at in parts
        if functions[at] is None and _name(_ENTRY, text[slice(*at)]) is None
    }
    return head + "".join(part for _, part in sorted((kept | tables).items()))


def _name(kind: re.Pattern[str], part: str) -> str | None:
    found = kind.match(part)
    return found[1] if found else None


def _words(parts: Iterable[str]) -> set[str]:
    return {word for part in parts for word in _WORD.findall(part)}
