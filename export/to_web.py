"""A folder for the browser: the model, a page, and onnxruntime-web with its WebAssembly.

onnxruntime-web loads no library of operators: those of onnxq run by the functions in the model.
Any server of files will do, and no other host is asked: what the page runs on lies in ``runtime/``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxq.errors import ArtifactError, MissingProgram, UnsupportedGraph
from onnxq.export.genai import copy_companions, read_json
from onnxq.export.same_outputs import NOT_COMPARED, compare_runtimes, random_runs
from onnxq.export.target import DeploymentTarget, Verdicts
from onnxq.export.web_form import spell_out_blocks
from onnxq.export.web_packages import place_page, verifier, web_version
from onnxq.export.web_rules import decoded_bytes, web_refusals, web_verdicts
from onnxq.export.web_weights import split_weights
from onnxq.graph import clone_model, load, save
from onnxq.runtime import open_session

__all__ = ["Web"]

MODEL_NAME = "model.onnx"
DESCRIPTION = "web.json"
_GENAI = "genai_config.json"
_OPTIONS = {"executionProviders": ["wasm"], "graphOptimizationLevel": "all"}
_UNFOLDED = {
    **_OPTIONS,
    "extra": {"optimization": {"disable_specified_optimizers": "ConstantFolding"}},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Web(DeploymentTarget):
    """onnxruntime-web, WebAssembly.

    Attributes:
        most_memory: bytes of float32 weights up to which a page decodes weights of few bits once,
            when it loads the model; with more they are decoded in every run.
    """

    name: ClassVar[str] = "web"
    title: ClassVar[str] = "onnxruntime-web, WebAssembly"

    most_memory: int = 1 << 30

    def check(self, model: ir.Model) -> Verdicts:
        """What onnxruntime-web will do with each site; see `onnxq.export.web_rules`."""
        return web_verdicts(model, self.most_memory)

    def build(self, source: Path, staging: Path) -> Mapping[str, Any]:
        """Write the folder, and run it once in Node.js beside ONNX Runtime.

        Args:
            source: folder of an artifact, or a model file.
            staging: see `DeploymentTarget.build`.

        Returns:
            The deviation of each output, and the memory that the run took.

        Raises:
            UnsupportedGraph: onnxruntime-web does not take the model.
            ArtifactError: it computes something else.
            MissingProgram: npm is needed once, to fetch onnxruntime-web.
        """
        model = load(source)
        refused = web_refusals(model)
        if refused:
            raise UnsupportedGraph(" ".join(verdict.reason for verdict in refused[:3]))
        path, decode = staging / MODEL_NAME, None
        if 0 < decoded_bytes(model) <= self.most_memory:
            decode = split_weights(model, path)
        else:
            save(model, path)
        copy_companions(source, staging)
        place_page(staging)
        description = {
            "model": MODEL_NAME,
            "data": sorted(file.name for file in staging.glob(f"{MODEL_NAME}.*")),
            "session": _UNFOLDED if decoded_bytes(model) > self.most_memory else _OPTIONS,
            "decode": decode,
            **_generation(staging),
        }
        text = json.dumps(description, separators=(",", ":"))
        (staging / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        return _verify(staging, model)

    def run(
        self, folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """What the folder computes in Node.js, with the WebAssembly of the page."""
        return _run_in_node(folder, samples)[0]


def _generation(folder: Path) -> dict[str, Any]:
    """Of a decoder: tokens that end a text, heads and size of its cache; from its configuration."""
    model = read_json(folder / _GENAI).get("model", {}) if (folder / _GENAI).is_file() else {}
    decoder = model.get("decoder", {})
    stop = model.get("eos_token_id", [])
    return {
        "stop": stop if isinstance(stop, list) else [stop],
        "cache": {"heads": decoder.get("num_key_value_heads"), "size": decoder.get("head_size")},
    }


def _verify(folder: Path, model: ir.Model) -> dict[str, Any]:
    """Run one sample in Node.js, with the very WebAssembly of the folder, and on the CPU."""
    runtime = f"onnxruntime-web {web_version()}"
    if shutil.which("node") is None:
        return {runtime: "not run: Node.js is not installed"}
    spelled = clone_model(model)
    spell_out_blocks(spelled)  # the kernel of MatMulNBits rounds activations to int8
    with open_session(spelled, optimize=False, custom_ops=False) as session:
        runs = random_runs(session, 1)
    if not runs:
        return {runtime: NOT_COMPARED}
    ((feeds, wanted),) = runs
    (found,), memory = _run_in_node(folder, [feeds])
    compared = compare_runtimes(runtime, {name: (wanted[name], found[name]) for name in found})
    return {runtime: "ran in Node.js", "outputs": compared, "memory": memory}


def _run_in_node(
    folder: Path, samples: Sequence[Mapping[str, np.ndarray]]
) -> tuple[list[dict[str, np.ndarray]], int]:
    """Outputs of each sample, and the bytes of WebAssembly memory that were taken."""
    node = shutil.which("node")
    if node is None:
        raise MissingProgram("node", "nodejs", "Running a page's model outside a browser")
    given = [{name: _encoded(array) for name, array in feeds.items()} for feeds in samples]
    done = subprocess.run(
        [node, str(verifier()), str(folder)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ArtifactError(
            f"onnxruntime-web {web_version()} does not run the model in Node.js: "
            f"{done.stderr.strip()[-1500:]}"
        )
    result = json.loads(done.stdout)
    outputs = [
        {name: _decoded(tensor) for name, tensor in found.items()} for found in result["outputs"]
    ]
    return outputs, result["memory"]


def _encoded(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"type": str(array.dtype), "dims": list(array.shape), "data": data}


def _decoded(tensor: Mapping[str, Any]) -> np.ndarray:
    raw = base64.b64decode(tensor["data"])
    return np.frombuffer(raw, tensor["type"]).reshape(tensor["dims"])
