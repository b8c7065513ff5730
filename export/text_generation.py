"""A causal language model in a Hugging Face folder to a checked decoder with a key/value cache."""

from __future__ import annotations

from pathlib import Path

from onnxq.export.check import check_decoder
from onnxq.export.exported import Exported, fresh_folder
from onnxq.export.genai import UnknownArchitecture, build_with_genai, copy_companions
from onnxq.export.hf_folder import load_module
from onnxq.export.traced_decoder import trace_decoder
from onnxq.runtime import open_session

__all__ = ["export_decoder"]


def export_decoder(
    checkpoint: Path, out: str | Path, *, source: str, overwrite: bool = False
) -> Exported:
    """Export a checkpoint with onnxruntime-genai's model builder, or else by tracing; check it.

    Args:
        checkpoint: folder with ``config.json``, safetensors and tokenizer.
        out: folder to write.
        source: what to call the model in messages.
        overwrite: replace a model folder that is there.

    Raises:
        ExportError: the architecture is not supported, or the export does not match.
        MissingDependency: transformers, torch or onnxruntime-genai is not installed.
    """
    with fresh_folder(out, overwrite=overwrite) as folder:
        try:
            build_with_genai(checkpoint, folder)
            how = "onnxruntime-genai's model builder"
        except UnknownArchitecture:
            trace_decoder(checkpoint, folder)
            how = "torch.onnx.export, as onnxruntime-genai's builder does not know it"
        copy_companions(checkpoint, folder)
        module = load_module("AutoModelForCausalLM", checkpoint)
        with open_session(folder / "model.onnx") as session:
            verdict = check_decoder(session, module, source=f"transformers on {source}")
    out = Path(out)
    return Exported(
        folder=out,
        models={"model": out / "model.onnx"},
        task="text-generation",
        source=source,
        largest_error=verdict.largest,
        bound=verdict.bound,
        errors=verdict.errors,
        notes=(f"decoder with key/value cache by {how}", *verdict.notes),
    )
