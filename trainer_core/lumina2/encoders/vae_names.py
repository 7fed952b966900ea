"""Names of the VAE's weights in the LDM layout (`ae.safetensors`, all-in-one files) and in diffusers.

The two differ in names, in the order of the decoder's levels (LDM counts them from the picture, diffusers from the
latents), and in the attention of the middle, which LDM keeps as 1 x 1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

NUM_LEVELS = 4
"""Resolutions of the Flux VAE: three halvings, so one latent for 8 x 8 pixels."""

MIDDLE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
DIFFUSERS_BLOCK = re.compile(
    r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.(?:resnets\.(\d+)\.(\w+)|(?:down|up)samplers\.0\.conv)"
)


def to_ldm_name(diffusers_name: str) -> str:
    """The LDM name of a diffusers weight; a name that is the same in both, or an LDM name, stays as it is."""
    module, _, kind = diffusers_name.rpartition(".")
    block = DIFFUSERS_BLOCK.fullmatch(module)
    if block:
        stack, level, resnet, inner = block.groups()
        inner = "nin_shortcut" if inner == "conv_shortcut" else inner
        if stack == "encoder.down_blocks":
            end = f"block.{resnet}.{inner}" if resnet else "downsample.conv"
            return f"encoder.down.{level}.{end}.{kind}"
        end = f"block.{resnet}.{inner}" if resnet else "upsample.conv"
        return f"decoder.up.{NUM_LEVELS - 1 - int(level)}.{end}.{kind}"
    side, _, inner = module.partition(".")
    for diffusers, ldm in MIDDLE.items():
        if inner.startswith(f"{diffusers}."):
            last = inner.removeprefix(f"{diffusers}.")
            return f"{side}.{ldm}.{ATTENTION.get(last, last)}.{kind}"
    return f"{side}.norm_out.{kind}" if inner == "conv_norm_out" else diffusers_name


def is_attention_projection(diffusers_name: str) -> bool:
    """Whether LDM stores this weight as a 1 x 1 convolution and diffusers as a matrix."""
    return re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", diffusers_name) is not None


def to_ldm_state_dict(diffusers_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers AutoencoderKL's weights as LDM stores them."""
    return {
        to_ldm_name(name): tensor[:, :, None, None] if is_attention_projection(name) else tensor
        for name, tensor in diffusers_state.items()
    }
