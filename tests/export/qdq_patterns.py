"""Small models with one linear site, quantized in every way that a rule speaks of."""

import dataclasses

import numpy as np
import onnx_ir as ir

TYPES = {
    "u8": ir.DataType.UINT8,
    "i8": ir.DataType.INT8,
    "u16": ir.DataType.UINT16,
    "i16": ir.DataType.INT16,
    "u4": ir.DataType.UINT4,
    "i4": ir.DataType.INT4,
    "u2": ir.DataType.UINT2,
    "i2": ir.DataType.INT2,
    "i32": ir.DataType.INT32,
}
LEAST = {"u8": 0, "i8": -127, "u16": 0, "i16": -999, "u4": 0, "i4": -7, "u2": 0, "i2": -1}
MOST = {"u8": 255, "i8": 127, "u16": 999, "i16": 999, "u4": 15, "i4": 7, "u2": 3, "i2": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
    """One site between x and y, and how it is quantized.

    `before` and `after` are operators between the DequantizeLinear and the site, and between the
    site and the QuantizeLinear.
    """

    kind: str = "MatMul"
    x: str | None = "u8"  # type of the activation's codes; None: float
    w: str | None = "i8"
    y: str | None = None
    span: str = "channel"  # tensor, channel, or a block size
    wrong_axis: bool = False
    transposed: bool = False  # Gemm: transB
    bias: str | None = None  # None, "i32" behind DequantizeLinear, "float"
    bias_factor: float = 1.0  # of its scale to that of input and weight
    shape: tuple = ("n", 64)
    width: int = 32
    before: str | None = None
    after: str | None = None
    both: bool = False  # y is read by another operator too
    is_output: bool = False  # the site's own result is an output of the graph
    shared: bool = False  # the weight's DequantizeLinear is read twice
    zeros: str = "xwy"  # whose zero points are given
    turned: bool = False  # the weight is transposed behind its DequantizeLinear
    twin: bool = False  # another MatMul reads the same dequantized weight
    computed_scale: bool = False
    opset: int = 21
    alpha: float = 1.0
    zero: int = 128  # zero point of uint8
    beta: float = 1.0
    x_twice: bool = False  # another node reads the dequantized x
    y_twice: bool = False  # two nodes read the dequantized y


class _Builder:
    def __init__(self, pattern):
        self.pattern, self.nodes, self.stored = pattern, [], []
        self.rng = np.random.default_rng(0)

    def store(self, name, array, dtype=None):
        kind = dtype or ir.DataType.from_numpy(array.dtype)
        tensor = ir.tensor(array.astype(kind.numpy()), dtype=kind, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape))
        value.dtype = kind
        self.stored.append(value)
        return value

    def node(self, op, inputs, attributes=None, name=None, domain=""):
        name = name or f"{op}_{len(self.nodes)}"
        node = ir.node(op, inputs, attributes or {}, name=name, domain=domain)
        node.outputs[0].name = f"{name}_out"
        self.nodes.append(node)
        return node.outputs[0]

    def quantized(self, value, kind, scale=0.05, name=None):
        """The Q/DQ pair behind a value."""
        name = name or value.name
        zero = np.asarray(self.pattern.zero if kind == "u8" else 0)
        ends = [self.store(f"{name}_scale", np.asarray(scale, np.float32))]
        if self.pattern.computed_scale:
            ends[0] = self.node("Abs", [ends[0]], name=f"{name}_abs")
            ends[0] = self.node("Add", [ends[0], self.scalar_of_x()], name=f"{name}_sum")
        if ("y" if name == "y" else "x") in self.pattern.zeros:
            ends.append(self.store(f"{name}_zero", zero, TYPES[kind]))
        coded = self.node("QuantizeLinear", [value, *ends], name=f"{name}_Q")
        return self.node("DequantizeLinear", [coded, *ends], name=f"{name}_DQ")

    def scalar_of_x(self):
        """A zero that no constant folding finds."""
        low = self.node("ReduceMin", [self.x], {"keepdims": 0})
        nothing = self.store(f"nothing_{len(self.nodes)}", np.zeros((), np.float32))
        return self.node("Mul", [low, nothing])

    def weight(self, shape, out_axis):
        pattern = self.pattern
        if pattern.w is None:
            return self.store("w", self.rng.standard_normal(shape).astype(np.float32))
        codes = self.rng.integers(LEAST[pattern.w], MOST[pattern.w] + 1, shape)
        attributes, scales = {}, ()
        if pattern.span == "channel":
            axis = (1 - out_axis) if pattern.wrong_axis else out_axis
            attributes, scales = {"axis": axis}, (shape[axis],)
        elif pattern.span != "tensor":
            axis = out_axis if pattern.wrong_axis else 1 - out_axis
            block = int(pattern.span)
            attributes = {"axis": axis, "block_size": block}
            scales = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
        inputs = [
            self.store("w", codes, TYPES[pattern.w]),
            self.store("w_scale", self.steps(scales)),
        ]
        if "w" in pattern.zeros:
            inputs.append(self.store("w_zero", np.zeros(scales, np.int32), TYPES[pattern.w]))
        return self.node("DequantizeLinear", inputs, attributes, name="w_DQ")

    def steps(self, shape):
        """Scales that are not alike, so that reading them along another axis shows."""
        return np.asarray(self.rng.uniform(0.01, 0.02, shape) if shape else 0.01, np.float32)

    def bias(self, features):
        if self.pattern.bias == "float":
            return self.store("b", self.rng.standard_normal(features).astype(np.float32))
        codes = self.store("b", self.rng.integers(-99, 99, features), TYPES["i32"])
        scales = next((v for v in self.stored if v.name == "w_scale"), None)
        by_output = scales is not None and scales.const_value.shape.numpy() == (features,)
        array = scales.const_value.numpy() if by_output else np.float32(0.01)
        scale = np.float32(0.05 * self.pattern.bias_factor) * array
        inputs = [codes, self.store("b_scale", np.asarray(scale, np.float32))]
        attributes = {"axis": 0} if by_output else {}
        return self.node("DequantizeLinear", inputs, attributes, name="b_DQ")


