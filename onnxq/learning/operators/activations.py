"""Activation functions and softmax."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


@operator("Relu")
def _relu(call: Call, x: Tensor) -> Result:
    return torch.relu(x)


@operator("Sigmoid")
def _sigmoid(call: Call, x: Tensor) -> Result:
    return torch.sigmoid(x)


@operator("Tanh")
def _tanh(call: Call, x: Tensor) -> Result:
    return torch.tanh(x)


@operator("LeakyRelu")
def _leaky_relu(call: Call, x: Tensor) -> Result:
    return F.leaky_relu(x, call.attribute("alpha", 0.01))


@operator("PRelu")
def _prelu(call: Call, x: Tensor, slope: Tensor) -> Result:
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def _thresholded_relu(call: Call, x: Tensor) -> Result:
    return torch.where(x > call.attribute("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def _elu(call: Call, x: Tensor) -> Result:
    return F.elu(x, call.attribute("alpha", 1.0))


@operator("Celu")
def _celu(call: Call, x: Tensor) -> Result:
    return F.celu(x, call.attribute("alpha", 1.0))


@operator("Selu")
def _selu(call: Call, x: Tensor) -> Result:
    alpha = call.attribute("alpha", 1.67326319217681884765625)
    return call.attribute("gamma", 1.05070102214813232421875) * F.elu(x, alpha)


@operator("HardSigmoid")
def _hard_sigmoid(call: Call, x: Tensor) -> Result:
    return torch.clamp(call.attribute("alpha", 0.2) * x + call.attribute("beta", 0.5), 0.0, 1.0)


@operator("HardSwish")
def _hard_swish(call: Call, x: Tensor) -> Result:
    return x * torch.clamp(x / 6 + 0.5, 0.0, 1.0)


@operator("Softplus")
def _softplus(call: Call, x: Tensor) -> Result:
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softsign")
def _softsign(call: Call, x: Tensor) -> Result:
    return x / (1 + x.abs())


@operator("Mish")
def _mish(call: Call, x: Tensor) -> Result:
    return F.mish(x)


@operator("Shrink")
def _shrink(call: Call, x: Tensor) -> Result:
    bias, edge = call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    inner = torch.where(x > edge, x - bias, torch.zeros_like(x))
    return torch.where(x < -edge, x + bias, inner)


@operator("Swish")
@operator("QuickGelu", domain="com.microsoft")
def _swish(call: Call, x: Tensor) -> Result:
    default = 1.702 if call.node.op_type == "QuickGelu" else 1.0
    return x * torch.sigmoid(call.attribute("alpha", default) * x)


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def _gelu(call: Call, x: Tensor) -> Result:
    return F.gelu(x, approximate=call.attribute("approximate", "none"))


@operator("FastGelu", domain="com.microsoft")
def _fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Result:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("BiasGelu", domain="com.microsoft")
def _bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Result:
    return F.gelu(x + bias)


@operator("Softmax", "LogSoftmax", "Hardmax")
def _softmax(call: Call, x: Tensor) -> Result:
    axis = call.attribute("axis", -1 if call.opset >= 13 else 1)
    function = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax, "Hardmax": _hardmax}[
        call.node.op_type
    ]
    if call.opset >= 13:
        return function(x, axis)
    # Until opset 12 everything from the axis on was one dimension.
    axis += x.ndim if axis < 0 else 0
    flat = x.reshape(math.prod(x.shape[:axis]), -1)
    return function(flat, 1).reshape(x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    # Of equal elements the first is taken, which torch.argmax does not promise.
    first = torch.cummax((x == x.amax(axis, keepdim=True)).to(torch.int8), axis).values
    return (torch.cumsum(first, axis) == 1).to(x.dtype)
