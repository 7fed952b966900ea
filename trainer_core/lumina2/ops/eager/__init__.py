"""The operations between the matrix products in plain PyTorch, with backward passes written out.

They have the signatures of those in `kernels`. Autograd's own record of the same formulas takes three times as long on
a CPU (norms and rotation of the demo's network, one core: 5.4 ms against 1.6), where they are a third of a step.
"""
