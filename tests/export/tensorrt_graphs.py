"""Small graphs for TensorRT's rules: one that keeps and one that breaks each of them."""

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir

RNG = np.random.default_rng(7)
F8, F4, I4 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.int4
ZERO = np.zeros((), np.int8)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def codes(*shape, dtype=np.int8, most=7):
    return RNG.integers(-most, most + 1, shape).astype(np.int8).astype(dtype)


def steps(*shape):
    return np.full(shape, 0.02, np.float32)


def graph(text, opset=21, functions="", domains="", **weights):
    """A text graph; initializers are declared here from arrays, so the text names them only."""
    head, body = text.split("{", 1)
    weights = {name: array for name, array in weights.items() if array is not None}
    declared = ", ".join(f"float[1] {name} = {{0}}" for name in weights)
    declared = f" <{declared}>" if declared else ""
    built = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}{domains}]>\nmain {head}'
        f"{declared} {{{body}\n{functions}"
    )
    for name, array in weights.items():
        value = built.graph.initializers[name]
        tensor = ir.tensor(np.asarray(array), name=name)
        value.const_value, value.dtype = tensor, tensor.dtype
        value.shape = ir.Shape(np.asarray(array).shape)
    for index, node in enumerate(built.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    built.ir_version = 11 if opset >= 23 else 10
    return built


MATMUL = "(float[8, 128] x) => (float[8, 64] y)"
IMAGE = "(float[1, 16, 9, 9] x) => (float[n, c, h, k] y)"
PAIR = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
X = {"s": steps(), "z": ZERO}


def dense(
    pair=PAIR, weight="w = DequantizeLinear<axis = 1>(c, t, v)", product="MatMul(xd, w)", **k
):
    given = dict(**X, c=codes(128, 64), t=steps(64), v=np.zeros(64, np.int8)) | k
    opset, domains = given.pop("opset", 21), given.pop("domains", "")
    used = f"{pair} {weight} y = {product}"
    given = {
        name: a
        for name, a in given.items()
        if name in used.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    return graph(f"{MATMUL} {{ {used} }}", opset, domains=domains, **given)


def blocked(dtype=I4, size=64, axis=0, scales=None, opset=21, **k):
    """x · W with weights only, in blocks."""
    count = (128 // size, 64) if axis == 0 else (128, 64 // size)
    weight = f"w = DequantizeLinear<axis = {axis}, block_size = {size}>(c, t)"
    return dense(
        "",
        weight,
        "MatMul(x, w)",
        c=codes(128, 64, dtype=dtype),
        opset=opset,
        **{"t": steps(*count) if scales is None else scales} | k,
    )


FP4_PAIR = (
    "xq, xs = trt.TRT_FP4DynamicQuantize<axis = -1, block_size = 16, scale_type = 17>(x, g) "
    "xt = DequantizeLinear(xs, g) xd = DequantizeLinear<axis = -1, block_size = 16>(xq, xt)"
)
TRT = ', "trt" : 1'


def nvfp4(size=16, inner=None, pair=FP4_PAIR):
    """x · W in FP4: activations rounded as the model runs, weights with two levels of scales."""
    inner = np.ones((128 // size, 64), F8) if inner is None else inner
    return dense(
        pair,
        f"t = DequantizeLinear(i, o) w = DequantizeLinear<axis = 0, block_size = {size}>(c, t)",
        "MatMul(xd, w)" if pair else "MatMul(x, w)",
        c=codes(128, 64, dtype=F4, most=6),
        t=None,
        i=inner,
        o=np.float32(0.01),
        g=np.float32(0.01),
        opset=23,
        domains=TRT,
    )


def conv(after="y = Relu(a)", before=PAIR, kind="Conv", channels=16, axis=0, bias="b", **k):
    given = (
        dict(
            **X,
            c=codes(channels, 16, 3, 3),
            t=steps(channels),
            v=np.zeros(channels, np.int8),
            b=normal(channels),
        )
        | k
    )
    text = (
        f"{before} w = DequantizeLinear<axis = {axis}>(c, t, v) "
        f"a = {kind}<pads = [1, 1, 1, 1]>(xd, w, {bias}) {after}"
    )
    return graph(f"{IMAGE} {{ {text} }}", 21, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A graph that keeps a rule, one that breaks it, and what the finding says."""

    keeps: object
    breaks: object
    says: str
    capabilities: tuple = (120,)


INT32_BIAS = {"bias": "bd", "b": np.zeros(16, np.int32), "u": steps(16)}
SKIP = "r = QuantizeLinear(x, s, z) d = DequantizeLinear(r, s, z)"
TAIL = "q = QuantizeLinear(m, s, z) y = DequantizeLinear(q, s, z)"
SECOND = "e = DequantizeLinear<axis = 0>(c2, t2) y = Conv<pads = [1, 1, 1, 1]>({}, e)"
MORE = {"c2": codes(16, 16, 3, 3), "t2": steps(16)}


def then(text, value="nd", **k):
    """A convolution, more, and a second convolution that reads ``value``."""
    return conv(f"{text} {SECOND.format(value)}", **MORE, **k)


ROUND = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z)"


def rounded(name):
    return ROUND.format(name)


CASES = {
    "code-type": lambda: Case(
        keeps=dense(),
        breaks=dense(c=codes(128, 64).view(np.uint8), v=np.zeros(64, np.uint8)),
        says="its codes are UINT8; quantize for target tensorrt",
    ),
    "symmetric": lambda: Case(
        keeps=dense(), breaks=dense(z=np.int8(3)), says="its zero point is 3, not 0"
    ),
    "scale-constant": lambda: Case(
        keeps=dense(),
        breaks=dense("s = ReduceMax<keepdims = 0>(x) " + PAIR, s=None),
        says="its scale is computed",
    ),
    "scale-type": lambda: Case(
        keeps=blocked(),
        breaks=blocked(F4, 16, scales=np.ones((8, 64), F8), opset=23),
        says="its scale is FLOAT8E4M3FN",
    ),
    "scale-positive": lambda: Case(
        keeps=dense(), breaks=dense(s=np.float32(-0.02)), says="its scale at [] is -0.02"
    ),
    "scale-shape": lambda: Case(
        keeps=blocked(),
        breaks=blocked(scales=steps(2, 32)),
        says="are not those of blocks of [128, 64] along one axis",
    ),
    "whole-blocks": lambda: Case(
        keeps=blocked(),
        breaks=graph(
            "(float[8, 120] x) => (float[8, 64] y) {"
            " w = DequantizeLinear<axis = 0, block_size = 64>(c, t) y = MatMul(x, w) }",
            c=codes(120, 64, dtype=I4),
            t=steps(2, 64),
        ),
        says="axis 0 has 120, and TensorRT would read 2 blocks of 60",
    ),
    "opset": lambda: Case(
        keeps=dense(opset=13),
        breaks=dense(opset=12),
        says="needs opset 13, the model has 12",
    ),
    "weights-only": lambda: Case(
        keeps=blocked(),
        breaks=dense(z=np.zeros((), I4)),
        says="it rounds an activation to INT4",
    ),
    "int4-blocks": lambda: Case(
        keeps=blocked(), breaks=blocked(size=32), says="it has blocks [32, 1], not of 64"
    ),
    "fp4-scales": lambda: Case(
        keeps=nvfp4(), breaks=nvfp4(size=32), says="it has blocks [32, 1], not of 16"
    ),
    "gpu-generation": lambda: Case(
        keeps=blocked(),
        breaks=nvfp4(),
        says="FLOAT4E2M1 runs from compute capability",
        capabilities=(89,),
    ),
    "weight-axis": lambda: Case(
        keeps=dense(),
        breaks=dense(
            weight="w = DequantizeLinear<axis = 0>(c, t, v)", t=steps(128), v=np.zeros(128, np.int8)
        ),
        says="its scales are along axis 0, and the output features of MatMul",
    ),
    "activation-per-tensor": lambda: Case(
        keeps=dense(),
        breaks=dense(
            "xq = QuantizeLinear<axis = 1>(x, s, z) xd = DequantizeLinear<axis = 1>(xq, s, z)",
            s=steps(128),
            z=np.zeros(128, np.int8),
        ),
        says="it rounds an activation with scales [128]",
    ),
    "both-inputs": lambda: Case(
        keeps=conv(),
        breaks=conv(before="xd = Identity(x)", s=None, z=None),
        says="its weight is INT8, and input 0 is float",
    ),
    "float-bias": lambda: Case(
        keeps=conv(),
        breaks=conv(before=PAIR + " bd = DequantizeLinear<axis = 0>(b, u)", **INT32_BIAS),
        says="it dequantizes int32",
    ),
    "output-in-float": lambda: Case(
        keeps=then(f"n = Relu(a) {rounded('n')}"),
        breaks=then(f"{rounded('a')} n = Relu(ad)", "n"),
        says="it stands between Conv and Relu",
    ),
    "residual": lambda: Case(
        keeps=then(f"m = Add(a, xd) n = Relu(m) {rounded('n')}"),
        breaks=then(f"m = Add(a, x) n = Relu(m) {rounded('n')}"),
        says="its input 1 is float, so that the convolution writes float",
    ),
    "concat": lambda: Case(
        keeps=then(f"h = Relu(a) n = Concat<axis = 2>(h, h) {rounded('n')}"),
        breaks=then(f"h = Relu(a) {rounded('h')} n = Concat<axis = 2>(hd, h) {rounded('n')}"),
        says="1 of its 2 inputs are float",
    ),
    "int8-in-and-out": lambda: Case(
        keeps=then(
            f"h = Relu(a) {rounded('h')} n = AveragePool<kernel_shape = [1, 1]>(hd) {rounded('n')}"
        ),
        breaks=conv(f"h = Relu(a) {rounded('h')} y = AveragePool<kernel_shape = [1, 1]>(hd)"),
        says="it reads int8 and gives float",
    ),
    "no-kernel": lambda: Case(
        keeps=then(f"n = Softmax(a) {rounded('n')}"),
        breaks=conv(f"h = Relu(a) {rounded('h')} y = Softmax(hd)"),
        says="its value is read by Softmax",
    ),
    "weight-kernel": lambda: Case(
        keeps=dense(),
        breaks=dense(
            "",
            product="Add(p, w)",
            weight="p = MatMul(x, e) w = DequantizeLinear<axis = 1>(c, t, v)",
            c=codes(8, 64),
            e=normal(128, 64),
        ),
        says="its weight is read by Add, in float",
    ),
    "bare-codes": lambda: Case(
        keeps=dense(),
        breaks=graph(
            "(int64[8] i) => (float[8, 64] y) { g = Gather(c, i) y = Cast<to = 1>(g) }",
            c=codes(128, 64),
        ),
        says="it reads the INT8 constant 'c' itself",
    ),
    "q-readers": lambda: Case(
        keeps=dense(),
        breaks=dense("xq = QuantizeLinear(x, s, z) xd = Cast<to = 1>(xq)"),
        says="its codes are read by Cast",
    ),
    "integer-operators": lambda: Case(
        keeps=dense(),
        breaks=graph(
            "(int8[8, 128] x) => (int32[8, 64] y) { y = MatMulInteger(x, c) }", c=codes(128, 64)
        ),
        says="MatMulInteger computes with codes",
    ),
    "parser": lambda: Case(
        keeps=graph("(float[8, 64] x) => (float[8, 64] y) { y = Gelu(x) }"),
        breaks=graph(
            "(float[8, 64] x) => (float[8, 64] y) { y = com.microsoft.BiasGelu(x, b) }",
            domains=', "com.microsoft" : 1',
            b=normal(64),
        ),
        says="TensorRT's parser has no com.microsoft.BiasGelu",
    ),
}
