"""Triton kernels for what lies between the matrix products; imported only where there is a GPU and triton."""
