"""LoRA by peft on the fused native layout."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Regular expression over whole module names when targets is "pattern", such as `layers\\.\\d+\\.attention\\.(qkv|out)`."""
    dropout: float = setting(0.0, minimum=0.0, maximum=0.99, step=0.05)
    """Share of the adapter's inputs set to zero in training; a little can slow overfitting."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.targets == "pattern" and not self.target_pattern:
            raise TrainerError('target_pattern is empty: targets is "pattern", so name the layers by a regular expression')
