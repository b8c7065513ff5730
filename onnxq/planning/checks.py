"""What running whole models takes: promises after every pass, and the artifact in the end."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxq.graph.writing import INLINE_LIMIT
from onnxq.passes.runner import Check
from onnxq.planning.ledger import Entry
from onnxq.planning.rates import Rates
from onnxq.planning.sizes import Sizes
from onnxq.planning.weight_memory import Need
from onnxq.runtime.memory_settings import MemorySettings

__all__ = ["check_stage", "write_stage"]

_SAMPLES = 2
"""Samples that a promise is checked on, and those held back for the artifact."""
_BUFFER = 16 << 20
"""Bytes of a weight that are written at once."""

Entries = Callable[[MemorySettings, int], list[Entry]]


def check_stage(model: ir.Model, sizes: Sizes, rates: Rates, key: str, quantized: int) -> Entries:
    """A run of the whole model on two samples, beside what it gave before.

    Args:
        model: as the pass has left it, without content.
        sizes: of the samples.
        rates: of this machine.
        key: of the pass.
        quantized: bytes of its weights when they are stored in few bits already; 0 before.
    """
    need, seconds, disk = _run(model, sizes, rates, quantized)
    entry = Entry(step="check", part=f"after {key}", need=need, seconds=seconds, spilled=disk)
    return lambda settings, workers: [entry]


def write_stage(model: ir.Model, sizes: Sizes, rates: Rates, size: int, check: Check) -> Entries:
    """The model file, hashed; and both models run on what was held back."""
    held = 3 * size if size <= INLINE_LIMIT else _BUFFER  # small models are one protobuf
    seconds = 2 * size * rates.store
    entries = [Entry(step="write", need=Need(held, held), seconds=seconds, disk=size)]
    if check == "auto":
        original, seconds, disk = _run(model, sizes, rates, 0)
        written, more, _ = _run(model, sizes, rates, size)
        both = original.beside(written.memory, written.resident - written.memory)
        entries.append(Entry(step="compare", need=both, seconds=seconds + more, spilled=disk))
    return lambda settings, workers: entries


def _run(model: ir.Model, sizes: Sizes, rates: Rates, quantized: int) -> tuple[Need, float, int]:
    """Memory, seconds and bytes on disk of opening a model from a file and running two samples."""
    over = rates.overhead
    stored, opened = 0, 0.0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        stored += tensor.nbytes
        half = tensor.dtype == ir.DataType.FLOAT16
        opened += tensor.nbytes * (over.checked16 if half else over.checked32)
    if quantized:
        opened, stored = 2.0 * quantized, quantized
    values = sizes.bound(model)
    outputs = 4 * _SAMPLES * sum(values.nbytes(value) for value in model.graph.outputs)
    working = values.working(list(model.graph))
    resident = int(opened) + outputs + working
    products = _SAMPLES * sizes.share * values.products(model.graph)
    seconds = 2 * opened * rates.copy + products * rates.multiply + stored * rates.store
    return Need(max(resident - stored, outputs), resident), seconds, stored
