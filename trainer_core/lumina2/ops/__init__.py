"""Attention and what lies between the matrix products: the kernels and their eager twins."""
