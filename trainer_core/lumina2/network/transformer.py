"""The Lumina2 network in the native layout (fused qkv, names as in ComfyUI), over packed tokens.

Follows Alpha-VLLM/Lumina-Image-2.0, models/model.py. There is no padding and no waiting for the device: samples of any
size and caption length lie behind one another in one sequence, and a TokenLayout says which tokens belong together.

Shape suffixes: S caption and image tokens of all samples, L caption tokens, T image tokens, B samples, D width,
H query heads, K key/value heads, E head size, C channels of a patch, P size of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.attention import Segments, attend, padding_to_mark
from ..ops.ops import normalise_and_rotate, per_token, residual_norm
from ..quant.frozen_linear import apply_linear
from .feed_forward import feed_forward, uses_known_result
from .layout import TokenLayout, TokenStream


@dataclass(frozen=True, kw_only=True)
class Lumina2Config:
    """Sizes of the network; the defaults are Lumina-Image-2.0's."""

    hidden_size: int = 2304
    num_layers: int = 26
    num_refiner_layers: int = 2
    num_attention_heads: int = 24
    num_kv_heads: int = 8
    cap_feat_dim: int = 2304
    """Width of the text encoder."""
    axes_dims: tuple[int, int, int] = (32, 32, 32)
    """Head dimensions rotated by caption position, row and column; their sum is the head size."""
    in_channels: int = 16
    patch_size: int = 2
    mlp_size: int = 9216
    norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def time_embed_size(self) -> int:
        return min(self.hidden_size, 1024)

    @property
    def patch_channels(self) -> int:
        return self.in_channels * self.patch_size**2

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of q, k and v in `attention.qkv`."""
        return self.hidden_size, self.num_kv_heads * self.head_size, self.num_kv_heads * self.head_size


Attend = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
"""As `attend`."""


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys; q, k and v are one matrix."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.num_kv_heads = config.num_kv_heads
        self.qkv = nn.Linear(config.hidden_size, sum(config.qkv_rows), bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps)
        self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(self, x_SD: Tensor, stream: TokenStream) -> Tensor:
        return apply_linear(self.out, self.mix(x_SD, stream))

    def mix(self, x_SD: Tensor, stream: TokenStream, attend_by: Attend | None = None) -> Tensor:
        """All but the last product; `attend_by` takes the place of `attend`."""
        qkv_SX = apply_linear(self.qkv, x_SD)
        query, key, value = normalise_and_rotate(
            qkv_SX,
            self.q_norm.weight,
            self.k_norm.weight,
            stream.rotary.cos,
            stream.rotary.sin,
            num_kv_heads=self.num_kv_heads,
            eps=self.q_norm.eps,
            is_padding_S=padding_to_mark(stream.segments, qkv_SX),
        )
        return (attend_by or attend)(query, key, value, stream.segments).flatten(1)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.w2 = nn.Linear(config.mlp_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.mlp_size, bias=False)

    def forward(self, x_SD: Tensor, known_SD: Tensor | None = None) -> Tensor:
        return feed_forward(x_SD, self.w1, self.w2, self.w3, known_SD)

    def uses_known_result(self, x_SD: Tensor) -> bool:
        """Whether a second pass over x_SD computes less if it is given the result of the first."""
        return uses_known_result(x_SD, self.w1, self.w2, self.w3)


Modulation = Sequence["Tensor | None"]
"""Scale and gate of the attention, scale and gate of the MLP, [B, D] each."""


class Block(nn.Module):
    """One transformer block; with `is_modulated`, scales and gates come from the time embedding."""

    def __init__(self, config: Lumina2Config, *, is_modulated: bool) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm1 = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention_norm2 = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm1 = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm2 = RMSNorm(config.hidden_size, config.norm_eps)
        if is_modulated:
            linear = nn.Linear(config.time_embed_size, 4 * config.hidden_size)
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), linear)

    def forward(self, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None) -> Tensor:
        modulation = self.modulate(time_embed_BP)
        x_SD, h_SD = self.attend(x_SD, stream, modulation)
        return self.feed(x_SD, h_SD, stream.sample_index, modulation)

    def modulate(self, time_embed_BP: Tensor | None) -> Modulation:
        """Scales and gates of the attention and of the MLP, [B, D] each."""
        if time_embed_BP is None:
            return None, None, None, None
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.adaLN_modulation(time_embed_BP).chunk(4, -1)
        return scale_msa, gate_msa, scale_mlp, gate_mlp

    def attend(self, x_SD: Tensor, stream: TokenStream, modulation: Modulation) -> tuple[Tensor, Tensor]:
        """The attention: the residual stream after it, and the input of the MLP."""
        x_SD, h_SD = self.enter(x_SD, stream, modulation)
        return self.join(x_SD, self.attention(h_SD, stream), stream, modulation)

    def enter(self, x_SD: Tensor, stream: TokenStream, modulation: Modulation) -> tuple[Tensor, Tensor]:
        """The residual stream as it is, and the input of the attention."""
        return residual_norm(
            x_SD,
            next_weight_D=self.attention_norm1.weight,
            scale_BD=modulation[0],
            sample_index_S=stream.sample_index,
            eps=self.attention_norm1.eps,
        )

    def join(
        self, x_SD: Tensor, branch_SD: Tensor, stream: TokenStream, modulation: Modulation
    ) -> tuple[Tensor, Tensor]:
        """The residual stream with the attention's result added, and the input of the MLP."""
        _, gate_msa, scale_mlp, _ = modulation
        return residual_norm(
            x_SD,
            branch_SD=branch_SD,
            branch_weight_D=self.attention_norm2.weight,
            gate_BD=gate_msa,
            next_weight_D=self.ffn_norm1.weight,
            scale_BD=scale_mlp,
            sample_index_S=stream.sample_index,
            eps=self.attention_norm1.eps,
        )

    def feed(self, x_SD: Tensor, h_SD: Tensor, sample_index_S: Tensor, modulation: Modulation) -> Tensor:
        """The MLP, which may be given any part of the tokens; what it adds to x_SD does not depend on x_SD."""
        return self.add_fed(x_SD, self.feed_forward(h_SD), sample_index_S, modulation)

    def add_fed(self, x_SD: Tensor, fed_SD: Tensor, sample_index_S: Tensor, modulation: Modulation) -> Tensor:
        """The residual stream with the MLP's result added."""
        return residual_norm(
            x_SD,
            branch_SD=fed_SD,
            branch_weight_D=self.ffn_norm2.weight,
            gate_BD=modulation[3],
            sample_index_S=sample_index_S,
            eps=self.ffn_norm2.eps,
        )[0]


