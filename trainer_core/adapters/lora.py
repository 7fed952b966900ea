"""LoRA by peft on the fused native layout."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import TrainerError
from ..settings import check_settings, setting

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("attention.qkv", "attention.out"),
    "attention_mlp": ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    "attention_mlp_modulation": (
        "attention.qkv",
        "attention.out",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
        "adaLN_modulation.1",
    ),
    "all_linear": (),
    "pattern": (),
}
"""Module name endings by choice; "all_linear" is every Linear, "pattern" a regular expression over whole names."""


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """Widgets of LoRA Settings; rank and alpha are on Train LoRA."""

    targets: str = setting("attention_mlp", choices=LORA_TARGETS)
    """Which layers are adapted. More layers learn more and make a larger file."""
    target_pattern: str = setting("")
    """Regular expression over whole module names when targets is "pattern", such as
    `layers\\.\\d+\\.attention\\.(qkv|out)`."""
    dropout: float = setting(0.0, minimum=0.0, maximum=0.99, step=0.05)
    """Share of the adapter's inputs set to zero in training; a little can slow overfitting."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.targets == "pattern" and not self.target_pattern:
            raise TrainerError(
                'target_pattern is empty: targets is "pattern", so name the layers by a regular expression'
            )


def target_modules(transformer: nn.Module, settings: LoRASettings) -> list[str]:
    """Names of the Linear layers that are adapted.

    Raises:
        TrainerError: No layer matches the pattern, or it is not a regular expression.
    """
    linears = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    if settings.targets == "all_linear":
        return linears
    if settings.targets == "pattern":
        return _matching(linears, settings.target_pattern)
    return [name for name in linears if name.endswith(LORA_TARGETS[settings.targets]) and _is_in_block(name)]


def _is_in_block(name: str) -> bool:
    return name.split(".")[0] in ("layers", "noise_refiner", "context_refiner")


def _matching(names: list[str], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TrainerError(f"target_pattern {pattern!r} is not a regular expression: {error}") from error
    matching = [name for name in names if compiled.fullmatch(name)]
    if not matching:
        raise TrainerError(f"target_pattern {pattern!r} matches no layer: names look like {', '.join(names[8:11])}")
    return matching


def attach_lora(
    transformer: nn.Module, settings: LoRASettings, *, rank: int, alpha: float, seed: int
) -> dict[str, nn.Parameter]:
    """Put a LoRA on the transformer, in place; the base is frozen.

    Args:
        transformer: In the native layout.
        settings: Targets and dropout.
        rank: Size of the adapter.
        alpha: Output is scaled by alpha / rank.
        seed: Of the initial values; B is zero, so the adapter starts as the identity.

    Returns:
        The trainable float32 parameters by name, A and B of each target in turn.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from .fused_lora import FusedLoRALinear

    transformer.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=target_modules(transformer, settings),
    )
    config._register_custom_module({nn.Linear: FusedLoRALinear})  # "custom models" in peft's developer guide
    device = next(transformer.parameters()).device  # of x_embedder, which is never swapped
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, transformer)
    parameters = {}
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device, torch.float32)  # peft puts it where the frozen weight is
            parameters[name] = parameter
    return parameters


def export_lora(parameters: dict[str, nn.Parameter], *, rank: int, alpha: float) -> dict[str, Tensor]:
    """ComfyUI's file: fused qkv, `diffusion_model.` before native names, alpha / rank folded into B.

    Args:
        parameters: From `attach_lora`.
        rank: As trained.
        alpha: As trained.

    Returns:
        `diffusion_model.<module>.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank], float32 on the CPU.
    """
    tensors = {}
    for name, parameter in parameters.items():
        module, part = re.fullmatch(r"(.+)\.(lora_[AB])\.default\.weight", name).groups()  # type: ignore[union-attr]
        scale = alpha / rank if part == "lora_B" else 1.0
        tensors[f"diffusion_model.{module}.{part}.weight"] = (parameter.detach().float() * scale).cpu()
    return tensors
