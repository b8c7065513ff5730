"""How a quantized weight is written into the graph: the forms of `quantize_weights`.

One weight read by several sites is stored once per form, and an embedding tied to a MatMulNBits
shares its codes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxq.custom_ops.catalog import spec_of
from onnxq.formats import (
    Format,
    IntFormat,
    PerGroup,
    VectorFormat,
    encode_matmul_nbits,
    matmul_nbits_layout,
)
from onnxq.graph.orientation import to_rows
from onnxq.graph.scratch import Scratch
from onnxq.graph.sites import Site
from onnxq.graph.weights import add_weight, weight_tensor
from onnxq.passes.base import SiteReport
from onnxq.passes.fake_quantization import rounded_by
from onnxq.passes.kept_columns_writing import counted, write_kept_columns
from onnxq.passes.weight_layout import (
    Stored,
    decode_rows,
    dequantize_attributes,
    dequantize_inputs,
    relative_error,
    weight_of,
    weight_type,
)
from onnxq.passes.weight_solving import WeightSolver
from onnxq.passes.weight_storing import (
    Encoded,
    cast_scales,
    epilogue,
    graph_of,
    insert_early,
    replace_site,
    store_arrays,
)

_TWICE = (
    "ONNX Runtime fuses it and rounds its activation once more, to 8 bits by blocks, unless "
    "session.qdq_matmulnbits_accuracy_level is 0; write=auto avoids that"
)


class WeightWriter:
    """Encodes weights and edits sites; one per run of the pass."""

    def __init__(
        self,
        model: ir.Model,
        scratch: Scratch,
        solver: WeightSolver,
        accuracy_level: int,
    ) -> None:
        """Write into ``model`` the codes of ``solver``; large arrays go to ``scratch``."""
        self._model = model
        self._scratch = scratch
        self._solver = solver
        self._accuracy_level = accuracy_level
        self._written: dict[tuple[object, ...], Encoded] = {}
        self._dequantized: dict[tuple[object, ...], ir.Value] = {}
        self._kept: dict[str, int] = {}

    def keep_columns(self, site: Site, fmt: Format) -> None:
        """Write the columns of a site that stay in full precision, before the site itself."""
        kept = self._solver.kept(site, fmt)
        if kept is not None:
            self._kept[site.name] = write_kept_columns(site, kept, self._scratch)

    def remove_unused(self) -> None:
        """Drop the float weights (and transposes of them) that nothing reads any more."""
        if self._written:
            RemoveUnusedNodesPass()(self._model)

    def dequantize(self, site: Site, fmt: IntFormat) -> SiteReport:
        """MatMul(x, W) → MatMul(x, DequantizeLinear(codes, scales[, zeros]))."""
        weight = weight_of(site)
        key = (id(weight), str(fmt), "dequantize", site.in_axis, site.out_axis)
        if key not in self._written:
            rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
            arrays = self._solver.arrays(site, rows, fmt)
            error = relative_error(rows, lambda part: decode_rows(arrays, fmt, part))
            stored = dequantize_inputs(site, fmt, arrays)
            encoded = self._store_steps(site, fmt, stored, rows.size, error)
            node = ir.node(
                "DequantizeLinear",
                list(encoded.values.values()),
                attributes=dequantize_attributes(site, fmt),
                name=f"{encoded.values['codes'].name}_DequantizeLinear",
            )
            output = node.outputs[0]
            output.name = f"{node.name}_output"
            output.dtype, output.shape = weight_type(site), ir.Shape(site.shape)
            insert_early(graph_of(site), node)
            self._written[key], self._dequantized[key] = encoded, output
        reader, index = (site.via[0], 0) if site.via else (site.node, site.weight_index)
        reader.replace_input_with(index, self._dequantized[key])
        report = self._report(site, fmt, self._written[key])
        if rounded_by(site) is None or not isinstance(fmt.granularity, PerGroup):
            return report
        return dataclasses.replace(report, note="; ".join(filter(None, (report.note, _TWICE))))

    def matmul_nbits(self, site: Site, fmt: IntFormat) -> SiteReport:
        """MatMul(x, W) or Gemm(x, W, c) → MatMulNBits(x, codes, scales[, zeros]) [+ c]."""
        encoded = self._blocks(site, fmt)
        columns, rows = site.shape[site.in_axis], site.shape[site.out_axis]
        # An activation that was rounded already is not to be rounded again, to other steps.
        level = self._accuracy_level if rounded_by(site) is None else 0
        node = ir.node(
            "MatMulNBits",
            [site.node.inputs[0], *encoded.values.values()],
            attributes={
                "K": columns,
                "N": rows,
                "bits": fmt.bits,
                "block_size": _group(fmt),
                "accuracy_level": level,
            },
            domain="com.microsoft",
            name=site.node.name,
        )
        replace_site(site, node, epilogue(site, node))
        self._model.opset_imports.setdefault("com.microsoft", 1)
        return self._report(site, fmt, encoded)

    def operator(self, site: Site, fmt: Format) -> SiteReport:
        """MatMul(x, W) or Gemm(x, W, c) → onnxq.MatMul...(x, arrays of the format) [+ c]."""
        shape = site.shape[site.out_axis], site.shape[site.in_axis]
        spec = spec_of(fmt, shape)
        if isinstance(spec, str):
            raise ValueError(f"site {site.name!r}: {spec}; check operator_refusal first")
        key = (id(weight_of(site)), str(fmt), spec.name, site.in_axis)
        if key not in self._written:
            rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
            arrays = self._solver.arrays(site, rows, fmt)
            decoded = fmt.decode(arrays)
            error = relative_error(rows, lambda part: decoded[part])
            stored = {
                name: (array, ir.DataType.from_numpy(array.dtype))
                for name, array in spec.stored(fmt.pack(arrays)).items()
            }
            self._written[key] = self._store(site, fmt, stored, rows.size, error)
        encoded, x = self._written[key], site.node.inputs[0]
        if x is None:
            raise ValueError(f"site {site.name!r} reads no activation")
        node = spec.node(self._model, x, encoded.values, fmt, shape, name=site.node.name or "")
        replace_site(site, node, epilogue(site, node))
        return self._report(site, fmt, encoded)

    def gather_block_quantized(self, site: Site, fmt: IntFormat) -> SiteReport:
        """Gather(W, i) → GatherBlockQuantized(codes, i, scales[, zeros])."""
        encoded = self._blocks(site, fmt)
        codes, *steps = encoded.values.values()
        tokens, columns = site.shape[site.out_axis], site.shape[site.in_axis]
        shape = np.array([tokens, columns * fmt.bits // 8], np.int64)
        graph = graph_of(site)
        flat = ir.node(
            "Reshape",
            [
                codes,
                add_weight(
                    graph, "table_shape", shape=(2,), dtype=ir.DataType.INT64, compute=shape
                ),
            ],
            name=f"{site.node.name}_table",
        )
        flat.outputs[0].name = f"{flat.name}_output"
        node = ir.node(
            "GatherBlockQuantized",
            [flat.outputs[0], site.node.inputs[1], *steps],
            attributes={
                "bits": fmt.bits,
                "block_size": _group(fmt),
                "gather_axis": 0,
                "quantize_axis": 1,
            },
            domain="com.microsoft",
            name=site.node.name,
        )
        replace_site(site, node, [flat, node])
        self._model.opset_imports.setdefault("com.microsoft", 1)
        return self._report(site, fmt, encoded)

    def _blocks(self, site: Site, fmt: IntFormat) -> Encoded:
        """Codes, scales and zero points in MatMulNBits layout, stored once for tied weights."""
        key = (id(weight_of(site)), str(fmt), "blocks", site.in_axis)
        if key not in self._written:
            rows = to_rows(site, weight_tensor(weight_of(site)).numpy())
            shrink = self._solver.plain_shrink(site, fmt)
            if shrink is None:
                arrays = self._solver.arrays(site, rows, fmt)
                encoded = matmul_nbits_layout(arrays, fmt)
                error = relative_error(rows, lambda part: decode_rows(arrays, fmt, part))
            else:  # codes of a plain rounding come packed from the kernel, with their errors
                encoded = encode_matmul_nbits(rows, fmt, shrink=shrink)
                squares = encoded["squares"]
                noise, signal = (0.0, 0.0) if squares is None else squares.sum(axis=1)
                error = math.sqrt(noise / signal) if signal else 0.0
            layout = {name: array for name, array in encoded.items() if array is not None}
            scale_type = ir.DataType.from_numpy(layout["scales"].dtype)
            stored: Stored = {
                "codes": (layout["B"], ir.DataType.UINT8),
                "scales": (layout["scales"], scale_type),
            }
            if not fmt.symmetric:
                stored["zeros"] = (layout["zero_points"], ir.DataType.UINT8)
            self._written[key] = self._store_steps(site, fmt, stored, rows.size, error)
        return self._written[key]

    def _store(
        self, site: Site, fmt: Format, stored: Stored, elements: int, error: float
    ) -> Encoded:
        return store_arrays(site, str(fmt), stored, self._scratch, elements=elements, error=error)

    def _store_steps(
        self, site: Site, fmt: IntFormat, stored: Stored, elements: int, error: float
    ) -> Encoded:
        """As `_store`, with scales in the type that the model computes in."""
        encoded = self._store(site, fmt, stored, elements, error)
        scales = cast_scales(site, encoded.values["scales"])
        return dataclasses.replace(encoded, values={**encoded.values, "scales": scales})

    def _report(self, site: Site, fmt: Format, encoded: Encoded) -> SiteReport:
        report = SiteReport(
            site=site.name,
            format=str(fmt),
            bits=8 * encoded.nbytes / encoded.elements,
            error=encoded.error,
            nbytes=encoded.nbytes,
            **self._solver.describe(site, fmt),
        )
        if encoded.error == 0 and isinstance(fmt, VectorFormat):
            exact = f"stored exactly: its weights are values of {fmt} already"
            report = dataclasses.replace(report, note="; ".join(filter(None, (report.note, exact))))
        kept = self._solver.kept(site, fmt)
        return report if kept is None else counted(report, site, kept, self._kept[site.name])


def _group(fmt: IntFormat) -> int:
    if not isinstance(fmt.granularity, PerGroup):
        raise ValueError(f"{fmt} has no groups")
    return fmt.granularity.size