BlockRunner = Callable[[int, Block, Tensor, TokenStream, "Tensor | None"], Tensor]
"""Called with the block's number in order of execution, the block and its arguments."""


def keep_activations(
    index: int, block: Block, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None
) -> Tensor:
    """The plain block runner: the backward pass finds every activation in memory."""
    return block(x_SD, stream, time_embed_BP)


TIME_FREQUENCIES = 256


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of t in [0, 1] (not multiplied by 1000) through a two-layer MLP."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: P.
        """
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, timesteps_B: Tensor) -> Tensor:
        """[B, P], in the dtype of the weights."""
        half = TIME_FREQUENCIES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timesteps_B.device) / half
        angle = timesteps_B[:, None].float() * torch.exp(-math.log(10000) * exponent)
        features = torch.cat([angle.cos(), angle.sin()], -1)
        return self.mlp(features.to(cast(Tensor, self.mlp[0].weight).dtype))


class FinalLayer(nn.Module):
    """Layer norm, scale from the time embedding, projection to the patch."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.patch_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.time_embed_size, config.hidden_size))

    def forward(self, x_TD: Tensor, stream: TokenStream, time_embed_BP: Tensor) -> Tensor:
        scale_TD = per_token(self.adaLN_modulation(time_embed_BP), stream.sample_index)
        normed_TD = F.layer_norm(x_TD, x_TD.shape[-1:], eps=1e-6).to(x_TD.dtype)
        return self.linear(normed_TD * (1 + scale_TD))


