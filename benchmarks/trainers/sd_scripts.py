"""kohya-ss/sd-scripts: the network of library/lumina_models.py with a LoRA by peft."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..cases import RANK
from ..material import Setup, random_weights
from .padded import train_padded
from .prepared import PreparedTrainer

LORA_TARGETS = ["qkv", "attention.out"]
MODULES_WITHOUT_USE = ("norm_final.weight",)
"""It has them, no file holds them and its forward pass does not read them."""


def train_lora(setup: Setup) -> PreparedTrainer:
    """A float32 LoRA under autocast, called as lumina_train_network.py calls the network."""
    from peft import LoraConfig, inject_adapter_in_model

    transformer = _build(setup).requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LORA_TARGETS)
    transformer = inject_adapter_in_model(config, transformer).train()
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if setup.case.has_recomputation:
        transformer.enable_gradient_checkpointing()

    def predict(noisy_BCHW: Tensor, t_B: Tensor, embeds_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        if setup.case.has_recomputation and torch.is_grad_enabled():
            noisy_BCHW.requires_grad_(True)
            embeds_BLD.requires_grad_(True)
        return transformer(x=noisy_BCHW, t=t_B, cap_feats=embeds_BLD, cap_mask=mask_BL.to(torch.int32))

    return train_padded(setup, predict, parameters)


def _build(setup: Setup) -> Any:
    from accelerate import init_empty_weights

    sys.path.insert(0, str(setup.checkouts.sd_scripts))
    from library import lumina_models

    sizes = setup.config
    params = lumina_models.LuminaParams(
        patch_size=sizes.patch_size,
        in_channels=sizes.in_channels,
        dim=sizes.hidden_size,
        n_layers=sizes.num_layers,
        n_heads=sizes.num_attention_heads,
        n_kv_heads=sizes.num_kv_heads,
        axes_dims=list(sizes.axes_dims),
        axes_lens=[300, 512, 512],
        qk_norm=True,
        norm_eps=sizes.norm_eps,
        cap_feat_dim=sizes.cap_feat_dim,
    )
    with init_empty_weights(include_buffers=False):
        transformer = lumina_models.NextDiT_2B_GQA_patch2_Adaln_Refiner(params=params)
    weights = random_weights(sizes, setup.case.dtype, setup.device)
    for name in MODULES_WITHOUT_USE:
        weights[name] = torch.ones(sizes.hidden_size, dtype=setup.case.dtype, device=setup.device)
    transformer.load_state_dict(weights, assign=True)
    return transformer
