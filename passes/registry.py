"""The list of all passes: what a recipe may name and what ``onnxq passes`` prints.

The list is explicit, so that it is read in the order in which a recipe would run them, and a
module that is only imported by a pass is never taken for one.
"""

from __future__ import annotations

import functools
import importlib

from onnxq.passes.base import Pass

__all__ = ["all_passes"]

_MODULES = (
    "constants_to_initializers",
    "fold_constants",
    "convert_opset",
    "inline_functions",
    "fold_batch_norm",
    "fuse_layer_norm",
    "fuse_rms_norm",
    "fuse_gelu",
    "fuse_silu",
    "fuse_rope",
    "fuse_attention",
    "untie_weights",
    "split_projections",
    "clean",
    "permute_channels",
    "smooth_activations",
    "split_layer",
    "flatten_channels",
    "equalize_layers",
    "absorb_bias",
    "reparameterize_norm",
    "fold_norm_scales",
    "center_residual",
    "rotate_residual",
    "rotate_heads",
    "rotate_weights",
    "learn_rotation",
    "migrate_affine",
    "flatten_affine",
    "split_low_rank",
    "insert_online_hadamard",
    "calibrate",
    "insert_qdq",
    "quantize_activations",
    "dynamic_int8",
    "split_outputs",
    "quantize_weights",
)


@functools.cache
def all_passes() -> dict[str, type[Pass]]:
    """Every pass by its recipe key, in the order a recipe would usually run them.

    The modules are imported at the first call. The mapping is shared: do not change it.
    """
    return {key: _pass_in(f"onnxq.passes.{key}", key) for key in _MODULES}


def _pass_in(module: str, key: str) -> type[Pass]:
    """The one pass whose key is the name of its module."""
    for item in vars(importlib.import_module(module)).values():
        if isinstance(item, type) and issubclass(item, Pass) and item.key() == key:
            return item
    raise ImportError(f"module {module} defines no pass with the key {key!r}")
