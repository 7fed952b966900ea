"""What the network does between its matrix products: triton on a GPU (`kernels`), PyTorch everywhere else (`plain`).

Both compute the same, with float32 inside; `tests/lumina2/ops/test_ops.py` holds them to autograd's own gradients.

Shape suffixes: S tokens, B samples, D width, H query heads, K key/value heads, E head size, F width of the MLP.
"""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .eager.rotary import rotate


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed: always on Linux with CUDA, on Windows by `pip install triton-windows`."""
    return importlib.util.find_spec("triton") is not None


def is_fused(x: Tensor) -> bool:
    """Whether operations on this tensor are triton's."""
    return x.is_cuda and has_triton()


def _residual_norm_kernel(x: Tensor) -> ModuleType:
    if is_fused(x):
        from .kernels import residual_norm
    else:
        from .eager import residual_norm  # type: ignore[no-redef]
    return residual_norm


def _rotary_kernel(x: Tensor) -> ModuleType:
    if is_fused(x):
        from .kernels import rotary
    else:
        from .eager import rotary  # type: ignore[no-redef]
    return rotary


def _swiglu_kernel(x: Tensor) -> ModuleType:
    if is_fused(x):
        from .kernels import swiglu
    else:
        from .eager import swiglu  # type: ignore[no-redef]
    return swiglu


