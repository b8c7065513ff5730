"""Operators that no runtime ships: meaning, reference, kernels; one folder each.

`onnxq.ops_library` is the path of the library with their kernels, for a session that onnxq does
not open::

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(onnxq.ops_library())
"""
