"""The kernels in Triton's language, which needs Triton to be imported. Type checkers do not know it."""
