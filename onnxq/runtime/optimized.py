"""What ONNX Runtime makes of a model: its graph after all optimizations, and what it ran.

The graph is the one that the runtime saves, with the node and value names that it kept or made up;
the profile says by node name which operator each kernel computed and on which provider.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import OnnxqError
from onnxq.runtime.inputs import random_samples
from onnxq.runtime.session import open_session

__all__ = ["OptimizedModel", "optimized_model", "optimizing_config", "read_optimized"]

_EXTERNAL = "session.optimized_model_external_initializers_file_name"
_LARGE = "session.optimized_model_external_initializers_min_size_in_bytes"
_KERNEL_EVENT = "_kernel_time"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizedModel:
    """A model as the runtime runs it.

    Attributes:
        model: its graph; large weights have shapes and types and cannot be read any more.
        ran: operator type by node name, of the nodes that ran; None when nothing was run.
        providers: execution provider by node name, likewise.
    """

    model: ir.Model
    ran: Mapping[str, str] | None = None
    providers: Mapping[str, str] | None = None


def optimized_model(
    source: ir.Model | str | Path,
    *,
    run: bool = True,
    sample: Mapping[str, np.ndarray] | None = None,
    custom_ops: bool | None = None,
    config: Mapping[str, str] | None = None,
) -> OptimizedModel:
    """Open a model on the CPU provider, run it once, and give back what it had become.

    Args:
        source: a file, or a model in memory (left as it is).
        run: also run it and read the profile.
        sample: inputs by name; random ones when None.
        custom_ops: as in `open_session`.
        config: entries of the session configuration by key.

    Raises:
        OnnxqError: the runtime does not load or run the model.
    """
    with tempfile.TemporaryDirectory(prefix="onnxq-optimized-") as name:
        folder = Path(name)

        def configure(options: Any) -> None:
            options.optimized_model_filepath = str(folder / "optimized.onnx")
            for key, value in {**optimizing_config(), **(config or {})}.items():
                options.add_session_config_entry(key, value)
            if run:
                options.enable_profiling = True
                options.profile_file_prefix = str(folder / "profile")

        with open_session(source, custom_ops=custom_ops, configure=configure) as session:
            if run:
                session.run(sample if sample is not None else random_samples(session, 1)[0])
                session.end_profiling()
        return read_optimized(folder)


def optimizing_config() -> dict[str, str]:
    """Entries of the session configuration that let large weights be left out of the graph."""
    return {_EXTERNAL: "optimized.data", _LARGE: "1024"}


def read_optimized(folder: Path) -> OptimizedModel:
    """What a session wrote: ``optimized.onnx`` and, of a run, one ``profile*.json``."""
    model = ir.load(folder / "optimized.onnx")
    profile = next(iter(folder.glob("profile*.json")), None)
    if profile is None:
        return OptimizedModel(model=model)
    events = _kernel_events(profile)
    return OptimizedModel(
        model=model,
        ran={name: str(event["op_name"]) for name, event in events.items()},
        providers={name: str(event.get("provider", "")) for name, event in events.items()},
    )


def _kernel_events(path: Path) -> dict[str, dict[str, Any]]:
    """The arguments of each kernel event of a profile, by the name of its node."""
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OnnxqError(f"The profile {path} of ONNX Runtime cannot be read: {error}") from error
    return {
        str(event["name"]).removesuffix(_KERNEL_EVENT): dict(event.get("args", {}))
        for event in events
        if event.get("cat") == "Node" and str(event["name"]).endswith(_KERNEL_EVENT)
    }
