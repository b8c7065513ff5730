"""Runs models with ONNX Runtime on 64-bit ARM: started there by `onnxq.export.arm64_machine`.

    python run_model.py JOBS.json

It needs NumPy and onnxruntime alone. A job holds: ``model``; ``config``, entries of the session
configuration; ``library`` of operators or null; ``feeds`` and ``results``, files of arrays for each
sample; ``optimized``, a folder for the optimized graph and the profile, or null.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import onnxruntime


def run(job: dict[str, Any]) -> None:
    """Open a model, run it on each sample, and write what was asked for."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    for key, value in job["config"].items():
        options.add_session_config_entry(key, value)
    if job["library"]:
        options.register_custom_ops_library(job["library"])
    if job["optimized"]:
        options.optimized_model_filepath = job["optimized"] + "/optimized.onnx"
        if job["feeds"]:
            options.enable_profiling = True
            options.profile_file_prefix = job["optimized"] + "/profile"
    session = onnxruntime.InferenceSession(
        job["model"], options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    for feeds, results in zip(job["feeds"], job["results"], strict=True):
        with np.load(feeds) as stored:
            found = session.run(names, {name: stored[name] for name in stored.files})
        np.savez(results, **dict(zip(names, found, strict=True)))
    if job["optimized"] and job["feeds"]:
        session.end_profiling()


for one in json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")):
    run(one)
