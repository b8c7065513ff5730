"""From llama.cpp's GGUF: dequantized to float32, exported as a decoder with a key/value cache."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import ExportError, MissingDependency
from onnxq.export.exported import Exported, fresh_folder, refuse_occupied
from onnxq.export.gguf_file import GgufFile, open_gguf
from onnxq.export.gguf_llama import converts_directly, write_checkpoint
from onnxq.export.hf_folder import quiet_transformers, transformers_package
from onnxq.export.text_generation import export_decoder

__all__ = ["from_gguf"]


def from_gguf(
    path: str | Path,
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a GGUF file to a folder that onnxruntime-genai runs, checked against transformers.

    The weights are what the file's blocks decode to, in float32: a Q4 file gives a float model
    whose weights lie on that grid.

    Args:
        path: a ``.gguf`` file of a causal language model.
        out: folder to write: ``model.onnx`` with external data, ``genai_config.json``,
            tokenizer, ``config.json``.
        checkpoint: folder to keep the float32 Hugging Face checkpoint in, which is made on the
            way; by default it is deleted.
        overwrite: replace model folders that are there.

    Raises:
        ExportError: the file is not GGUF, truncated or of an architecture that is not supported;
            the output exists; the export does not match.
        MissingDependency: gguf, transformers, torch or onnxruntime-genai is not installed.
    """
    file = open_gguf(path)
    source = f"{file.path.name} ({file.architecture}, dequantized to float32)"
    refuse_occupied(out, overwrite)
    if checkpoint is not None:
        with fresh_folder(checkpoint, overwrite=overwrite) as fresh:
            write_float_checkpoint(file, fresh)
        return export_decoder(Path(checkpoint), out, source=source, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="onnxq-gguf-") as scratch:
        write_float_checkpoint(file, Path(scratch))
        return export_decoder(Path(scratch), out, source=source, overwrite=overwrite)


def write_float_checkpoint(file: GgufFile, folder: Path) -> None:
    """Write the file as a Hugging Face checkpoint in float32, tokenizer included.

    Dense models of the llama family are converted directly, others by transformers.

    Raises:
        ExportError: transformers does not read this architecture from GGUF, or a tensor is
            missing.
        MissingDependency: transformers, torch or accelerate is not installed.
    """
    transformers_package("Exporting a GGUF file")
    if converts_directly(file):
        write_checkpoint(file, folder)
        _save_tokenizer(file, folder)
        return
    with _transformers_failures(file), quiet_transformers():
        import torch
        from transformers import AutoModelForCausalLM

        module = AutoModelForCausalLM.from_pretrained(
            file.path.parent, gguf_file=file.path.name, dtype=torch.float32
        )
        # The loader marks the module as quantized, which saving as float32 refuses.
        module.hf_quantizer = None
        module.config.__dict__.pop("quantization_config", None)
        module.save_pretrained(folder)
    _save_tokenizer(file, folder)


def _save_tokenizer(file: GgufFile, folder: Path) -> None:
    if "tokenizer.ggml.tokens" not in file.metadata:
        raise ExportError(
            f"{str(file.path)!r} carries no tokenizer (tokenizer.ggml.tokens), so nothing can be "
            "generated from it. Convert the model again with its vocabulary."
        )
    with _transformers_failures(file), quiet_transformers():
        try:
            from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
        except ImportError:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
        else:
            from transformers import PreTrainedTokenizerFast

            # What AutoTokenizer does with a GGUF file, without building the configuration first.
            architecture, content, options = get_gguf_tokenizer(str(file.path))
            backend, more = convert_gguf_tokenizer(architecture, content)
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options, **more)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _transformers_failures(file: GgufFile) -> Iterator[None]:
    """Turn what transformers raises on a GGUF file into one of our sentences."""
    try:
        yield
    except ImportError as error:
        package = error.name or "transformers"
        raise MissingDependency(package, "gguf", "Exporting a GGUF file") from error
    except (ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise ExportError(
            f"{str(file.path)!r} has the architecture {file.architecture!r}, which transformers "
            f"does not read from GGUF: {error}. Export it from its original Hugging Face "
            "checkpoint with from_hf."
        ) from error
