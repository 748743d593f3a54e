"""Fused kernels in Triton for what eager torch does in many passes over the same data.

Every kernel is a `torch.library` operation, so that compiled blocks and CUDA graphs take it as one launch. What it
computes is defined by the plain code at the place that calls it, which runs wherever the kernel does not (`choice.py`).
"""
