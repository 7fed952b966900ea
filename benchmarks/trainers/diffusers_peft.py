"""diffusers' network, trained as its examples train it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lumina2_trainer.trainer_core.lumina2.models.name_map import diffusers_config, to_diffusers_state_dict
from torch import Tensor

from ..cases import RANK
from ..material import Setup, random_weights
from .padded import train_padded
from .prepared import PreparedTrainer

if TYPE_CHECKING:
    from diffusers import Lumina2Transformer2DModel

LORA_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


def train_lora(setup: Setup) -> PreparedTrainer:
    """A float32 LoRA by peft under autocast, as examples/dreambooth/train_dreambooth_lora_lumina2.py does it."""
    from peft import LoraConfig

    transformer = _build(setup).requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LORA_TARGETS))
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return _train(setup, transformer)


def train_full(setup: Setup) -> PreparedTrainer:
    """Every weight in the case's precision, with AdamW's two moments beside it."""
    return _train(setup, _build(setup).requires_grad_(True))


def _build(setup: Setup) -> Lumina2Transformer2DModel:
    from accelerate import init_empty_weights
    from diffusers import Lumina2Transformer2DModel

    with init_empty_weights(include_buffers=False):  # its rotary tables are computed when it is built
        transformer = Lumina2Transformer2DModel(**diffusers_config(setup.config))
    weights = random_weights(setup.config, setup.case.dtype, setup.device)
    transformer.load_state_dict(to_diffusers_state_dict(weights, setup.config), assign=True)
    return transformer


def _train(setup: Setup, transformer: Lumina2Transformer2DModel) -> PreparedTrainer:
    transformer.train()
    if setup.case.has_recomputation:
        transformer.enable_gradient_checkpointing()

    def predict(noisy_BCHW: Tensor, t_B: Tensor, embeds_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        return transformer(noisy_BCHW, t_B, embeds_BLD, mask_BL, return_dict=False)[0]

    return train_padded(setup, predict, [p for p in transformer.parameters() if p.requires_grad])
