"""A training step of the real model as a GPU with triton would make it, on tensors without content: only its memory.

Kernels and attention are replaced by functions that make what the real ones make; everything else is the project's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.lumina2.memory import kept_results
from lumina2_trainer.trainer_core.lumina2.network import feed_forward, transformer
from lumina2_trainer.trainer_core.lumina2.network.layout import TokenLayout
from lumina2_trainer.trainer_core.lumina2.network.transformer import (
    BlockRunner,
    Lumina2Config,
    Lumina2Transformer,
    keep_activations,
)
from lumina2_trainer.trainer_core.lumina2.objective import NoisyBatch, flow_matching_loss
from lumina2_trainer.trainer_core.lumina2.ops import ops
from lumina2_trainer.trainer_core.lumina2.ops.attention import Segments
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ...live_bytes import LiveBytes
from ..tiny_models import CPU

KERNELS = "lumina2_trainer.trainer_core.lumina2.ops.kernels"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes of one step."""

    weights: int
    """Of the model and its adapter."""
    kept: int
    """From the forward to the backward pass."""
    forward: int
    """Most in the forward pass, beside the weights."""
    total: int
    """Most in both passes, beside the weights."""


@contextmanager
def simulated_kernels() -> Iterator[None]:
    """The fused path on every device, with kernels that compute nothing."""
    fakes = {
        "residual_norm": {"forward": _norm_forward, "backward": _norm_backward},
        "rotary": {"forward": _rotary_forward, "backward": lambda *args: torch.empty_like(args[3])},
        "swiglu": {"forward": lambda gate, up: torch.empty_like(gate), "backward": lambda *args, **options: args[1:3]},
    }
    modules = {}
    for name, functions in fakes.items():
        module = ModuleType(f"{KERNELS}.{name}")
        vars(module).update(functions)
        modules[module.__name__] = module
    package = ModuleType(KERNELS)
    vars(package).update({name: modules[f"{KERNELS}.{name}"] for name in fakes}, __path__=[])
    with (
        mock.patch.dict(sys.modules, {KERNELS: package, **modules}),
        mock.patch.object(ops, "is_fused", _is_fused),
        mock.patch.object(feed_forward, "is_fused", _is_fused),
        mock.patch.object(transformer, "attend", _attend),
        mock.patch.object(kept_results, "attend", _attend),
        mock.patch.object(kept_results, "attention_kernels", return_value=[_attention._opoverload]),
    ):
        yield


def _is_fused(x: Tensor) -> bool:
    return True  # not a Mock, which would keep every x it was called with


def _norm_forward(x: Tensor, branch: Tensor | None, *args: Any) -> tuple[Tensor | None, Tensor | None]:
    next_weight = args[2]
    return (
        None if branch is None else torch.empty_like(x),
        None if next_weight is None else torch.empty_like(x),
    )


def _norm_backward(
    grad_x: Tensor | None,
    grad_h: Tensor | None,
    x_out: Tensor,
    branch: Tensor | None,
    *args: Any,
    keeps_branch: bool,
) -> tuple[Tensor, Tensor | None]:
    grad = grad_x if grad_x is not None else grad_h
    assert grad is not None
    grad_branch = None if branch is None else torch.empty_like(branch) if keeps_branch else branch.detach()
    return grad if grad_h is None else torch.empty_like(grad), grad_branch


def _rotary_forward(qkv: Tensor, query_weight: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    head, num_kv_heads = len(query_weight), args[-2]
    num_heads = qkv.shape[1] // head - 2 * num_kv_heads
    out = qkv.new_empty(len(qkv), num_heads + num_kv_heads, head)
    return out[:, :num_heads], out[:, num_heads:]


def _attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    return _Attention.apply(query, key, value)


class _Attention(torch.autograd.Function):
    """Keeps and makes what cuDNN's attention does: its sums are float32, a query gradient among them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, sums = torch.ops.lumina2_trainer_tests.attention(query)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        sums = torch.empty(query.shape, dtype=torch.float32)
        grads = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        del sums
        return tuple(grads)


@torch.library.custom_op("lumina2_trainer_tests::attention", mutates_args=())
def _attention(query: Tensor) -> tuple[Tensor, Tensor]:
    """The results of attention and the sums of its softmax, as an operator whose results can be kept."""
    raise AssertionError("simulated only")


@_attention.register_fake
def _attention_fake(query: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(query.shape, dtype=query.dtype), torch.empty(query.shape[:2], dtype=torch.float32)


def simulate_step(
    config: Lumina2Config,
    *,
    run_block: BlockRunner = keep_activations,
    targets: str = "attention",
    resolution: int = 1024,
    caption_lengths: tuple[int, ...] = (120,),
) -> Peak:
    """Forward and backward pass of a rank-16 LoRA on a bf16 model.

    Args:
        config: Sizes of the network.
        run_block: How blocks are run.
        targets: Key of LORA_TARGETS.
        resolution: Side of the square pictures in pixels.
        caption_lengths: Tokens of each sample.
    """
    side = resolution // 16
    layout = TokenLayout.build(caption_lengths, ((side, side),) * len(caption_lengths), config.axes_dims, CPU)
    with torch.device("meta"):
        network = Lumina2Transformer(config)
        attach_lora(network, LoRASettings(targets=targets), rank=16, alpha=16.0, seed=0)
    is_trained = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    with FakeTensorMode(allow_non_fake_inputs=True):
        dtypes = {name: torch.float32 if is_trained[name] else torch.bfloat16 for name in is_trained}
        content = {name: torch.empty(p.shape, dtype=dtypes[name]) for name, p in network.named_parameters()}
        network.load_state_dict(content, assign=True)
        network.train().run_block = run_block
        num_tokens = side * side * len(caption_lengths)
        batch = NoisyBatch(
            noisy_TC=torch.zeros(num_tokens, config.patch_channels),
            target_TC=torch.zeros(num_tokens, config.patch_channels),
            timesteps_B=torch.zeros(len(caption_lengths)),
            prompt_embeds_L=torch.zeros(sum(caption_lengths), config.cap_feat_dim),
            layout=layout,
        )
        weights = sum(p.untyped_storage().nbytes() for p in network.parameters())
        with simulated_kernels(), LiveBytes() as live:
            with torch.autocast("cpu", torch.bfloat16):
                loss_B = flow_matching_loss(network, batch)
            kept, forward = live.now, live.peak
            loss_B.mean().backward()
    return Peak(weights=weights, kept=kept, forward=forward, total=live.peak)
