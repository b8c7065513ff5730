"""The kernels as PTX, from the files that nvcc wrote as onnxq was built.

A file has every kernel of an operator, and an engine would keep all of them for every node, so that
one is cut out.
"""

from __future__ import annotations

import functools
import importlib.resources
import re

from onnxq.custom_ops.tensorrt.nodes import stem_of
from onnxq.errors import UsageError

__all__ = ["kernel_text", "one_kernel"]

_ENTRY = re.compile(r"^\.visible \.entry (\w+)\(.*?^\}\n", re.MULTILINE | re.DOTALL)


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
    """PTX with one of its kernels, and all that is no kernel.

    Raises:
        UsageError: it has no such kernel.
    """
    if kernel not in _ENTRY.findall(text):
        raise UsageError(f"There is no kernel {kernel!r} in this PTX: build onnxq again.")
    return _ENTRY.sub(lambda found: found[0] if found[1] == kernel else "", text)
