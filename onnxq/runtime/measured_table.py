"""Numbers measured once on this machine, in a file of the user's cache."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

from onnxq.runtime.cache import cache_folder, write_whole
from onnxq.runtime.machine import machine
from onnxq.runtime.work_folder import hash_of

__all__ = ["MeasuredTable"]

_PACKAGES = ("numpy", "onnxruntime")


class MeasuredTable:
    """Numbers by a text that says what was measured; a file for each machine and runtime.

    Attributes:
        path: the file.
    """

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        """Open the table, empty when there is none.

        Args:
            kind: what it holds: the beginning of the name of the file.
            folder: where it is, in place of the cache.
        """
        about = json.dumps([machine(), *map(_version, _PACKAGES)])
        self.path = (folder or cache_folder()) / f"{kind}-{hash_of(about)[:16]}.json"
        self._about = about
        self._known: dict[str, float] = {}
        if self.path.exists():
            self._known = json.loads(self.path.read_text())["measured"]

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """The number for a key, measured and kept the first time."""
        if key not in self._known:
            self._known[key] = measure()
            write_whole(self.path, json.dumps({"machine": self._about, "measured": self._known}))
        return self._known[key]


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"
