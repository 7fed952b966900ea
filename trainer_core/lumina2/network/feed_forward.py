"""The MLP of a block: one operation where its matrices are frozen, with or without low-rank updates.

Left to autograd, the hidden values would be kept for the update of w2 (here they are computed again), the two gradients
of the input would be added in a pass of their own, and the input of w1 and w3 would be quantised twice.

Shape suffixes: S tokens, D width, F width of the MLP, R rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..ops.ops import is_fused, swiglu
from ..ops.quantized_rows import QuantizedRows
from ..quant.eight_bit import QuantizedLinear, multiply
from ..quant.frozen_linear import (
    FrozenLayer,
    add_frozen_input_gradient,
    apply_linear,
    find_frozen_layer,
    frozen_input_gradient,
)

Layers = tuple[FrozenLayer, FrozenLayer, FrozenLayer]
"""w1, w2 and w3."""


def feed_forward(x_SD: Tensor, w1: nn.Module, w2: nn.Module, w3: nn.Module, known_SD: Tensor | None = None) -> Tensor:
    """w2(silu(w1 x) * w3 x), [S, D]; the three map D -> F, F -> D and D -> F.

    Args:
        x_SD: [S, D].
        w1: Linear, or what took its place; so are the others.
        w2: See above.
        w3: See above.
        known_SD: The result, if it has been computed before and only what the backward pass needs is missing. For
            layers that `uses_known_result`.
    """
    layers = find_frozen_layer(w1), find_frozen_layer(w2), find_frozen_layer(w3)
    if not is_fused(x_SD) or None in layers:
        assert known_SD is None, "these layers are computed one by one"
        return apply_linear(w2, swiglu(apply_linear(w1, x_SD), apply_linear(w3, x_SD)))
    device = x_SD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_SD.dtype
    factors = [factor for layer in layers if layer for factor in (layer.lora_A_RI, layer.lora_B_OR)]
    return _FrozenFeedForward.apply(x_SD.to(dtype), known_SD, layers, *factors)


def uses_known_result(x_SD: Tensor, w1: nn.Module, w2: nn.Module, w3: nn.Module) -> bool:
    """Whether `feed_forward` computes less where its result is known."""
    return is_fused(x_SD) and all(find_frozen_layer(layer) is not None for layer in (w1, w2, w3))


class _FrozenFeedForward(torch.autograd.Function):
    """`feed_forward` by triton and the products of `FrozenLayer`."""

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, known_SD: Tensor | None, layers: Layers, *factors: Tensor | None) -> Tensor:
        gate_layer, down_layer, up_layer = layers
        dtype = _eight_bit_dtype(x_SD, layers)
        with torch.autocast(x_SD.device.type, enabled=False):
            rows = None if dtype is None else _quantize(x_SD, dtype)
            gate_SF, gate_inner_SR = gate_layer.product(x_SD, rows)
            up_SF, up_inner_SR = up_layer.product(x_SD, rows)
            if known_SD is not None and not _has_update(down_layer):
                out_SD, down_inner_SR = known_SD, None
            else:
                hidden_SF, hidden_rows = _activate(gate_SF, up_SF, dtype, keeps_hidden=_has_update(down_layer))
                out_SD, down_inner_SR = down_layer.product(hidden_SF, hidden_rows, known_SD)
        is_input_read = _has_update(gate_layer) or _has_update(up_layer)
        inner = (gate_inner_SR, up_inner_SR, down_inner_SR)
        ctx.save_for_backward(x_SD if is_input_read else None, gate_SF, up_SF, *inner, *factors)
        ctx.linears = [(layer.linear, layer.scaling) for layer in layers]
        ctx.dtype = dtype
        return out_SD

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor | None, ...]:
        x_SD, gate_SF, up_SF, gate_inner_SR, up_inner_SR, down_inner_SR, *factors = ctx.saved_tensors
        pairs = zip(ctx.linears, factors[::2], factors[1::2], strict=True)
        gate_layer, down_layer, up_layer = (FrozenLayer(linear, a, b, scale) for (linear, scale), a, b in pairs)

        grad_down_inner_SR = down_layer.inner_gradient(grad_SD)
        grad_hidden_SF = frozen_input_gradient(down_layer.linear, grad_SD)
        grad_hidden_SF = down_layer.add_input_gradient(grad_hidden_SF, grad_down_inner_SR)
        # From here on the memory of gate, up and grad_hidden holds grad_gate, grad_up and hidden.
        rows = _activation_gradients(grad_hidden_SF, gate_SF, up_SF, (gate_layer, down_layer, up_layer), ctx.dtype)
        grad_gate_SF, grad_up_SF, hidden_SF = gate_SF, up_SF, grad_hidden_SF

        down_grads = down_layer.factor_gradients(hidden_SF, down_inner_SR, grad_SD, grad_down_inner_SR)
        grad_gate_inner_SR = gate_layer.inner_gradient(grad_gate_SF)
        grad_up_inner_SR = up_layer.inner_gradient(grad_up_SF)
        gate_grads = gate_layer.factor_gradients(x_SD, gate_inner_SR, grad_gate_SF, grad_gate_inner_SR)
        up_grads = up_layer.factor_gradients(x_SD, up_inner_SR, grad_up_SF, grad_up_inner_SR)
        grad_x_SD = None
        if ctx.needs_input_grad[0]:
            grad_x_SD = _input_gradient(gate_layer, up_layer, grad_gate_SF, grad_up_SF, rows)
            grad_x_SD = gate_layer.add_input_gradient(grad_x_SD, grad_gate_inner_SR)
            grad_x_SD = up_layer.add_input_gradient(grad_x_SD, grad_up_inner_SR)
        return grad_x_SD, None, None, *gate_grads, *down_grads, *up_grads


def _has_update(layer: FrozenLayer) -> bool:
    return layer.lora_A_RI is not None


def _eight_bit_dtype(x_SD: Tensor, layers: Layers) -> torch.dtype | None:
    """The one that all three products run in, if they do."""
    linears = [layer.linear for layer in layers]
    dtypes = {linear.weight_8.dtype for linear in linears if isinstance(linear, QuantizedLinear)}
    is_8_bit = all(isinstance(linear, QuantizedLinear) and linear.is_8_bit(x_SD) for linear in linears)
    return dtypes.pop() if is_8_bit and len(dtypes) == 1 else None


def _quantize(x_SD: Tensor, dtype: torch.dtype) -> QuantizedRows:
    from ..ops.kernels.quantize import quantize_rows

    return quantize_rows(x_SD, dtype)


def _activate(
    gate_SF: Tensor, up_SF: Tensor, dtype: torch.dtype | None, *, keeps_hidden: bool
) -> tuple[Tensor | None, QuantizedRows | None]:
    """Hidden values, as they are and quantised; either may be missing where it is not needed."""
    if dtype is None:
        from ..ops.kernels import swiglu

        return swiglu.forward(gate_SF, up_SF), None
    from ..ops.kernels import quantized_swiglu

    rows, hidden_SF = quantized_swiglu.forward(gate_SF, up_SF, dtype, keeps_hidden=keeps_hidden)
    return hidden_SF, rows


def _activation_gradients(
    grad_SF: Tensor, gate_SF: Tensor, up_SF: Tensor, layers: Layers, dtype: torch.dtype | None
) -> QuantizedRows | None:
    """Overwrite gate and up with their gradients and grad with the hidden values, as far as somebody reads them.

    Returns:
        In 8 bits, the gradients side by side, in units of the rows' scales of w1 and w3.
    """
    gate_layer, down_layer, up_layer = layers
    if dtype is None:
        from ..ops.kernels import swiglu

        swiglu.backward(grad_SF, gate_SF, up_SF, keeps_hidden=_has_update(down_layer))
        return None
    from ..ops.kernels import quantized_swiglu

    return quantized_swiglu.backward(
        grad_SF,
        gate_SF,
        up_SF,
        cast(QuantizedLinear, gate_layer.linear).weight_scale,
        cast(QuantizedLinear, up_layer.linear).weight_scale,
        dtype,
        keeps_gate=_has_update(gate_layer),
        keeps_up=_has_update(up_layer),
        keeps_hidden=_has_update(down_layer),
    )


def _input_gradient(
    gate_layer: FrozenLayer, up_layer: FrozenLayer, grad_gate_SF: Tensor, grad_up_SF: Tensor, rows: QuantizedRows | None
) -> Tensor:
    """grad_gate W1 + grad_up W3, [S, D]; in 8 bits as one product with twice the depth."""
    gate, up = gate_layer.linear, up_layer.linear
    if rows is not None and isinstance(gate, QuantizedLinear) and isinstance(up, QuantizedLinear):
        from ..ops.kernels.quantize import transpose

        return multiply(rows, transpose(gate.weight_8, up.weight_8).t(), None)
    return add_frozen_input_gradient(up, grad_up_SF, frozen_input_gradient(gate, grad_gate_SF))
