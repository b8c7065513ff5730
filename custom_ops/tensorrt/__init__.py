"""The operators as plugins of TensorRT: in C++ (this folder), and in Python with kernels of PTX.

`nodes` says what a node of an operator gives its kernel, `ptx` finds the kernel, and `python`
registers both with ``tensorrt.plugin``. None of them imports TensorRT.
"""
