"""Matmuls in ONNX Runtime that are timed against one another: its own operators, and onnxq's."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import onnxruntime

from onnxq.custom_ops.catalog import SPECS
from onnxq.custom_ops.functions import DOMAIN
from onnxq.custom_ops.spec import OperatorSpec
from onnxq.formats import Format, parse_format
from onnxq.graph.weights import add_weight
from onnxq.runtime import Session, open_session

NBITS = [(bits, block) for bits in (2, 4, 8) for block in (32, 64, 128)]
OWN = ("fp32", "dynamic int8", *(f"MatMulNBits {bits}-bit g{block}" for bits, block in NBITS))
_TEXT_TYPES = {"float32": "float", "int8": "int8", "uint8": "uint8"}
ENCODED_ROWS = 64  # of random weights; the others repeat them

Arrays = dict[str, np.ndarray]
Shape = tuple[int, int]


@dataclasses.dataclass
class Side:
    """One of those that are timed.

    Attributes:
        name: of the table.
        nbytes: of all its weights, as they are stored.
        weights: how many of them one call multiplies by.
        kind: of its products when there are many tokens: ``float`` or ``int8``.
        bound: activations ``[tokens, columns]`` -> a function that runs once on them.
        close: frees it.
    """

    name: str
    nbytes: int
    weights: int
    kind: str
    bound: Callable[[np.ndarray], Callable[[], object]]
    close: Callable[[], None]


def runtime_side(name: str, shape: Shape, threads: int, set_bytes: int = 0) -> Side:
    """One side of `OWN` or `onnxq_names`; its weights fill ``set_bytes``, or are one."""
    if name in OWN:
        text, arrays, kind = _own(name, shape)
        weights = _weights(arrays, set_bytes)
        model = _own_model(text, arrays, shape, weights)
    else:
        operator, _, written = name.partition(" ")
        spec = next(spec for spec in SPECS if spec.name == operator)
        fmt = parse_format(written)
        arrays = spec.stored(packed_weight(fmt, shape))
        weights = _weights(arrays, set_bytes)
        model = _onnxq_model(spec, fmt, arrays, shape, weights)
        rounds = spec.attributes(fmt, shape).get("activation_bits", 32) == 8
        kind = "int8" if rounds else "float"
    session = open_session(model, threads=threads)
    return Side(
        name=name,
        nbytes=weights * _size(arrays),
        weights=weights,
        kind=kind,
        bound=lambda x: _bound(session, x, shape[0]),
        close=session.close,
    )


def onnxq_names(formats: Iterable[str], shape: Shape) -> list[str]:
    """Names of sides: each format with every operator that multiplies by such weights."""
    return [
        f"{spec.name} {name}"
        for name in formats
        for fmt in (parse_format(name),)
        for spec in SPECS
        if isinstance(fmt, spec.formats) and spec.refusal(fmt, shape) is None
    ]


def weights_in(one: int, set_bytes: int) -> int:
    """How many weights of ``one`` bytes fill the set, one at least."""
    return max(1, math.ceil(set_bytes / one))


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _weights(arrays: Arrays, set_bytes: int) -> int:
    return weights_in(_size(arrays), set_bytes)


def _own(name: str, shape: Shape) -> tuple[str, Arrays, str]:
    """Nodes, arrays and kind of products of an operator that ONNX Runtime has."""
    rows, columns = shape
    rng = np.random.default_rng(0)
    if name == "fp32":
        weight = rng.standard_normal((columns, rows), np.float32)
        return "Y = MatMul(x, weight)", {"weight": weight}, "float"
    if name == "dynamic int8":
        codes = rng.integers(-127, 128, (columns, rows), np.int8)
        text = (
            "q, s, z = DynamicQuantizeLinear(x) p = MatMulInteger(q, codes, z) "
            "f = Cast<to = 1>(p) r = Mul(s, scales) Y = Mul(f, r)"
        )
        return text, {"codes": codes, "scales": np.full(rows, 0.01, np.float32)}, "int8"
    bits, block = next(pair for pair in NBITS if name == f"MatMulNBits {pair[0]}-bit g{pair[1]}")
    groups = -(-columns // block)
    arrays = {
        "codes": rng.integers(0, 256, (rows, groups, block * bits // 8), np.uint8),
        "scales": rng.random((rows, groups), np.float32),
    }
    attributes = {
        "K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 4
    }  # fmt: skip
    return _call("com.microsoft.MatMulNBits", attributes, ["x", *arrays]), arrays, "int8"


def _call(operator: str, attributes: dict[str, int], inputs: list[str]) -> str:
    given = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    return f"Y = {operator}<{given}>({', '.join(inputs)})"


def _empty_model(columns: int) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(["n", columns]), type=ir.TensorType(ir.DataType.FLOAT))
    opsets = {"": 21, "com.microsoft": 1, DOMAIN: 1}
    graph = ir.Graph([x], [], nodes=[], opset_imports=opsets, name="bench")
    return ir.Model(graph, ir_version=10)


def _own_model(text: str, arrays: Arrays, shape: Shape, weights: int) -> ir.Model:
    """As many copies of the nodes as weights, all reading ``x``, each with an output."""
    rows, columns = shape
    model = _empty_model(columns)
    head = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
    names = ", ".join(f"{_TEXT_TYPES[str(array.dtype)]} {key}" for key, array in arrays.items())
    text = f"{head} one (float[n, {columns}] x, {names}) => (float[n, {rows}] Y) {{ {text} }}"
    for index in range(weights):
        one = ir.from_onnx_text(text).graph
        given = _stored(model.graph, arrays, index) | {"x": model.graph.inputs[0]}
        (y,) = one.outputs
        one.outputs.clear()
        for node in list(one):
            one.remove(node)
            node.name = f"{node.op_type}_{index}"
            for at, value in enumerate(node.inputs):
                if value is not None and value.name in given:
                    node.replace_input_with(at, given[value.name])
            for value in node.outputs:
                value.name = f"{value.name}_{index}"
            model.graph.append(node)
        model.graph.outputs.append(y)
    return model


def _onnxq_model(spec: OperatorSpec, fmt: Format, arrays, shape: Shape, weights: int) -> ir.Model:
    model = _empty_model(shape[1])
    for index in range(weights):
        stored = _stored(model.graph, arrays, index)
        name = f"{spec.name}_{index}"
        node = spec.node(model, model.graph.inputs[0], stored, fmt, shape, name=name)
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    return model


def _stored(graph: ir.Graph, arrays: Arrays, index: int) -> dict[str, ir.Value]:
    """Arrays of one of many weights; no two are alike, or the runtime would keep one for all."""
    arrays = {**arrays}
    for name in {"weight", "codes"} & arrays.keys():
        arrays[name] = np.roll(arrays[name], index, axis=0)
    return {
        name: add_weight(
            graph,
            f"{name}_{index}",
            shape=array.shape,
            dtype=ir.DataType.from_numpy(array.dtype),
            compute=array,
        )
        for name, array in arrays.items()
    }


def _bound(session: Session, x: np.ndarray, rows: int) -> Callable[[], object]:
    """A run with memory for the results, so that only the operator is timed."""
    inner = session._session
    binding = inner.io_binding()
    binding.bind_cpu_input("x", x)
    for spec in session.outputs:
        y = np.zeros((len(x), rows), np.float32)
        binding.bind_ortvalue_output(spec.name, onnxruntime.OrtValue.ortvalue_from_numpy(y))
    return lambda: inner.run_with_iobinding(binding)


@functools.lru_cache(8)
def packed_weight(fmt: Format, shape: Shape) -> Arrays:
    """Stored arrays of a random weight: a few rows are encoded, the others repeat them.

    What grows with the rows is found by storing half as many.
    """
    rows, columns = shape
    few = min(rows, ENCODED_ROWS)
    weight = np.random.default_rng(0).standard_normal((few, columns), np.float32)
    whole, half = (fmt.pack(fmt.encode(weight[:count])) for count in (few, few // 2))
    return {key: _repeated(array, half[key], rows / few) for key, array in whole.items()}


def _repeated(array: np.ndarray, half: np.ndarray, times: float) -> np.ndarray:
    for axis in range(array.ndim):
        if array.shape[axis] == 2 * half.shape[axis]:
            count = round(array.shape[axis] * times)
            return np.ascontiguousarray(np.take(array, range(count), axis, mode="wrap"))
    return array
