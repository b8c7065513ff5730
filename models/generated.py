"""Llama-shaped decoders of any size, generated: to prove that models larger than memory go through.

No trained model of 7 billion weights installs from a package, so one is drawn. Every weight has the
statistics of the tensor of SmolLM2-135M of the same role and relative depth: the spread of its
rows, that of its columns (input channels: outliers), and the distribution of its elements once both
are divided out, scaled so that a layer of another width puts out as much. What it says means
nothing; its size, its graph and the cost of every step on it are those of the real thing. The same
seed gives the same bytes with the same NumPy.

The graph is plain ONNX of opset 23: RMSNormalization, RotaryEmbedding, Attention (no cache).
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxq.graph import add_weight, save
from onnxq.graph.writing import SaveProgress

__all__ = ["SEVENTY_BILLION", "SEVEN_BILLION", "GeneratedLlama"]

_Content = Callable[[], npt.NDArray[np.float16]] | npt.NDArray[np.float16]

_OPSET, _IR = 23, 11
_ELEMENTS = 1 << 12
_BLOCK_ROWS = 1024
_ROLES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "embed": "token_embd",
    "head": "token_embd",
}
"""Names of roles here, and in a GGUF file."""


@dataclasses.dataclass(frozen=True)
class _Spread:
    """Statistics of one real tensor W [rows, columns].

    Attributes:
        rows: quantiles of the root mean square of its rows.
        columns: of its columns, relative to the whole.
        elements: of its elements over both.
        width: how many columns it has.
    """

    rows: npt.NDArray[np.float32]
    columns: npt.NDArray[np.float32]
    elements: npt.NDArray[np.float32]
    width: int

    @classmethod
    def of(cls, weight: npt.NDArray[np.float32]) -> _Spread:
        rows = np.sqrt(np.mean(weight**2, axis=1)) + 1e-12
        scaled = weight / rows[:, None]
        columns = np.sqrt(np.mean(scaled**2, axis=0)) + 1e-12
        places = (np.arange(_ELEMENTS) + 0.5) / _ELEMENTS
        return cls(
            rows=np.quantile(rows, np.linspace(0, 1, 257)).astype(np.float32),
            columns=np.quantile(columns, np.linspace(0, 1, 257)).astype(np.float32),
            elements=np.quantile(scaled / columns, places).astype(np.float32),
            width=weight.shape[1],
        )

    def draw(self, rows: int, columns: int, key: int) -> npt.NDArray[np.float16]:
        """A weight of another size, ``[rows, columns]``."""
        rng = np.random.Generator(np.random.Philox(key))
        of_row = _spread_out(self.rows, rows, rng) * math.sqrt(self.width / columns)
        of_column = _spread_out(self.columns, columns, rng)
        drawn = np.empty((rows, columns), np.float16)
        for start in range(0, rows, _BLOCK_ROWS):
            end = min(start + _BLOCK_ROWS, rows)
            index = rng.integers(0, _ELEMENTS, (end - start, columns), np.uint16)
            block = self.elements[index]
            block *= of_row[start:end, None]
            block *= of_column
            drawn[start:end] = block
        return drawn


def _spread_out(
    quantiles: npt.NDArray[np.float32], count: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    at = np.linspace(0, 1, count)
    values = np.interp(at, np.linspace(0, 1, len(quantiles)), quantiles).astype(np.float32)
    return rng.permutation(values)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A matrix of the decoder: rows are its outputs (tokens, of the embedding)."""

    role: str
    layer: int | None
    rows: int
    columns: int

    @property
    def name(self) -> str:
        return f"w_{self.role}{'' if self.layer is None else self.layer}"

    @property
    def shape(self) -> tuple[int, int]:
        """As MatMul or Gather takes it."""
        size = (self.rows, self.columns)
        return size if self.role == "embed" else size[::-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedLlama:
    """A decoder to generate.

    Attributes:
        layers: how many blocks.
        width: of the residual stream.
        hidden: of the MLP.
        heads: of queries.
        kv_heads: of keys and values.
        vocabulary: rows of the embedding and of the head, which are not tied.
        seed: of everything.
    """

    layers: int = 32
    width: int = 4096
    hidden: int = 11008
    heads: int = 32
    kv_heads: int = 32
    vocabulary: int = 32000
    seed: int = 0

    @property
    def parameters(self) -> int:
        """Weights of its matrices."""
        return sum(weight.rows * weight.columns for weight in self._weights())

    def write(self, folder: Path, source: Path, *, progress: SaveProgress | None = None) -> Path:
        """Generate ``model.onnx`` with its data file, one weight in memory at a time.

        Args:
            folder: where to write.
            source: the GGUF file whose statistics are taken, `onnxq.models.smollm2.gguf_path`.
            progress: called for each weight.
        """
        return save(self.model(source), folder / "model.onnx", progress=progress, external=True)

    def model(self, source: Path | None) -> ir.Model:
        """The model, its weights computed when they are read; without a source they cannot be."""
        built = ir.from_onnx_text(self._text())
        spreads = {} if source is None else _spreads(source, self.layers)
        for weight in self._weights():
            spread = spreads.get((weight.role, weight.layer))
            content = _no_content if spread is None else self._drawing(weight, spread)
            _put(built.graph, weight.name, weight.shape, content)
        for name in self._norms():
            _put(built.graph, name, (self.width,), np.ones(self.width, np.float16))
        _put(built.graph, "cos", *self._rotary(np.cos))
        _put(built.graph, "sin", *self._rotary(np.sin))
        return built

    def _drawing(self, weight: _Weight, spread: _Spread) -> Callable[[], npt.NDArray[np.float16]]:
        key = zlib.crc32(f"{self.seed} {weight.name}".encode())

        def compute() -> npt.NDArray[np.float16]:
            drawn = spread.draw(weight.rows, weight.columns, key)
            if weight.role == "embed":
                return drawn * np.float16(math.sqrt(weight.columns / spread.width))
            return np.ascontiguousarray(drawn.T)

        return compute

    def _weights(self) -> list[_Weight]:
        size = self.width // self.heads * self.kv_heads
        found = [_Weight("embed", None, self.vocabulary, self.width)]
        for layer in range(self.layers):
            for role, rows, columns in (
                ("q", self.width, self.width),
                ("k", size, self.width),
                ("v", size, self.width),
                ("o", self.width, self.width),
                ("gate", self.hidden, self.width),
                ("up", self.hidden, self.width),
                ("down", self.width, self.hidden),
            ):
                found.append(_Weight(role, layer, rows, columns))
        return [*found, _Weight("head", None, self.vocabulary, self.width)]

    def _norms(self) -> list[str]:
        blocks = [f"g_{kind}{layer}" for layer in range(self.layers) for kind in ("n", "f")]
        return [*blocks, "g_last"]

    def _rotary(self, function: np.ufunc) -> tuple[tuple[int, int], npt.NDArray[np.float16]]:
        half = self.width // self.heads // 2
        angles = np.arange(2048)[:, None] / 10000.0 ** (np.arange(half) / half)
        return (2048, half), function(angles).astype(np.float16)

    def _text(self) -> str:
        counts = f"q_num_heads = {self.heads}, kv_num_heads = {self.kv_heads}"
        lines = ["x0 = Gather (w_embed, input_ids)"]
        for i in range(self.layers):
            lines += [
                f"n{i} = RMSNormalization <axis = -1, epsilon = 1e-5> (x{i}, g_n{i})",
                f"q{i} = MatMul (n{i}, w_q{i})  k{i} = MatMul (n{i}, w_k{i})",
                f"v{i} = MatMul (n{i}, w_v{i})",
                f"qr{i} = RotaryEmbedding <num_heads = {self.heads}>"
                f" (q{i}, cos, sin, position_ids)",
                f"kr{i} = RotaryEmbedding <num_heads = {self.kv_heads}>"
                f" (k{i}, cos, sin, position_ids)",
                f"a{i} = Attention <is_causal = 1, {counts}> (qr{i}, kr{i}, v{i})",
                f"o{i} = MatMul (a{i}, w_o{i})  r{i} = Add (x{i}, o{i})",
                f"f{i} = RMSNormalization <axis = -1, epsilon = 1e-5> (r{i}, g_f{i})",
                f"gate{i} = MatMul (f{i}, w_gate{i})  up{i} = MatMul (f{i}, w_up{i})",
                f"s{i} = Sigmoid (gate{i})  z{i} = Mul (gate{i}, s{i})  h{i} = Mul (z{i}, up{i})",
                f"d{i} = MatMul (h{i}, w_down{i})  x{i + 1} = Add (r{i}, d{i})",
            ]
        lines += [
            f"last = RMSNormalization <axis = -1, epsilon = 1e-5> (x{self.layers}, g_last)",
            "logits = MatMul (last, w_head)",
        ]
        names = [*(weight.name for weight in self._weights()), *self._norms(), "cos", "sin"]
        weights = ", ".join(f"float16[] {name}" for name in names)
        body = "\n".join(lines)
        return (
            f'<ir_version: {_IR}, opset_import: ["" : {_OPSET}]>\n'
            "decoder (int64[batch, sequence] input_ids, int64[batch, sequence] position_ids, "
            f"{weights}) => (float16[batch, sequence, {self.vocabulary}] logits)\n{{\n{body}\n}}"
        )


SEVEN_BILLION = GeneratedLlama()
"""The shape of Llama-2-7B: 6.74 billion weights, 13.5 GB in float16."""

SEVENTY_BILLION = GeneratedLlama(layers=80, width=8192, hidden=28672, heads=64, kv_heads=8)
"""The shape of Llama-2-70B: 69 billion weights, 138 GB in float16."""


def _no_content() -> npt.NDArray[np.float16]:
    raise ValueError("this decoder was made without a source: its weights have shapes only")


def _spreads(source: Path, layers: int) -> dict[tuple[str, int | None], _Spread]:
    """Statistics by role and layer, of the real layer at the same relative depth."""
    from onnxq.export.gguf_file import open_gguf

    file = open_gguf(source)
    count = int(file.hyperparameter("block_count"))
    real: dict[str, _Spread] = {}

    def spread(name: str) -> _Spread:
        if name not in real:
            real[name] = _Spread.of(np.asarray(file.read(name), np.float32))
        return real[name]

    found: dict[tuple[str, int | None], _Spread] = {}
    for role, stored in _ROLES.items():
        if stored == "token_embd":
            found[role, None] = spread(f"{stored}.weight")
            continue
        for layer in range(layers):
            found[role, layer] = spread(f"blk.{layer * count // layers}.{stored}.weight")
    return found


def _put(graph: ir.Graph, name: str, shape: tuple[int, ...], content: _Content) -> None:
    """Make a weight of the graph input of this name."""
    declared = next(value for value in graph.inputs if value.name == name)
    graph.inputs.remove(declared)
    declared.name = f"{name}_declared"
    weight = add_weight(graph, name, shape=shape, dtype=ir.DataType.FLOAT16, compute=content)
    for node, index in tuple(declared.uses()):
        node.replace_input_with(index, weight)
