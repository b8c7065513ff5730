"""Real models and data from pinned packages, torch definitions, and the tasks that judge them.

`onnxq.models.zoo` fetches, `onnxq.models.registry` lists the tasks; `onnxq.models.families` holds
torch definitions and is imported only by the tasks that export them.
"""

from __future__ import annotations

from onnxq.models.zoo import ZooEntry, entries, fetch

__all__ = ["ZooEntry", "entries", "fetch"]