def join_tokens(caption_LD: Tensor, image_TD: Tensor, layout: TokenLayout) -> Tensor:
    """Every token at its place in the joint sequence, [S, D] in the images' dtype.

    Neither input is kept for the backward pass, as `Tensor.index_copy` would do.
    """
    caption_LD = caption_LD.to(image_TD.dtype)
    return _Join.apply(caption_LD, image_TD, layout.caption_index_L, layout.image_index_T)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, caption_LD: Tensor, image_TD: Tensor, caption_index_L: Tensor, image_index_T: Tensor
    ) -> Tensor:
        ctx.save_for_backward(caption_index_L, image_index_T)
        joint_SD = image_TD.new_empty(len(caption_LD) + len(image_TD), image_TD.shape[1])
        return joint_SD.index_copy_(0, caption_index_L, caption_LD).index_copy_(0, image_index_T, image_TD)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor | None, ...]:
        indices = ctx.saved_tensors
        grads = [
            grad_SD.index_select(0, index) if is_needed else None
            for index, is_needed in zip(indices, ctx.needs_input_grad[:2], strict=True)
        ]
        return *grads, None, None


class Lumina2Transformer(nn.Module):
    """Predicts the velocity `latents - noise` of packed image tokens."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.config = config
        self.run_block: BlockRunner = keep_activations
        """How a block is run: with its activations kept, or computed again (see `memory/recompute.py`)."""
        self.x_embedder = nn.Linear(config.patch_channels, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config.time_embed_size)
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, config.hidden_size)
        )
        refiners = range(config.num_refiner_layers)
        self.noise_refiner = nn.ModuleList([Block(config, is_modulated=True) for _ in refiners])
        self.context_refiner = nn.ModuleList([Block(config, is_modulated=False) for _ in refiners])
        self.layers = nn.ModuleList([Block(config, is_modulated=True) for _ in range(config.num_layers)])
        self.final_layer = FinalLayer(config)

    @property
    def blocks(self) -> list[Block]:
        """All blocks in order of execution."""
        return cast("list[Block]", [*self.context_refiner, *self.noise_refiner, *self.layers])

    def forward(self, image_TC: Tensor, timesteps_B: Tensor, prompt_embeds_L: Tensor, layout: TokenLayout) -> Tensor:
        """Velocity of each patch.

        Args:
            image_TC: [T, C] noisy patches of all samples, from `patchify`.
            timesteps_B: [B] float32, t from 0 (noise) to 1 (image).
            prompt_embeds_L: [L, cap_feat_dim] text encoder states of all samples, without padding.
            layout: How the samples are packed.

        Returns:
            [T, C] predicted `latents - noise`.
        """
        time_embed_BP = self.t_embedder(timesteps_B)
        caption_LD = self.cap_embedder(prompt_embeds_L)
        image_TD = self.x_embedder(image_TC)
        caption_LD = self._run(self.context_refiner, caption_LD, layout.caption, None)
        image_TD = self._run(self.noise_refiner, image_TD, layout.image, time_embed_BP)
        joint_SD = join_tokens(caption_LD, image_TD, layout)
        joint_SD = self._run(self.layers, joint_SD, layout.joint, time_embed_BP)
        return self.final_layer(joint_SD.index_select(0, layout.image_index_T), layout.image, time_embed_BP)

    def _run(self, blocks: nn.ModuleList, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None) -> Tensor:
        first = self.blocks.index(cast(Block, blocks[0])) if len(blocks) else 0
        for index, block in enumerate(cast("Iterable[Block]", blocks), first):
            x_SD = self.run_block(index, block, x_SD, stream, time_embed_BP)
        return x_SD