def residual_norm(
    x_SD: Tensor,
    *,
    sample_index_S: Tensor,
    eps: float,
    branch_SD: Tensor | None = None,
    branch_weight_D: Tensor | None = None,
    gate_BD: Tensor | None = None,
    next_weight_D: Tensor | None = None,
    scale_BD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and prepare the input of the next layer, in one pass over memory.

        x_out = x + tanh(gate) * rms_norm(branch) * branch_weight
        h_out = rms_norm(x_out) * next_weight * (1 + scale)

    Args:
        x_SD: The residual stream.
        sample_index_S: [S] int64, the sample of each token: which row of gate and scale it takes.
        eps: Of both norms.
        branch_SD: Output of attention or MLP, which nothing else may read: on CUDA the backward pass may overwrite it.
            Without one, x_out is x.
        branch_weight_D: Weight of the branch's norm.
        gate_BD: Before tanh; without one, the branch is added whole.
        next_weight_D: Weight of the next layer's norm; without one, h_out is x_out.
        scale_BD: Without one, the normalised stream is not scaled.

    Returns:
        x_out and h_out, [S, D] in x's dtype.
    """
    assert branch_SD is not None or next_weight_D is not None, "nothing to do"
    return _ResidualNorm.apply(x_SD, branch_SD, branch_weight_D, gate_BD, next_weight_D, scale_BD, sample_index_S, eps)


def per_token(x_BD: Tensor, sample_index_S: Tensor) -> Tensor:
    """Give each token the row of its sample: [B, D] -> [S, D], or [1, D] where there is one sample."""
    # index_select: its backward pass is much cheaper than that of x[index] (torch 2.14, CPU).
    return x_BD if len(x_BD) == 1 else x_BD.index_select(0, sample_index_S)


class _ResidualNorm(torch.autograd.Function):
    """Weights, gates and scales get gradients only where something asks for them."""

    @staticmethod
    def forward(
        ctx: Any,
        x_SD: Tensor,
        branch_SD: Tensor | None,
        branch_weight_D: Tensor | None,
        gate_BD: Tensor | None,
        next_weight_D: Tensor | None,
        scale_BD: Tensor | None,
        sample_index_S: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        kernel = _residual_norm_kernel(x_SD)
        x_SD = x_SD.contiguous()
        branch_SD = None if branch_SD is None else branch_SD.contiguous()
        arguments = (branch_SD, branch_weight_D, gate_BD, next_weight_D, scale_BD, sample_index_S)
        x_out, h_out = kernel.forward(x_SD, *arguments, eps)
        x_out = x_SD if x_out is None else x_out
        ctx.save_for_backward(x_out if h_out is not None else None, *arguments)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return x_out, x_out if h_out is None else h_out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_x_out, grad_h_out = (None if g is None else g.contiguous() for g in grads)
        x_out, branch, branch_weight, gate, next_weight, scale, sample_index = ctx.saved_tensors
        if next_weight is None and grad_h_out is not None:  # h_out was x_out
            grad_x_out = grad_h_out if grad_x_out is None else grad_x_out + grad_h_out
            grad_h_out = None
        _, _, needs_branch_weight, needs_gate, needs_next_weight, needs_scale, *_ = ctx.needs_input_grad
        arguments = (branch, branch_weight, gate, next_weight, scale, sample_index, ctx.eps)
        grad_x, grad_branch = _residual_norm_kernel(sample_index).backward(
            grad_x_out, grad_h_out, x_out, *arguments, keeps_branch=needs_branch_weight or needs_gate
        )
        grad_branch_weight = grad_gate = grad_next_weight = grad_scale = None
        if needs_branch_weight or needs_gate:
            grad_branch_weight, grad_gate = _branch_parameter_grads(
                grad_x, branch, branch_weight, gate, sample_index, ctx.eps
            )
        if (needs_next_weight or needs_scale) and grad_h_out is not None:
            grad_next_weight, grad_scale = _norm_parameter_grads(
                grad_h_out, x_out, next_weight, scale, sample_index, ctx.eps
            )
        return grad_x, grad_branch, grad_branch_weight, grad_gate, grad_next_weight, grad_scale, None, None


def _branch_parameter_grads(
    grad_SD: Tensor, branch_SD: Tensor, weight_D: Tensor, gate_BD: Tensor | None, sample_index_S: Tensor, eps: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the branch's norm weight and of the gate; asked for by full training and modulation adapters."""
    normed_SD = F.rms_norm(branch_SD.float(), weight_D.shape, None, eps)
    product_SD = grad_SD.float() * normed_SD
    if gate_BD is None:
        return product_SD.sum(0).to(weight_D.dtype), None
    product_BD = _sum_by_sample(product_SD, sample_index_S, len(gate_BD))
    tanh_BD = gate_BD.float().tanh()
    grad_gate = product_BD * weight_D.float() * (1 - tanh_BD.square())
    return (product_BD * tanh_BD).sum(0).to(weight_D.dtype), grad_gate.to(gate_BD.dtype)


def _norm_parameter_grads(
    grad_SD: Tensor, x_SD: Tensor, weight_D: Tensor, scale_BD: Tensor | None, sample_index_S: Tensor, eps: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the next layer's norm weight and of the scale."""
    product_SD = grad_SD.float() * F.rms_norm(x_SD.float(), weight_D.shape, None, eps)
    if scale_BD is None:
        return product_SD.sum(0).to(weight_D.dtype), None
    product_BD = _sum_by_sample(product_SD, sample_index_S, len(scale_BD))
    grad_weight = (product_BD * (1 + scale_BD.float())).sum(0)
    return grad_weight.to(weight_D.dtype), (product_BD * weight_D.float()).to(scale_BD.dtype)


def _sum_by_sample(x_SD: Tensor, sample_index_S: Tensor, num_samples: int) -> Tensor:
    """[S, D] -> [B, D] float32; a product with a one-hot matrix, because index_add_ on CUDA is not deterministic."""
    if num_samples == 1:
        return x_SD.sum(0, keepdim=True)
    one_hot_BS = (torch.arange(num_samples, device=x_SD.device)[:, None] == sample_index_S).float()
    return one_hot_BS @ x_SD


def normalise_and_rotate(
    qkv_SX: Tensor,
    query_weight_E: Tensor,
    key_weight_E: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_kv_heads: int,
    eps: float,
    is_padding_S: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the fused product, normalise the heads of queries and keys, and rotate adjacent pairs by position.

    Args:
        qkv_SX: [S, (H + 2 K) E], queries, keys and values side by side.
        query_weight_E: Weight of the queries' norm.
        key_weight_E: Weight of the keys' norm.
        cos: [S, 1, E / 2] float32.
        sin: [S, 1, E / 2] float32.
        num_kv_heads: K.
        eps: Of both norms.
        is_padding_S: [S] bool; if given, queries and keys get PADDING_FEATURES more, see `attention.py`.

    Returns:
        Queries [S, H, E], keys [S, K, E] and values [S, K, E], dtype of the input.
    """
    return _NormaliseAndRotate.apply(qkv_SX, query_weight_E, key_weight_E, cos, sin, is_padding_S, num_kv_heads, eps)


class _NormaliseAndRotate(torch.autograd.Function):
    """Values are a view of the product, and all gradients land in one tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_SX: Tensor,
        query_weight_E: Tensor,
        key_weight_E: Tensor,
        cos: Tensor,
        sin: Tensor,
        is_padding_S: Tensor | None,
        num_kv_heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv_SX = qkv_SX.contiguous()
        ctx.save_for_backward(qkv_SX, query_weight_E, key_weight_E, cos, sin)
        ctx.eps = eps
        query, key = _rotary_kernel(qkv_SX).forward(
            qkv_SX, query_weight_E, key_weight_E, cos, sin, is_padding_S, num_kv_heads, eps
        )
        value = qkv_SX.unflatten(-1, (-1, len(query_weight_E)))[:, -num_kv_heads:]
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_query, grad_key, grad_value = grads
        qkv, query_weight, key_weight, cos, sin = ctx.saved_tensors
        grad_qkv = _rotary_kernel(qkv).backward(
            grad_query, grad_key, grad_value, qkv, query_weight, key_weight, cos, sin, ctx.eps
        )
        grad_query_weight = grad_key_weight = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            num_kv_heads = grad_key.shape[1]
            heads = qkv.unflatten(-1, (-1, len(query_weight)))
            query, key = heads[:, : -2 * num_kv_heads], heads[:, -2 * num_kv_heads : -num_kv_heads]
            grad_query_weight = _head_weight_grad(grad_query, query, query_weight, cos, sin, ctx.eps)
            grad_key_weight = _head_weight_grad(grad_key, key, key_weight, cos, sin, ctx.eps)
        return grad_qkv, grad_query_weight, grad_key_weight, None, None, None, None, None


def _head_weight_grad(grad: Tensor, x: Tensor, weight_E: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Gradient of a head norm's weight; asked for by full training."""
    grad = grad[..., : len(weight_E)]  # without features that mark padding
    normed = F.rms_norm(x.float(), weight_E.shape, None, eps)
    return (rotate(grad, torch.complex(cos, -sin)) * normed).sum((0, 1)).to(weight_E.dtype)


def swiglu(gate_SF: Tensor, up_SF: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate_SF: [S, F]. On CUDA the backward pass overwrites both inputs, so nothing else may read them then.
        up_SF: [S, F].
    """
    return _SwiGLU.apply(gate_SF, up_SF)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_SF: Tensor, up_SF: Tensor) -> Tensor:
        gate_SF, up_SF = gate_SF.contiguous(), up_SF.contiguous()
        ctx.save_for_backward(gate_SF, up_SF)
        return _swiglu_kernel(gate_SF).forward(gate_SF, up_SF)

    @staticmethod
    def backward(ctx: Any, grad_SF: Tensor) -> tuple[Tensor, Tensor]:
        gate_SF, up_SF = ctx.saved_tensors
        return _swiglu_kernel(gate_SF).backward(grad_SF.contiguous(), gate_SF, up_SF)
