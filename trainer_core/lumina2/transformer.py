"""The Lumina2 network in the native layout (fused qkv, names as in ComfyUI), over packed tokens.

Follows Alpha-VLLM/Lumina-Image-2.0, models/model.py. There is no padding and no waiting for the device: samples of any
size and caption length lie behind one another in one sequence, and a TokenLayout says which tokens belong together.

Shape suffixes: S caption and image tokens of all samples, L caption tokens, T image tokens, B samples, D width,
H query heads, K key/value heads, E head size, C channels of a patch, P size of the time embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attend
from .layout import TokenLayout, TokenStream, rotate

TIME_FREQUENCIES = 256


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
        self.head_size = config.head_size
        self.split_sizes = config.qkv_rows
        self.qkv = nn.Linear(config.hidden_size, sum(config.qkv_rows), bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps)
        self.k_norm = RMSNorm(config.head_size, config.norm_eps)

    def forward(self, x_SD: Tensor, stream: TokenStream) -> Tensor:
        query, key, value = (
            x.unflatten(-1, (-1, self.head_size)) for x in self.qkv(x_SD).split(self.split_sizes, -1)
        )  # [S, D + 2 K E] -> [S, H, E], [S, K, E], [S, K, E]
        query = rotate(self.q_norm(query), stream.rotary)
        key = rotate(self.k_norm(key), stream.rotary)
        return self.out(attend(query, key, value, stream.segments).flatten(1))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.w2 = nn.Linear(config.mlp_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.mlp_size, bias=False)

    def forward(self, x_SD: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x_SD)) * self.w3(x_SD))


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
        if time_embed_BP is None:
            x_SD = x_SD + self.attention_norm2(self.attention(self.attention_norm1(x_SD), stream))
            return x_SD + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x_SD)))
        modulation_BD4 = self.adaLN_modulation(time_embed_BP)
        scale_msa, gate_msa, scale_mlp, gate_mlp = (
            _per_token(m_BD, stream) for m_BD in modulation_BD4.chunk(4, -1)
        )  # [B, 4 D] -> 4 x [S, D]
        h_SD = self.attention(self.attention_norm1(x_SD) * (1 + scale_msa), stream)
        x_SD = x_SD + gate_msa.tanh() * self.attention_norm2(h_SD)
        h_SD = self.feed_forward(self.ffn_norm1(x_SD) * (1 + scale_mlp))
        return x_SD + gate_mlp.tanh() * self.ffn_norm2(h_SD)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of t in [0, 1] (not multiplied by 1000) through a two-layer MLP."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        size = config.time_embed_size
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, timesteps_B: Tensor) -> Tensor:
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
        scale_TD = _per_token(self.adaLN_modulation(time_embed_BP), stream)
        normed_TD = F.layer_norm(x_TD, x_TD.shape[-1:], eps=1e-6).to(x_TD.dtype)
        return self.linear(normed_TD * (1 + scale_TD))


class Lumina2Transformer(nn.Module):
    """Predicts the velocity `latents - noise` of packed image tokens."""

    def __init__(self, config: Lumina2Config) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        """Recompute every block in the backward pass instead of keeping its activations."""
        self.x_embedder = nn.Linear(config.patch_channels, config.hidden_size)
        self.t_embedder = TimestepEmbedder(config)
        self.cap_embedder = nn.Sequential(
            RMSNorm(config.cap_feat_dim, config.norm_eps), nn.Linear(config.cap_feat_dim, config.hidden_size)
        )
        refiners = range(config.num_refiner_layers)
        self.noise_refiner = nn.ModuleList([Block(config, is_modulated=True) for _ in refiners])
        self.context_refiner = nn.ModuleList([Block(config, is_modulated=False) for _ in refiners])
        self.layers = nn.ModuleList([Block(config, is_modulated=True) for _ in range(config.num_layers)])
        self.final_layer = FinalLayer(config)

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
        for block in self.context_refiner:
            caption_LD = self._run(block, caption_LD, layout.caption, None)
        for block in self.noise_refiner:
            image_TD = self._run(block, image_TD, layout.image, time_embed_BP)
        joint_SD = image_TD.new_empty(caption_LD.shape[0] + image_TD.shape[0], image_TD.shape[1])
        joint_SD = joint_SD.index_copy(0, layout.caption_index_L, caption_LD.to(image_TD.dtype))
        joint_SD = joint_SD.index_copy(0, layout.image_index_T, image_TD)
        for block in self.layers:
            joint_SD = self._run(block, joint_SD, layout.joint, time_embed_BP)
        return self.final_layer(joint_SD.index_select(0, layout.image_index_T), layout.image, time_embed_BP)

    def _run(self, block: nn.Module, x_SD: Tensor, stream: TokenStream, time_embed_BP: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x_SD, stream, time_embed_BP, use_reentrant=False)
        return block(x_SD, stream, time_embed_BP)


def _per_token(modulation_BD: Tensor, stream: TokenStream) -> Tensor:
    """[B, D] -> [S, D], or [1, D] where there is one sample."""
    # index_select, here and elsewhere: its backward pass is much cheaper than that of x[index] (torch 2.14, CPU).
    return modulation_BD if modulation_BD.shape[0] == 1 else modulation_BD.index_select(0, stream.sample_index)


def patchify(latents: Tensor, patch_size: int = 2) -> Tensor:
    """Cut latents into tokens.

    Args:
        latents: [channels, height, width]; height and width multiples of `patch_size`.

    Returns:
        [rows * columns, patch_size * patch_size * channels], each patch laid out (row, column, channel).
    """
    channels, height, width = latents.shape
    rows, columns = height // patch_size, width // patch_size
    x = latents.reshape(channels, rows, patch_size, columns, patch_size)
    return x.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)  # [C, R, p, W, p] -> [R, W, p, p, C]


def unpatchify(tokens: Tensor, rows: int, columns: int, patch_size: int = 2) -> Tensor:
    """The inverse of `patchify`.

    Args:
        tokens: [rows * columns, patch_size * patch_size * channels].

    Returns:
        [channels, rows * patch_size, columns * patch_size].
    """
    x = tokens.reshape(rows, columns, patch_size, patch_size, -1)
    x = x.permute(4, 0, 2, 1, 3)  # [R, W, p, p, C] -> [C, R, p, W, p]
    return x.reshape(-1, rows * patch_size, columns * patch_size)
