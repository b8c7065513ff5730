"""Products of matrices."""

from __future__ import annotations

import torch

from onnxq.learning.operators.table import Call, Result, Tensor, operator

__all__: list[str] = []


@operator("MatMul")
def _matmul(call: Call, a: Tensor, b: Tensor) -> Result:
    return torch.matmul(a, b)


@operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Result:
    a = a.t() if call.attribute("transA", 0) else a
    b = b.t() if call.attribute("transB", 0) else b
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    product = torch.matmul(a, b)
    product = product if alpha == 1 else product * alpha
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else c * beta)


@operator("FusedMatMul", domain="com.microsoft")
def _fused_matmul(call: Call, a: Tensor, b: Tensor) -> Result:
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise call.refusal("transBatchA and transBatchB are not computed")
    a = a.transpose(-1, -2) if call.attribute("transA", 0) and a.ndim > 1 else a
    b = b.transpose(-1, -2) if call.attribute("transB", 0) and b.ndim > 1 else b
    return torch.matmul(a, b) * call.attribute("alpha", 1.0)


@operator("Einsum")
def _einsum(call: Call, *terms: Tensor) -> Result:
    return torch.einsum(call.attribute("equation").replace(" ", ""), *terms)