def build(pattern):
    """The model of a pattern."""
    made = _Builder(pattern)
    is_conv = pattern.kind == "Conv"
    shape = ("n", 8, 6, 6) if is_conv else pattern.shape
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    made.x = x
    features = pattern.width
    value = made.quantized(x, pattern.x) if pattern.x else x
    if pattern.before:
        value = _moved(made, pattern.before, value)
    if is_conv:
        weight = made.weight((features, 8, 3, 3), 0)
    elif pattern.transposed or pattern.turned:
        weight = made.weight((features, 64), 0)
    else:
        weight = made.weight((64, features), 1)
    if pattern.turned:
        weight = made.node("Transpose", [weight], {"perm": [1, 0]}, name="w_turned")
    inputs, attributes = [value, weight], {}
    if pattern.bias and pattern.kind != "MatMul":
        inputs.append(made.bias(features))
    if pattern.kind == "Gemm":
        attributes = {"transB": int(pattern.transposed)}
        attributes |= {"alpha": pattern.alpha, "beta": pattern.beta}
    site = result = made.node(pattern.kind, inputs, attributes, name="site")
    if pattern.bias and pattern.kind == "MatMul":
        result = made.node("Add", [site, made.bias(features)], name="plus")
    outputs = []
    if pattern.is_output:
        outputs.append(result)
    if pattern.twin:
        outputs.append(made.node("MatMul", [made.node("Cos", [x]), weight], name="twin"))
    if pattern.shared:
        outputs.append(made.node("Exp", [weight]))
    if pattern.x_twice:
        outputs.append(made.node("Sin", [value], name="other"))
    if pattern.both:
        outputs.append(made.node("Neg", [result]))
    if pattern.after:
        result = _moved(made, pattern.after, result)
    if pattern.y:
        result = made.quantized(result, pattern.y, 0.1, name="y")
    if pattern.y_twice:
        outputs.append(made.node("Sinh", [result], name="another"))
    y = made.node("Identity" if pattern.y else "Abs", [result], name="end")
    outputs.append(y)
    for output in outputs:
        output.dtype = ir.DataType.FLOAT
    graph = ir.Graph(
        [x],
        outputs,
        nodes=made.nodes,
        initializers=made.stored,
        name="pattern",
        opset_imports={"": pattern.opset},
    )
    return ir.Model(graph, ir_version=13 if pattern.w in ("i2", "u2") else 10)


def _moved(made, op, value):
    if op == "Reshape":
        last = 64 if value.name.startswith("x") else made.pattern.width
        shape = made.store(f"{op}_{len(made.nodes)}_shape", np.asarray([-1, last], np.int64))
        return made.node(op, [value, shape])
    if op == "Turn":
        return made.node("Transpose", [value], {"perm": [1, 0]})
    if op == "Clip":
        low = made.store("low", np.asarray(-12.8, np.float32))
        high = made.store("high", np.asarray(13.0, np.float32))
        return made.node(op, [value, low, high])
    if op == "Clip6":
        low = made.store("low", np.asarray(0.0, np.float32))
        high = made.store("high", np.asarray(6.0, np.float32))
        return made.node("Clip", [value, low, high])
    if op == "Transpose":
        turned = made.node(op, [value], {"perm": [1, 0]})
        return made.node(op, [turned], {"perm": [1, 0]})
    return made.node(op, [value])
